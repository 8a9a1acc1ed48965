"""The waiting jobs of a pool, grouped so that one job answers for all that start or wait with it.

Whether a waiting job may start depends on its tenant (cap), class (budget), size (cap, overload
ladder), model and accounts, and on nothing else. Jobs that agree in all of these share a
`TenantQueue`, ordered by key: its first job decides for all of them, and a queue that is blocked
hides nothing that could start.

    AccountsQueue    jobs of one model for one set of accounts: one question to the accounts
     └ ClassQueue    those of one class and size: a heap by tenant's rank, then first job's key
        └ TenantQueue    those of one tenant: a heap by key, another by arrival

A tenant queue whose tenant is at its cap is parked: out of its class queue's heap until the tenant
ends a job, so a thousand capped tenants cost nothing. Jobs between two attempts wait in an
AccountsQueue too (`retrying`): they hold their reserve and their places under the caps, so they
ask the accounts alone, and go before all others.

Heaps are lazy: an item that moved or left stays behind and is skipped when it comes to the top.
Each level remembers the best of the level below until that changes.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Generic, TypeVar

from gateway.schedule.live_job import LiveJob, QueueKey, Tenant
from gateway.schedule.overload import Grade
from gateway.schedule.rounds import TURN_OF, Turn
from gateway.schedule.shares import Share
from gateway.types import Blocked, Fit

NEVER = -inf

Rank = tuple[int, float, int]
"""A tenant queue's rank among others: tenant's rank, first job's key, first job's number."""

K = TypeVar("K", float, tuple[int, float])
T = TypeVar("T")


class LazyHeap(Generic[K, T]):
    """A heap whose items may die inside it.

    Args:
        alive: True of an item that still belongs where it was pushed, given key, seq and item.
            `seq` orders equal keys; no two items have the same.

    Push and top are amortised O(log n); dead items are removed when the heap has doubled since
    the last removal.
    """

    __slots__ = ("_alive", "_heap", "_sweep_at")

    def __init__(self, alive: Callable[[K, int, T], bool]) -> None:
        self._alive: Callable[[K, int, T], bool] = alive
        self._heap: list[tuple[K, int, T]] = []
        self._sweep_at = 64

    def __len__(self) -> int:
        """Items, dead ones included."""
        return len(self._heap)

    def push(self, key: K, seq: int, item: T) -> None:
        heappush(self._heap, (key, seq, item))
        if len(self._heap) > self._sweep_at:
            alive = self._alive
            self._heap = [e for e in self._heap if alive(*e)]
            heapify(self._heap)
            self._sweep_at = max(64, 2 * len(self._heap))

    def top(self) -> T | None:
        """The item of the smallest key that is alive; None if there is none."""
        heap, alive = self._heap, self._alive
        while heap:
            top = heap[0]
            if alive(*top):
                return top[2]
            heappop(heap)
        return None


class TenantQueue:
    """Jobs that agree in all that decides whether they may start. `first` is the next by key,
    `oldest` the first by arrival."""

    __slots__ = (
        "_arrivals", "_heap", "class_queue", "first", "jobs", "oldest", "parked", "share", "tenant",
    )  # fmt: skip

    def __init__(self, class_queue: ClassQueue, tenant: Tenant, share: Share[TenantQueue]) -> None:
        self.class_queue = class_queue
        self.tenant = tenant
        self.share = share
        self.first: LiveJob | None = None
        self.oldest: LiveJob | None = None
        self.parked = False
        self.jobs: set[LiveJob] = set()
        self._heap: LazyHeap[float, LiveJob] = LazyHeap(self._stands_at)
        self._arrivals: LazyHeap[float, LiveJob] = LazyHeap(self._is_here)

    def _stands_at(self, key: float, seq: int, live: LiveJob) -> bool:
        return live in self.jobs and live.key == key

    def _is_here(self, key: float, seq: int, live: LiveJob) -> bool:
        return live in self.jobs

    def add(self, live: LiveJob) -> None:
        key, seq = live.key, live.seq
        if not self.jobs:
            self.share.queues[self] = None
        self.jobs.add(live)
        self._heap.push(key, seq, live)
        self._arrivals.push(live.job.arrived_s, seq, live)
        first, oldest = self.first, self.oldest
        if oldest is None or live.arrival < oldest.arrival:
            self.oldest = live
        if first is None or (key, seq) < (first.key, first.seq):
            self._lead(live)

    def remove(self, live: LiveJob) -> None:
        self.jobs.remove(live)
        if not self.jobs:
            del self.share.queues[self]
        if live is self.oldest:
            self.oldest = self._arrivals.top()
        if live is self.first:
            self._lead(self._heap.top())

    def rekey(self, live: LiveJob, key: float) -> None:
        """Move a job that waits here to another key."""
        if key != live.key:
            live.key = key
            self._heap.push(key, live.seq, live)
            first = self._heap.top()
            if first is live or first is not self.first:
                self._lead(first)

    def park(self) -> None:
        """Take the queue out of the competition until its tenant ends a job."""
        self.parked = True
        self.tenant.parked.append(self)
        self.class_queue.best_is_current = False
        self.class_queue.accounts_queue.best = None

    def unpark(self) -> tuple[str, float] | None:
        """Let the queue compete again; the pool and its first job's key, None if it is empty."""
        self.parked = False
        self.show()
        return (
            None if self.first is None else (self.class_queue.accounts_queue.pool, self.first.key)
        )

    def show(self) -> None:
        """Enter the class queue's heap anew: first job, its key or the tenant's rank changed."""
        self.class_queue.show(self)

    def _lead(self, first: LiveJob | None) -> None:
        self.first = first
        self.class_queue.show(self)


