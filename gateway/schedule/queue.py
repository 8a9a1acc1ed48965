"""The waiting jobs of a pool, arranged so that no question looks at more than one of them.

Whether a waiting job may start depends on its tenant (cap), its class (budget), its size bucket
(cap), its model and the accounts that can serve it, and on nothing else. So jobs that agree in
these share a `Lane`, ordered by key: its head decides for all of it, and a lane that is blocked
hides nothing that could start.

    Line    one model's jobs, for one set of accounts  asks the accounts once for all of them
     └ Tier    one class and size bucket of it         a heap of lanes by their heads
        └ Lane    one tenant's                         a heap of jobs

A lane whose tenant is at its cap is *parked*: out of its tier's heap until the tenant ends a
job, so a thousand capped tenants cost nothing. Jobs after a failed attempt wait in a Line too
(`retrying`); they hold their reserve and their places under the caps, so they ask the accounts
alone, and go before the tiers.

Heaps are lazy: what moved or left stays behind and is skipped when it comes to the top.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from gateway.schedule.entry import Entry, Tenant
from gateway.types import Blocked, Fit, JobClass, Reason, SizeBucket

T = TypeVar("T")


class LazyHeap(Generic[T]):
    """A heap whose items may die inside it.

    `alive(key, seq, item)` says whether an item still stands where it was pushed; `seq` orders
    equal keys. Amortised O(log n); swept when it has doubled since the last sweep.
    """

    __slots__ = ("_alive", "_heap", "_pushes", "_sweep_at")

    def __init__(self, alive: Callable[[float, int, T], bool]) -> None:
        self._alive = alive
        self._heap: list[tuple[float, int, int, T]] = []
        self._pushes = 0
        self._sweep_at = 64

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, key: float, seq: int, item: T) -> None:
        self._pushes += 1  # keeps heapq from ever comparing items
        heappush(self._heap, (key, seq, self._pushes, item))
        if len(self._heap) > self._sweep_at:
            self._heap = [e for e in self._heap if self._alive(e[0], e[1], e[3])]
            heapify(self._heap)
            self._sweep_at = max(64, 2 * len(self._heap))

    def top(self) -> T | None:
        heap = self._heap
        while heap:
            key, seq, _, item = heap[0]
            if self._alive(key, seq, item):
                return item
            heappop(heap)
        return None


class Lane:
    __slots__ = ("first", "heap", "parked", "size", "tenant", "tier")

    def __init__(self, tier: Tier, tenant: Tenant) -> None:
        self.tier = tier
        self.tenant = tenant
        self.heap: LazyHeap[Entry] = LazyHeap(self._holds)
        self.first: Entry | None = None  # the heap's top
        self.size = 0
        self.parked = False

    def _holds(self, key: float, seq: int, entry: Entry) -> bool:
        return entry.lane is self and entry.key == key

    def add(self, entry: Entry) -> None:
        entry.lane = self
        self.size += 1
        self.heap.push(entry.key, entry.seq, entry)
        self._lead(self.heap.top())

    def remove(self, entry: Entry) -> None:
        entry.lane = None
        self.size -= 1
        self._lead(self.heap.top() if entry is self.first else self.first)

    def park(self) -> None:
        self.parked = True
        self.tenant.parked.append(self)

    def unpark(self) -> None:
        self.parked = False
        self.tier.show(self)

    def _lead(self, first: Entry | None) -> None:
        if first is not self.first:
            self.first = first
            self.tier.show(self)


class Tier:
    __slots__ = ("bucket", "cls", "heap", "lanes", "line")

    def __init__(self, line: Line, cls: JobClass, bucket: SizeBucket) -> None:
        self.line = line
        self.cls = cls
        self.bucket = bucket
        self.lanes: dict[str, Lane] = {}
        self.heap: LazyHeap[Lane] = LazyHeap(self._leads)

    @staticmethod
    def _leads(key: float, seq: int, lane: Lane) -> bool:
        first = lane.first
        return first is not None and not lane.parked and first.seq == seq and first.key == key

    def show(self, lane: Lane) -> None:
        """`lane` has a new first job, or is no longer parked."""
        if lane.first is not None and not lane.parked:
            self.heap.push(lane.first.key, lane.first.seq, lane)

    def best(self) -> Entry | None:
        """The best job of tenants below their caps; the others' lanes are parked on the way."""
        while (lane := self.heap.top()) is not None:
            if not lane.tenant.capped:
                return lane.first
            lane.park()
        return None

    def lane(self, tenant: Tenant) -> Lane:
        lane = self.lanes.get(tenant.name)
        if lane is None:
            lane = self.lanes[tenant.name] = Lane(self, tenant)
        return lane


class Line:
    """`avoid` is not empty only for retries: where these jobs failed before."""

    __slots__ = (
        "accounts",
        "avoid",
        "expiry",
        "model",
        "placement",
        "pool",
        "retrying",
        "size",
        "stamp",
        "tiers",
        "waiting",
    )

    def __init__(
        self, pool: str, model: str, accounts: tuple[str, ...], avoid: frozenset[str]
    ) -> None:
        self.pool = pool
        self.model = model
        self.accounts = accounts
        self.avoid = avoid
        self.tiers: dict[tuple[JobClass, SizeBucket], Tier] = {}
        self.retrying: LazyHeap[Entry] = LazyHeap(self._holds)
        self.expiry: LazyHeap[Entry] = LazyHeap(self._holds)
        self.size = 0  # jobs here, retrying ones included
        self.waiting = 0  # jobs in tiers
        self.placement: Fit | Blocked = Blocked(Reason.HEALTH)  # as of `stamp`
        self.stamp: tuple[int, float] | None = None

    def _holds(self, key: float, seq: int, entry: Entry) -> bool:
        return entry.line is self

    def add_waiting(self, entry: Entry) -> None:
        key = (entry.cls, entry.bucket)
        tier = self.tiers.get(key)
        if tier is None:
            tier = self.tiers[key] = Tier(self, *key)
        entry.line = self
        self.size += 1
        self.waiting += 1
        self.expiry.push(entry.expire_s, entry.seq, entry)
        tier.lane(entry.tenant).add(entry)

    def add_retrying(self, entry: Entry) -> None:
        entry.line = self
        self.size += 1
        self.expiry.push(entry.expire_s, entry.seq, entry)
        self.retrying.push(entry.job.arrived_s, entry.seq, entry)

    def remove(self, entry: Entry) -> None:
        entry.line = None
        self.size -= 1
        if entry.lane is not None:
            self.waiting -= 1
            entry.lane.remove(entry)
