"""The times at which time alone will change something in a pool.

A heap with at most one valid entry per pool. Nearly every event postpones its pool's time (the job
that would have expired first has started), so an entry may be too early: it is corrected when it
comes to the top, and an event costs the other pools nothing.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from math import inf

from gateway.schedule.model_pool import Pool


class Timers:
    """The timers of all pools. `set` sets `Pool.wake_s`; `Pool.armed_s` is the time of the heap's
    entry that stands for it."""

    __slots__ = ("_heap", "_sweep_at")

    def __init__(self) -> None:
        self._heap: list[tuple[float, str, Pool]] = []
        self._sweep_at = 64

    def set(self, pool: Pool, wake_s: float) -> None:
        """Wake the pool at `wake_s`; infinity: never."""
        pool.wake_s = wake_s
        if wake_s < pool.armed_s:
            pool.armed_s = wake_s
            heappush(self._heap, (wake_s, pool.name, pool))
            if len(self._heap) > self._sweep_at:
                self._heap = [e for e in self._heap if e[0] == e[2].armed_s]
                heapify(self._heap)
                self._sweep_at = max(64, 2 * len(self._heap))

    def next_s(self) -> float:
        """The earliest time of all pools; infinity where none has one."""
        heap = self._heap
        while heap:
            at_s, name, pool = heap[0]
            if at_s == pool.wake_s == pool.armed_s:
                return at_s
            if at_s != pool.armed_s or pool.wake_s == inf:
                heappop(heap)  # an earlier time was set since, or none is wanted
                if at_s == pool.armed_s:
                    pool.armed_s = inf
            else:
                pool.armed_s = pool.wake_s
                heapreplace(heap, (pool.wake_s, name, pool))
        return inf

    def due(self, now: float) -> list[str]:
        """Names of the pools whose time has come. Each has to be `set` again."""
        names = []
        while self.next_s() <= now:
            _, name, pool = heappop(self._heap)
            pool.armed_s = inf
            names.append(name)
        return names
