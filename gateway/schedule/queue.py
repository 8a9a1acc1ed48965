"""The waiting jobs of a pool, arranged so that no question looks at more than one of them.

Whether a waiting job may start depends on its tenant (cap), its class (budget), its size (cap,
overload ladder), its model and the accounts that can serve it, and on nothing else. So jobs that
agree in these share a `Lane`, ordered by key: its head decides for all of it, and a lane that is
blocked hides nothing that could start.

    Line    one model's jobs, for one set of accounts  asks the accounts once for all of them
     └ Tier    one class and size of it                a heap of lanes: tenant's rank, head's key
        └ Lane    one tenant's                         a heap of jobs by key, another by arrival

A lane whose tenant is at its cap is *parked*: out of its tier's heap until the tenant ends a
job, so a thousand capped tenants cost nothing. Jobs after a failed attempt wait in a Line too
(`retrying`); they hold their reserve and their places under the caps, so they ask the accounts
alone, and go before the tiers.

Heaps are lazy: what moved or left stays behind and is skipped when it comes to the top. Each level
remembers the best of the one below until that changes, and a line the accounts' no until they
have news: most of what a drain asks has been asked before.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Generic, TypeVar

from gateway.schedule.entry import Entry, Place, Tenant
from gateway.schedule.overload import Grade
from gateway.schedule.rounds import TURN_OF, Turn
from gateway.schedule.shares import Share
from gateway.types import Blocked, Fit, Reason

K = TypeVar("K", float, tuple[int, float])
T = TypeVar("T")

NEVER = -inf

Rank = tuple[int, float, int]
"""Of a lane among others: its tenant's rank, its head's key, the head's number."""


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


class Lane:
    """`first` is the heap's top, `oldest` the one that came first."""

    __slots__ = (
        "arrivals", "first", "heap", "oldest", "parked", "share", "size", "tenant", "tier",
    )  # fmt: skip

    def __init__(self, tier: Tier, tenant: Tenant, share: Share) -> None:
        self.tier = tier
        self.tenant = tenant
        self.share = share
        self.heap: LazyHeap[float, Entry] = LazyHeap(self._holds)
        self.arrivals: LazyHeap[float, Entry] = LazyHeap(self._holds_at_all)
        self.first: Entry | None = None
        self.oldest: Entry | None = None
        self.size = 0
        self.parked = False

    def _holds(self, key: float, seq: int, entry: Entry) -> bool:
        return entry.lane is self and entry.key == key

    def _holds_at_all(self, key: float, seq: int, entry: Entry) -> bool:
        return entry.lane is self

    def add(self, entry: Entry) -> None:
        entry.lane = self
        if not self.size:
            self.share.lanes[self] = None
        self.size += 1
        self.heap.push(entry.key, entry.seq, entry)
        self.arrivals.push(entry.job.arrived_s, entry.seq, entry)
        first, oldest = self.first, self.oldest
        if oldest is None or entry.came < oldest.came:
            self.oldest = entry
        if first is None or (entry.key, entry.seq) < (first.key, first.seq):
            self._lead(entry)

    def remove(self, entry: Entry) -> None:
        entry.lane = None
        self.size -= 1
        if not self.size:
            del self.share.lanes[self]
        if entry is self.oldest:
            self.oldest = self.arrivals.top()
        if entry is self.first:
            self._lead(self.heap.top())

    def rekey(self, entry: Entry, key: float) -> None:
        """Another place for one that waits here."""
        if key != entry.key:
            entry.key = key
            self.heap.push(key, entry.seq, entry)
            first = self.heap.top()
            if first is entry or first is not self.first:
                self._lead(first)

    def park(self) -> None:
        self.parked = True
        self.tenant.parked.append(self)
        self.tier.best_known = False
        self.tier.line.best = None

    def unpark(self) -> None:
        self.parked = False
        self.tier.show(self)

    def _lead(self, first: Entry | None) -> None:
        self.first = first
        self.tier.show(self)


