"""The newest rows of each tenant: what an index, or a refit, is filled with.

As many of each tenant as there is room for, the index's own rule (predict/index.py), so that a
restart does not let a flood in that the running window kept out.

In two steps, because one would hold the store's thread for a second at 100,000 rows, while
everybody who waits for a commit waits: which rows (numbers alone, out of a covering index),
then the rows, a page at a time. What is removed between two pages is
missing in the later ones; what is added belongs to whoever reads next.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from itertools import islice

from gateway.store import rows
from gateway.types import HistoryRow

PAGE_ROWS = 256  # some 5 ms
STEP_ROWS = 10_000  # likewise, of numbers alone
_LAST = 2**63 - 1


class Newest:
    """Chooses at most `limit` rows of one encoder, or of all: `step` until it says False."""

    def __init__(self, limit: int, encoder: str | None) -> None:
        self._limit = limit
        self._count, self._select = rows.ANY if encoder is None else rows.ENCODED
        self._of: tuple[str, ...] = () if encoder is None else (encoder,)
        self._left: dict[str, int] | None = None  # rows to be found yet, by tenant
        self._found: dict[str, list[int]] = {}  # newest first

    def step(self, connection: sqlite3.Connection) -> bool:
        """A slice of the work; True while there is more."""
        if self._left is None:
            counts = dict(connection.execute(self._count, self._of).fetchall())
            self._left = shares(counts, self._limit)
        room = STEP_ROWS
        while self._left and room > 0:
            tenant, wanted = next(iter(self._left.items()))
            asked = min(wanted, room)
            known = self._found.setdefault(tenant, [])
            before = known[-1] if known else _LAST
            values = (*self._of, tenant, before, asked)
            found = [seq for (seq,) in connection.execute(self._select, values)]
            known += found
            room -= len(found)
            self._left[tenant] = wanted - len(found)
            if len(found) < asked or asked == wanted:
                del self._left[tenant]
        return bool(self._left)

    def pages(self) -> Iterator[list[int]]:
        """What was chosen, oldest first, cut for `read`. Merged as it is asked for: to sort a
        large list is one call, in which no other thread moves."""
        merged = merge(*(reversed(seqs) for seqs in self._found.values()))
        while page := list(islice(merged, PAGE_ROWS)):
            yield page


def shares(counts: Mapping[str, int], limit: int) -> dict[str, int]:
    """How many of `limit` places each tenant gets: all it has, or as many as any other."""
    found: dict[str, int] = {}
    smallest_first = sorted(counts, key=lambda tenant: counts[tenant])
    for others, tenant in zip(range(len(counts), 0, -1), smallest_first, strict=True):
        found[tenant] = min(counts[tenant], limit // others)
        limit -= found[tenant]
    return found


def read(connection: sqlite3.Connection, seqs: Sequence[int]) -> list[HistoryRow]:
    """One page; those that are there."""
    found = connection.execute(rows.select_history(len(seqs)), tuple(seqs))
    return [rows.history_row(values) for values in found]
