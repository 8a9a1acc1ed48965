"""A priority queue whose items may move or leave without being looked for in it."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

K = TypeVar("K", float, tuple[int, float])
T = TypeVar("T")


class LazyHeap(Generic[K, T]):
    """A heap whose items may die inside it.

    `alive(key, seq, item)` says whether an item still stands where it was pushed; `seq` orders
    equal keys, and is never that of two items. Amortised O(log n); swept when it has doubled
    since the last sweep.
    """

    __slots__ = ("_alive", "_heap", "_sweep_at")

    def __init__(self, alive: Callable[[K, int, T], bool]) -> None:
        self._alive: Callable[[K, int, T], bool] = alive
        self._heap: list[tuple[K, int, T]] = []
        self._sweep_at = 64

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, key: K, seq: int, item: T) -> None:
        heappush(self._heap, (key, seq, item))
        if len(self._heap) > self._sweep_at:
            alive = self._alive
            self._heap = [e for e in self._heap if alive(*e)]
            heapify(self._heap)
            self._sweep_at = max(64, 2 * len(self._heap))

    def top(self) -> T | None:
        heap, alive = self._heap, self._alive
        while heap:
            top = heap[0]
            if alive(*top):
                return top[2]
            heappop(heap)
        return None
