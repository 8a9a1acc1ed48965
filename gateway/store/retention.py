"""Removal of history rows by number and by age.

Above `history_rows` the oldest row of the tenant with the most rows is removed, the rule of the
index (predict/index.py): a burst of one tenant does not cost the others their history. Trimming
begins a twentieth above the bound and goes down to it, so that rows are counted once for many
removals. Rows older than `history_max_age_s` are removed whatever their number.

All of it is done in slices inside a group commit, on the writer thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from heapq import heapify, heapreplace

from gateway.settings.schema import Store as StoreSettings
from gateway.store import rows

SLICE_ROWS = 500


class Retention:
    """Counter and remover of history rows. Owned by the writer thread."""

    def __init__(self) -> None:
        self.rows = 0  # read by any thread
        self._trimming = False

    def count(self, connection: sqlite3.Connection) -> dict[str, int]:
        """Counts the rows by tenant. Corrects `rows` after a failed commit."""
        counts = dict(connection.execute(rows.COUNT_HISTORY).fetchall())
        self.rows = sum(counts.values())
        return counts

    def slice(self, connection: sqlite3.Connection, settings: StoreSettings, wall_s: float) -> bool:
        """Removes at most a slice; True while there is more."""
        aged = self._age(connection, wall_s - settings.history_max_age_s, settings)
        bound = settings.history_rows
        slack = 0 if self._trimming else min(bound // 20, SLICE_ROWS)
        if self.rows <= bound + slack:
            self._trimming = False
            return aged
        counts = self.count(connection)
        plan = plan_trim(counts, min(self.rows - bound, SLICE_ROWS))
        for tenant, number in plan.items():
            connection.execute(rows.TRIM_TENANT, (tenant, number))
        self.rows -= sum(plan.values())
        self._trimming = self.rows > bound
        return aged or self._trimming

    def _age(
        self, connection: sqlite3.Connection, before_s: float, settings: StoreSettings
    ) -> bool:
        if settings.history_max_age_s <= 0:
            return False
        gone = connection.execute(rows.AGE_HISTORY, (before_s, SLICE_ROWS)).rowcount
        self.rows -= gone
        return gone == SLICE_ROWS


def plan_trim(counts: Mapping[str, int], number: int) -> dict[str, int]:
    """Numbers of oldest rows to remove by tenant, always from the one with the most."""
    heap = [(-count, tenant) for tenant, count in counts.items() if count]
    heapify(heap)
    plan: dict[str, int] = {}
    for _ in range(min(number, sum(counts.values()))):
        count, tenant = heap[0]
        plan[tenant] = plan.get(tenant, 0) + 1
        heapreplace(heap, (count + 1, tenant))
    return plan
