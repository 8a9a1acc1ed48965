"""The newest history rows of each tenant, for filling an index or a refit.

Places are shared among tenants as in the index (predict/index.py), so a restart does not admit
rows of a flood that the running index kept out.

The rows are chosen in two steps, so that the store's thread is never held for long: first their
numbers, from a covering index, then the rows, a page at a time. Rows removed between two pages
are missing in the later ones; rows added meanwhile are not included.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from itertools import islice

from gateway.store import rows
from gateway.types import HistoryRow

PAGE_ROWS = 256  # some 5 ms
STEP_ROWS = 10_000  # numbers alone; also some 5 ms
_LAST = 2**63 - 1


class Newest:
    """Choice of at most `limit` rows, of one encoder or of all: call `step` until it is False."""

    def __init__(self, limit: int, encoder: str | None) -> None:
        self._limit = limit
        self._count, self._select = rows.ANY if encoder is None else rows.ENCODED
        self._of: tuple[str, ...] = () if encoder is None else (encoder,)
        self._left: dict[str, int] | None = None  # rows still to be found, by tenant
        self._found: dict[str, list[int]] = {}  # by tenant, newest first

    def step(self, connection: sqlite3.Connection) -> bool:
        """Does a slice of the work; True while there is more."""
        if self._left is None:
            counts = dict(connection.execute(self._count, self._of).fetchall())
            self._left = shares(counts, self._limit)
        room = STEP_ROWS
        while self._left and room > 0:
            tenant, wanted = next(iter(self._left.items()))
            count = min(wanted, room)
            numbers = self._found.setdefault(tenant, [])
            before = numbers[-1] if numbers else _LAST
            values = (*self._of, tenant, before, count)
            found = [seq for (seq,) in connection.execute(self._select, values)]
            numbers += found
            room -= len(found)
            self._left[tenant] = wanted - len(found)
            if len(found) < count or count == wanted:
                del self._left[tenant]
        return bool(self._left)

    def pages(self) -> Iterator[list[int]]:
        """Numbers of the chosen rows, oldest first, in pages for `read`.

        They are merged page by page: sorting a large list is one call that stops other threads.
        """
        merged = merge(*(reversed(seqs) for seqs in self._found.values()))
        while page := list(islice(merged, PAGE_ROWS)):
            yield page


def shares(counts: Mapping[str, int], limit: int) -> dict[str, int]:
    """Places of each tenant out of `limit`: all it needs, or as many as any other tenant."""
    found: dict[str, int] = {}
    smallest_first = sorted(counts, key=lambda tenant: counts[tenant])
    for others, tenant in zip(range(len(counts), 0, -1), smallest_first, strict=True):
        found[tenant] = min(counts[tenant], limit // others)
        limit -= found[tenant]
    return found


def read(connection: sqlite3.Connection, seqs: Sequence[int]) -> list[HistoryRow]:
    """The rows of one page that still exist."""
    found = connection.execute(rows.select_history(len(seqs)), tuple(seqs))
    return [rows.history_row(values) for values in found]
