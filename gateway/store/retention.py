"""Which history rows leave the disk, and when.

Above `history_rows` the oldest row of the tenant with the most rows goes, the index's own
rule (predict/index.py): a burst of one tenant costs that tenant its past, not the others
theirs. Trimming begins a twentieth above the bound and goes down to it, so that the counting
(one pass over a covering index, some milliseconds at 100,000 rows) is done once for many
rows. Rows older than `history_max_age_s` go whatever the count.

Everything is done in slices inside a group commit, on the writer thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from heapq import heapify, heapreplace

from gateway.settings.schema import Store as StoreSettings
from gateway.store import rows

SLICE_ROWS = 500


class Retention:
    """Counts history rows and removes what is too much. Owned by the writer thread."""

    def __init__(self) -> None:
        self.rows = 0  # read by any thread
        self._trimming = False

    def count(self, connection: sqlite3.Connection) -> dict[str, int]:
        """Rows by tenant, as they are; a failed commit is made good by the next count."""
        counts = dict(connection.execute(rows.COUNT_HISTORY).fetchall())
        self.rows = sum(counts.values())
        return counts

    def slice(self, connection: sqlite3.Connection, settings: StoreSettings, wall_s: float) -> bool:
        """Remove at most a slice; True while there is more."""
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
    """How many of the oldest rows each tenant gives up, the largest always first."""
    heap = [(-count, tenant) for tenant, count in counts.items() if count]
    heapify(heap)
    plan: dict[str, int] = {}
    for _ in range(min(number, sum(counts.values()))):
        count, tenant = heap[0]
        plan[tenant] = plan.get(tenant, 0) + 1
        heapreplace(heap, (count + 1, tenant))
    return plan