class ClassQueue:
    """The tenants' queues of one class and size. `best_rank` is that of `best()`."""

    __slots__ = (
        "_best", "accounts_queue", "best_is_current", "best_rank", "cls", "grade", "heap", "key",
        "own_turn", "size", "tenant_queues",
    )  # fmt: skip

    def __init__(self, accounts_queue: AccountsQueue, key: QueueKey) -> None:
        self.accounts_queue = accounts_queue
        self.key = key
        self.cls = key.cls
        self.grade = key.grade
        self.own_turn = TURN_OF[key.cls]  # unless it is deferred
        self.size = 0  # jobs
        self.tenant_queues: dict[str, TenantQueue] = {}
        self.best_is_current = False
        self.best_rank: Rank  # set with `_best`, by the first call of `best`
        self._best: TenantQueue | None
        self.heap: LazyHeap[tuple[int, float], TenantQueue] = LazyHeap(self._stands_at)

    @staticmethod
    def _stands_at(key: tuple[int, float], seq: int, queue: TenantQueue) -> bool:
        first = queue.first
        return (
            first is not None
            and not queue.parked
            and first.seq == seq
            and key == (queue.share.rank, first.key)
        )

    def show(self, queue: TenantQueue) -> None:
        """Take in that `queue` has a new first job (or none) or rank, or is no longer parked."""
        self.best_is_current = False
        self.accounts_queue.best = None
        first = queue.first
        if first is not None and not queue.parked:
            self.heap.push((queue.share.rank, first.key), first.seq, queue)

    def best(self) -> TenantQueue | None:
        """The best queue of a tenant below its cap; queues of capped tenants are parked."""
        if self.best_is_current:
            best = self._best
            if best is None or not best.tenant.capped:
                return best
        while (queue := self.heap.top()) is not None and queue.tenant.capped:
            queue.park()
        self._best, self.best_is_current = queue, True
        if queue is not None and queue.first is not None:
            self.best_rank = (queue.share.rank, queue.first.key, queue.first.seq)
        return queue

    def of_tenant(self, tenant: Tenant, share: Share[TenantQueue]) -> TenantQueue:
        """The tenant's queue, made where there is none."""
        queue = self.tenant_queues.get(tenant.name)
        if queue is None:
            queue = self.tenant_queues[tenant.name] = TenantQueue(self, tenant, share)
        return queue


