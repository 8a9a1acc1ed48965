"""The choice of the next job of a pool (`Chooser.next`), and the one predicate (`may_start`).

`may_start` checks in this order; the first check that fails is the job's one `Reason`:

1. `tenant_cap`: the tenant has as many jobs in flight as it may.
2. `class_budget`: the class has used its budget, and the pool lends it nothing.
3. `tier_cap`: as many jobs of this size are in flight as may be.
4. The accounts, each of which names the first of `health` or `account_backoff`, `window`,
   `account_limit`, `pacer`; the account that is nearest to taking a job gives the reason of all.

`overload` is a label, not a check. The ladder (overload.py) defers expensive jobs, which then
go last in each round; where any check fails for a deferred job, its reason is `overload`.

The next job is the first by three orders, one inside the other: its class's turn (rounds.py), its
tenant's share (shares.py), its key (ordering.py). They choose among jobs that may start now and
keep no slot empty for another; a class on borrowed room comes after those that own some. Two
bounds hold for every ordering: a job does not start before one of the same tenant and turn that
could start and came `max_overtake_s` earlier; and a turn that could have started something for
`max_overtake_s` and has not is next, whatever it costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from gateway.schedule.accounts_protocol import AccountsProtocol
from gateway.schedule.budget import tier_cap
from gateway.schedule.live_job import LiveJob, QueueKey, Stage, Tenant
from gateway.schedule.model_pool import Pool
from gateway.schedule.placement_cache import Ask, PlacementCache
from gateway.schedule.queue import AccountsQueue, Best, ClassQueue, Rank, TenantQueue
from gateway.schedule.rounds import Turn
from gateway.settings.schema import Schedule
from gateway.types import Blocked, Fit, Mode, Reason, SizeBucket

TENANT_CAP = Blocked(Reason.TENANT_CAP)
CLASS_BUDGET = Blocked(Reason.CLASS_BUDGET)
TIER_CAP = Blocked(Reason.TIER_CAP)

Head = tuple[Rank, TenantQueue, str]
"""The best tenant queue of a turn: its rank, the queue, the account that takes its first job."""


class Chooser:
    """Reads pools and accounts, and changes neither, but for parking the queues of capped tenants
    and for the rounds' credit, which is given out when a turn is chosen."""

    def __init__(self, settings: Schedule, accounts: AccountsProtocol) -> None:
        self._caps = {
            mode: {bucket: tier_cap(settings, bucket, mode) for bucket in SizeBucket}
            for mode in Mode
        }
        self._overtake_s = settings.max_overtake_s
        self.placements = PlacementCache(accounts, express=settings.policy == "adaptive")

    # ---- the predicate

    def may_start(
        self,
        pool: Pool,
        queue: AccountsQueue,
        key: QueueKey,
        tenant: Tenant,
        now: float,
        *,
        ask: Ask,
    ) -> Fit | Blocked:
        """The one predicate: Fit where a job of this queue, key and tenant may start now, else
        the first no. `ask` puts the question to the accounts, if it comes to that."""
        answer: Fit | Blocked
        if tenant.capped:
            answer = TENANT_CAP
        else:
            answer = self._no_room(pool, key) or ask(pool, queue, key.express, now)
        if isinstance(answer, Blocked) and key.grade >= pool.deferred:
            return Blocked(Reason.OVERLOAD, answer.until_s)
        return answer

    def _no_room(self, pool: Pool, key: QueueKey) -> Blocked | None:
        """The refusal by a class's budget or a size's cap; None where there is room."""
        if not pool.budget.admits(key.cls):
            return CLASS_BUDGET
        bucket = key.bucket
        if bucket is not None and 0 < self._caps[pool.mode][bucket] <= pool.budget.buckets[bucket]:
            return TIER_CAP
        return None

    def fits(self, pool: Pool, live: LiveJob, now: float) -> Fit | Blocked:
        """`may_start` of a job that waits or is between two attempts. A retry holds its reserve
        and its places under the caps, so it asks the accounts alone. For display and tests."""
        queue, ask = pool.queue_of(live), self.placements.ask_anew
        if live.stage is Stage.RETRYING:
            return ask(pool, queue, False, now)
        return self.may_start(pool, queue, live.queue_key, live.tenant, now, ask=ask)

    # ---- the choice

    def next(self, pool: Pool, now: float) -> tuple[LiveJob, str, Turn | None] | None:
        """The next job to start, its account and the turn that pays; retries first, on no turn.
        None where nothing can start."""
        if pool.retrying and (found := self._next_retry(pool, now)):
            return (*found, None)
        return self._next_waiting(pool, now) if pool.queued else None

    def _next_waiting(self, pool: Pool, now: float) -> tuple[LiveJob, str, Turn] | None:
        """A job of the turn that has starved, on borrowed room if need be; else of classes below
        their budget, and where none of those can start anything, of the others."""
        heads = self._heads(pool, now)
        if not heads:
            return None
        budget = pool.budget
        owners = {t: head for t, head in heads.items() if budget.owns_room(head[1].class_queue.cls)}
        lends = len(owners) < len(heads) and budget.lends
        if not owners and not lends:
            return None
        turn = self._starved(pool, heads if lends else owners, now)
        if turn is None:
            heads = owners or heads
            charges = {t: queue.first.charge for t, (_, queue, _) in heads.items() if queue.first}
            turn = pool.rounds.choose(charges)
        _, queue, account = heads[turn]
        first = queue.first
        assert first is not None
        late = self._passed(pool, queue, first, turn, now)
        return (first, account, turn) if late is None else (*late, turn)

    def _heads(self, pool: Pool, now: float) -> dict[Turn, Head]:
        """The best queue of each turn whose first job may start.

        `may_start` over many queues, the cheapest question first: an accounts queue whose best
        are not the pool's best so far need not ask the accounts.
        """
        heads: dict[Turn, Head] = {}
        placements, lends = self.placements, pool.budget.lends
        if len(pool.queues) > 1 and placements.is_closed(pool, now):
            return heads
        for queue in pool.queues.values():
            if not queue.waiting:
                continue
            cached = queue.cached
            answer: Fit | Blocked | None = cached.answer if now < cached.shut_s else None
            if answer is None:
                for turn, (rank, best) in self._best(pool, queue, lends).items():
                    if turn not in heads or rank < heads[turn][0]:
                        if answer is None:
                            answer = placements.ask(pool, queue, False, now)
                        if isinstance(answer, Blocked):
                            break
                        heads[turn] = (rank, best, answer.account)
            if answer is not None and placements.leads_above(answer):
                self._express_heads(pool, queue, now, heads)
        return heads

    def _express_heads(
        self, pool: Pool, queue: AccountsQueue, now: float, heads: dict[Turn, Head]
    ) -> None:
        """Put express jobs of a queue whose window is full among the `heads`."""
        express = [class_queue for class_queue in queue.express_queues if class_queue.size]
        if not express:
            return
        answer = self.placements.ask_above(pool, queue, now)
        if isinstance(answer, Fit):
            for turn, (rank, best) in self._best_of(pool, express).items():
                if turn not in heads or rank < heads[turn][0]:
                    heads[turn] = (rank, best, answer.account)

    def _best(self, pool: Pool, queue: AccountsQueue, lends: bool) -> Best:
        """The best tenant queue of each turn, remembered while nothing moves in the queue; not
        where it hangs on budgets or sizes, which move without it. `lends`: the pool's budget."""
        if not lends:
            return self._best_of(pool, queue.class_queues.values())
        best = queue.best
        if best is not None and queue.best_deferred is pool.deferred and not pool.capped:
            for _, tenant_queue in best.values():
                if tenant_queue.tenant.capped:
                    break
            else:
                return best
        best = self._best_of(pool, queue.class_queues.values())
        queue.best, queue.best_deferred = best, pool.deferred
        return best

    def _best_of(self, pool: Pool, class_queues: Iterable[ClassQueue]) -> Best:
        """The best queue of each turn that neither its tenant, its class nor its size blocks. The
        deferred turn has jobs of all classes: one without room must not hide another."""
        best: Best = {}
        deferred = pool.deferred
        has_room = pool.budget.lends and not pool.capped  # for all: spares a question to each
        for class_queue in class_queues:
            if not class_queue.size:
                continue
            if not has_room and self._no_room(pool, class_queue.key):
                continue
            tenant_queue = class_queue.best()
            if tenant_queue is None:
                continue
            turn = Turn.DEFERRED if class_queue.grade >= deferred else class_queue.own_turn
            if turn not in best or class_queue.best_rank < best[turn][0]:
                best[turn] = (class_queue.best_rank, tenant_queue)
        return best

    def _starved(self, pool: Pool, heads: dict[Turn, Head], now: float) -> Turn | None:
        """The turn that has had a job able to start for `max_overtake_s` and started none; None
        where there is none. (It gets one job. A head of many tokens may need many rounds, and a
        class in which a very long job runs may be over its budget until that ends.)"""
        if self._overtake_s <= 0.0 or len(heads) < 2:
            return None
        served_s = pool.served_s
        turn = min(heads, key=served_s.__getitem__)
        return turn if now - served_s[turn] >= self._overtake_s else None

    def _passed(
        self, pool: Pool, queue: TenantQueue, first: LiveJob, turn: Turn, now: float
    ) -> tuple[LiveJob, str] | None:
        """The oldest job of the same turn and tenant that may start and which `first` came too
        late to pass, with its account; None where there is none."""
        latest = (first.job.arrived_s - self._overtake_s, inf)
        found: tuple[LiveJob, str] | None = None
        is_deferred = turn is Turn.DEFERRED
        shares = pool.shares_of(queue.tenant) if is_deferred else (queue.share,)
        for share in shares:
            for other in share.queues:
                oldest, of_class = other.oldest, other.class_queue
                if oldest is None or oldest.arrival > latest or oldest is first:
                    continue
                if (of_class.grade >= pool.deferred) is not is_deferred:
                    continue
                answer = self.may_start(
                    pool,
                    of_class.accounts_queue,
                    of_class.key,
                    other.tenant,
                    now,
                    ask=self.placements.ask,
                )
                if isinstance(answer, Fit):
                    latest, found = oldest.arrival, (oldest, answer.account)
        return found

    def _next_retry(self, pool: Pool, now: float) -> tuple[LiveJob, str] | None:
        """The oldest job after a failed attempt that an account takes, and the account."""
        best: LiveJob | None = None
        account = ""
        for queue in pool.occupied():
            head = queue.retrying.top()
            if head is None or (best is not None and best.arrival < head.arrival):
                continue
            answer = self.placements.ask(pool, queue, False, now)
            if isinstance(answer, Fit):
                best, account = head, answer.account
        return None if best is None else (best, account)
