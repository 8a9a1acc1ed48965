"""A bounded table whose room is shared fairly between tenants.

One table serves all, so that a single tenant may use all of it. Once it is full, the tenant with
the most entries gives up the one it has left unused longest: whoever makes keys without end (a
schema per request, a system prompt with a name in it) pushes out its own, and a tenant with less
than an equal share keeps what it has, whatever the others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

V = TypeVar("V")


class FairTable(dict[str, V]):
    """At most `most` entries; written by `put` and `replace` alone.

    Args:
        tenant_of: whose a key is.
        entries: put in, one after the other.
    """

    def __init__(
        self,
        most: int,
        tenant_of: Callable[[str], str],
        entries: Iterable[tuple[str, V]] = (),
    ) -> None:
        super().__init__()
        self._most = most
        self._tenant_of = tenant_of
        self._owned: dict[str, dict[str, None]] = {}  # by tenant its keys, longest unused first
        self._ranks: dict[int, dict[str, None]] = {}  # by number of keys its tenants, likewise
        self._top = 0  # the largest number
        for key, value in entries:
            self.put(key, value)

    def put(self, key: str, value: V) -> str | None:
        """An entry, new or not, used just now. The key that was dropped for it, if one was."""
        self.pop(key, None)
        self[key] = value  # last in order, so that a copy tells which is unused longest
        tenant = self._tenant_of(key)
        owned = self._owned.setdefault(tenant, {})
        before = len(owned)
        owned.pop(key, None)
        owned[key] = None
        self._rank(tenant, before, len(owned))
        return self._drop() if len(self) > self._most else None

    def replace(self, key: str, value: V) -> None:
        """Another value for an entry that is here, which is no use of it."""
        assert key in self
        self[key] = value

    def _drop(self) -> str:
        tenant = next(iter(self._ranks[self._top]))
        owned = self._owned[tenant]
        key = next(iter(owned))
        del owned[key], self[key]
        self._rank(tenant, len(owned) + 1, len(owned))
        if not owned:
            del self._owned[tenant]
        return key

    def _rank(self, tenant: str, before: int, now: int) -> None:
        """Move a tenant; numbers change by one at a time, so that the top is at hand."""
        if before:
            del self._ranks[before][tenant]
            if not self._ranks[before]:
                del self._ranks[before]
        if now:
            self._ranks.setdefault(now, {})[tenant] = None
        self._top = max(self._top, now)
        if self._top and self._top not in self._ranks:
            self._top -= 1