class Tier:
    """Its heap's top is the lane that is next; `best` remembers it, with its rank, while
    `best_known`."""

    __slots__ = (
        "_best",
        "best_known",
        "best_rank",
        "cls",
        "grade",
        "heap",
        "lanes",
        "line",
        "place",
        "size",
        "turn",
    )

    def __init__(self, line: Line, place: Place) -> None:
        self.line = line
        self.place = place
        self.cls = place.cls
        self.grade = place.grade
        self.turn = TURN_OF[place.cls]  # unless it is deferred
        self.size = 0
        self.lanes: dict[str, Lane] = {}
        self.heap: LazyHeap[tuple[int, float], Lane] = LazyHeap(self._leads)
        self.best_known = False
        self.best_rank: Rank = (0, 0.0, 0)
        self._best: Lane | None = None

    @staticmethod
    def _leads(key: tuple[int, float], seq: int, lane: Lane) -> bool:
        first = lane.first
        return (
            first is not None
            and not lane.parked
            and first.seq == seq
            and key == (lane.share.rank, first.key)
        )

    def show(self, lane: Lane) -> None:
        """`lane` has a new first job (or none) or rank, or is no longer parked."""
        self.best_known = False
        self.line.best = None
        first = lane.first
        if first is not None and not lane.parked:
            self.heap.push((lane.share.rank, first.key), first.seq, lane)

    def best(self) -> Lane | None:
        """The best lane of tenants below their caps; the others' are parked on the way."""
        if self.best_known:
            known = self._best
            if known is None or not known.tenant.capped:
                return known
        while (lane := self.heap.top()) is not None and lane.tenant.capped:
            lane.park()
        self._best, self.best_known = lane, True
        if lane is not None and lane.first is not None:
            self.best_rank = (lane.share.rank, lane.first.key, lane.first.seq)
        return lane

    def lane(self, tenant: Tenant, share: Share) -> Lane:
        lane = self.lanes.get(tenant.name)
        if lane is None:
            lane = self.lanes[tenant.name] = Lane(self, tenant, share)
        return lane


Best = dict[Turn, tuple[Rank, Lane]]
"""The best lane of each turn, with its rank."""


class Placement:
    """The accounts' last answer to a line, kept by openings.py: a no holds until `shut_s`, a yes
    for the pool's version and the moment it was `asked_at`. `express`: with the slots above the
    window."""

    __slots__ = ("answer", "asked_at", "express", "shut_s")

    def __init__(self, *, express: bool) -> None:
        self.express = express
        self.answer: Fit | Blocked = Blocked(Reason.HEALTH)
        self.asked_at: tuple[int, float] | None = None
        self.shut_s = NEVER


class Line:
    """`avoid` is not empty only for retries: where these jobs failed before."""

    __slots__ = (
        "above",
        "accounts",
        "avoid",
        "best",
        "deferred",
        "expiry",
        "express_tiers",
        "model",
        "placement",
        "pool",
        "retrying",
        "size",
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
        self.tiers: dict[Place, Tier] = {}
        self.express_tiers: list[Tier] = []
        self.best: Best | None = None  # None once a lane of it has moved
        self.deferred = Grade.NONE  # the grade from which jobs were deferred in `best`
        self.retrying: LazyHeap[float, Entry] = LazyHeap(self._holds)
        self.expiry: LazyHeap[float, Entry] = LazyHeap(self._expires)
        self.size = 0  # jobs here, retrying ones included
        self.waiting = 0  # jobs in tiers
        self.placement, self.above = Placement(express=False), Placement(express=True)

    def forget(self) -> None:
        """One of the accounts may take a job of this line again."""
        self.placement.shut_s = self.above.shut_s = NEVER

    def _holds(self, key: float, seq: int, entry: Entry) -> bool:
        return entry.line is self

    def _expires(self, key: float, seq: int, entry: Entry) -> bool:
        return entry.line is self and entry.expire_s == key

    def add_waiting(self, entry: Entry, share: Share) -> None:
        tier = self.tiers.get(entry.place)
        if tier is None:
            tier = self._tier(entry.place)
        entry.line = self
        self.size += 1
        self.waiting += 1
        tier.size += 1
        if entry.expire_s < inf:
            self.expiry.push(entry.expire_s, entry.seq, entry)
        tier.lane(entry.tenant, share).add(entry)

    def _tier(self, place: Place) -> Tier:
        tier = self.tiers[place] = Tier(self, place)
        if place.express:
            self.express_tiers.append(tier)
        return tier

    def add_retrying(self, entry: Entry) -> None:
        entry.line = self
        self.size += 1
        if entry.expire_s < inf:
            self.expiry.push(entry.expire_s, entry.seq, entry)
        self.retrying.push(entry.job.arrived_s, entry.seq, entry)

    def remove(self, entry: Entry) -> None:
        entry.line = None
        self.size -= 1
        lane = entry.lane
        if lane is not None:
            self.waiting -= 1
            lane.tier.size -= 1
            lane.remove(entry)