Best = dict[Turn, tuple[Rank, TenantQueue]]
"""The best tenant queue of each turn, with its rank."""


class CachedAnswer:
    """The accounts' last answer to a queue, kept by placement_cache.py.

    A Blocked is valid until `shut_s`, a Fit for the pool's version and the moment in `asked_at`.
    `express`: the question included the slots above the window.
    """

    __slots__ = ("answer", "asked_at", "express", "shut_s")

    def __init__(self, *, express: bool) -> None:
        self.express = express
        self.answer: Fit | Blocked  # set by the first question
        self.asked_at: tuple[int, float] | None = None
        self.shut_s = NEVER


class AccountsQueue:
    """Jobs of one model for one set of accounts. `avoid`: those of the accounts on which the jobs
    have failed; not empty only for retries."""

    __slots__ = (
        "accounts", "avoid", "best", "best_deferred", "cached", "cached_express",
        "class_queues", "expiry", "express_queues", "jobs", "model", "pool", "retrying", "waiting",
    )  # fmt: skip

    def __init__(
        self, pool: str, model: str, accounts: tuple[str, ...], avoid: frozenset[str]
    ) -> None:
        self.pool = pool
        self.model = model
        self.accounts = accounts
        self.avoid = avoid
        self.class_queues: dict[QueueKey, ClassQueue] = {}
        self.express_queues: list[ClassQueue] = []
        self.best: Best | None = None  # None once a tenant queue here has moved
        self.best_deferred: Grade  # from which jobs were deferred in `best`; set with it
        self.jobs: set[LiveJob] = set()  # retrying ones included
        self.waiting = 0  # jobs in class queues
        self.retrying: LazyHeap[float, LiveJob] = LazyHeap(self._is_here)
        self.expiry: LazyHeap[float, LiveJob] = LazyHeap(self._expires_at)
        self.cached = CachedAnswer(express=False)
        self.cached_express = CachedAnswer(express=True)

    def forget_answers(self) -> None:
        """Drop the cached answers: one of the accounts may take a job of this queue again."""
        self.cached.shut_s = self.cached_express.shut_s = NEVER

    def _is_here(self, key: float, seq: int, live: LiveJob) -> bool:
        return live in self.jobs

    def _expires_at(self, key: float, seq: int, live: LiveJob) -> bool:
        return live in self.jobs and live.expire_s == key

    def add_waiting(self, live: LiveJob, share: Share[TenantQueue]) -> TenantQueue:
        """Queue a job by its class, size and tenant; the queue that it joined."""
        class_queue = self.class_queues.get(live.queue_key)
        if class_queue is None:
            class_queue = self._class_queue(live.queue_key)
        self._enter(live)
        self.waiting += 1
        class_queue.size += 1
        queue = class_queue.of_tenant(live.tenant, share)
        queue.add(live)
        return queue

    def remove_waiting(self, live: LiveJob, queue: TenantQueue) -> None:
        """Take a job out of `queue`, one of those here."""
        self.jobs.remove(live)
        self.waiting -= 1
        queue.class_queue.size -= 1
        queue.remove(live)

    def add_retrying(self, live: LiveJob) -> None:
        self._enter(live)
        self.retrying.push(live.job.arrived_s, live.seq, live)

    def remove_retrying(self, live: LiveJob) -> None:
        self.jobs.remove(live)

    def _enter(self, live: LiveJob) -> None:
        self.jobs.add(live)
        if live.expire_s < inf:
            self.expiry.push(live.expire_s, live.seq, live)

    def _class_queue(self, key: QueueKey) -> ClassQueue:
        queue = self.class_queues[key] = ClassQueue(self, key)
        if key.express:
            self.express_queues.append(queue)
        return queue
