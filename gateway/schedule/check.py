"""Every invariant of the scheduler, recomputed from the live jobs. For tests: linear in them.

`check` judges a state, between two events. `check_start` judges one start, by the state just
before it: bounds that a state alone cannot show. A class may be over its budget (a forecast was
corrected, a job taken over, the settings changed, a retry holds what it held), but nothing may
start in it then; so what a class holds is less than its budget and at most one job more, but
for those corrections. Both count anew and remember nothing: what the scheduler remembers of
its accounts, heads and sums is what they are to find wrong.
"""

from __future__ import annotations

from collections import Counter
from math import ceil

from gateway.schedule.budget import tier_cap
from gateway.schedule.live_job import LiveJob, Stage
from gateway.schedule.model_pool import Pool
from gateway.schedule.queue import TenantQueue
from gateway.schedule.rounds import TURN_OF, Turn
from gateway.schedule.scheduler_state import SchedulerState
from gateway.types import Blocked, Fit, JobClass, Reason, SizeBucket

INTERACTIVE, HEAVY, BACKGROUND = JobClass.INTERACTIVE, JobClass.HEAVY, JobClass.BACKGROUND


def check(state: SchedulerState, now: float | None) -> None:
    """Raises AssertionError. With `now` (that of the last event) also work conservation."""
    ended = sum(state.ended.values())
    assert state.submitted == len(state.jobs) + ended, "one outcome per job"
    for name, pool in state.pools.items():
        _check_pool(pool, [e for e in state.jobs.values() if e.pool == name])
    assert {e.pool for e in state.jobs.values()} <= set(state.pools)
    _check_tenants(state)
    _check_leases(state, now)
    state.accounts.check()
    if now is not None:
        for job_id, live in state.jobs.items():
            if live.stage is not Stage.RUNNING:
                fit = state.chooser.fits(state.pools[live.pool], live, now)
                assert not isinstance(fit, Fit), f"{job_id} waits although it fits"
            assert live.stage is Stage.RUNNING or now < live.expire_s, f"{job_id} is overdue"
        for name, pool in state.pools.items():
            for live in Start(state, pool, now).able():
                raise AssertionError(f"{live.job.id} waits in {name} although it could start")


def check_start(
    state: SchedulerState, pool: Pool, live: LiveJob, account: str, turn: Turn | None, now: float
) -> None:
    """Raises AssertionError where `entry` must not start on `account` now: no room in its
    budget (its own, or lent while nobody who owns some could start), its tenant's or its size's
    cap, the account's limit or window; or another's turn, or another's place in it. `turn` is
    None for a retry, and for a newcomer that nothing else in the queue was asked beside."""
    start = Start(state, pool, now)
    _check_account(state, live, account, now)
    assert isinstance(start.place(live, (account,)), Fit), f"{account} takes no {live.job.id}"
    if live.stage is Stage.RETRYING:
        return
    cls = live.cls
    assert start.owns_room(cls) or start.lends, f"{cls} has no room for {live.job.id}"
    assert start.has_places(live), f"{live.job.id} is beyond a cap"
    others = [e for e in start.able() if e is not live and e.stage is Stage.WAITING]
    if turn is None:
        assert not others, f"{live.job.id} starts unasked before {others[0].job.id}"
        return
    bound_s = state.settings.schedule.max_overtake_s
    starving = [t for e in others if now - pool.served_s[t := _turn(pool, e)] >= bound_s > 0.0]
    for other in starving:
        assert pool.served_s[turn] <= pool.served_s[other], f"{other} starves while {turn} starts"
    starved = bound_s > 0.0 and now - pool.served_s[turn] >= bound_s
    if not start.owns_room(cls) and not starved and turn is not Turn.DEFERRED:
        for e in others:
            deferred = _turn(pool, e) is Turn.DEFERRED
            assert deferred or not start.owns_room(e.cls), f"{cls} borrows before {e.job.id}"
    latest_s = live.job.arrived_s - bound_s
    for e in others:
        same = e.tenant is live.tenant and _turn(pool, e) is turn
        passed = same and e.job.arrived_s < latest_s
        assert not passed, f"{live.job.id} passes {e.job.id}, which came long before"


class Start:
    """What could start in one pool at this moment, counted from the live jobs alone."""

    def __init__(self, state: SchedulerState, pool: Pool, now: float) -> None:
        self._state, self._pool, self._now = state, pool, now
        self._settings = state.settings.schedule
        mine = [e for e in state.jobs.values() if e.pool == pool.name]
        self._waiting = [e for e in mine if e.stage in (Stage.WAITING, Stage.RETRYING)]
        held = dict.fromkeys(JobClass, 0)
        self._sizes = dict.fromkeys(SizeBucket, 0)
        for e in mine:
            if e.stage is not Stage.WAITING:
                held[e.cls] += e.reserve
                self._sizes[e.bucket] += 1
        self._running = Counter(
            e.tenant.name for e in state.jobs.values() if e.stage is not Stage.WAITING
        )
        self._rooms(held)
        self._placed: dict[tuple[str, tuple[str, ...], frozenset[str], bool], Fit | Blocked] = {}

    def _rooms(self, held: dict[JobClass, int]) -> None:
        """Which class holds less than its budget, and whether the pool lends."""
        settings = self._settings
        if settings.policy == "dual_budget":
            short, long = settings.interactive_inflight_tokens, settings.heavy_inflight_tokens
            heavy = held[HEAVY] + held[BACKGROUND] < long
            self._owns = {INTERACTIVE: held[INTERACTIVE] < short, HEAVY: heavy, BACKGROUND: heavy}
            self.lends = bool(settings.borrow) and sum(held.values()) < short + long
        else:
            limits = self._pool.budget.limits
            self._owns = {cls: held[cls] < limits[cls] for cls in JobClass}
            self.lends = settings.borrow is not False

    def owns_room(self, cls: JobClass) -> bool:
        return self._owns[cls]

    def has_places(self, live: LiveJob) -> bool:
        """Under its tenant's cap and under its size's, as the settings and the mode have them."""
        mine = self._state.settings.tenants
        most = next((t.max_inflight for t in mine if t.name == live.tenant.name), 0)
        cap = tier_cap(self._settings, live.bucket, self._pool.mode)
        return (not most or self._running[live.tenant.name] < most) and (
            not cap or self._sizes[live.bucket] < cap
        )

    def place(self, live: LiveJob, accounts: tuple[str, ...]) -> Fit | Blocked:
        """The accounts' own answer at this moment, the slots above the window included."""
        avoid = live.failed if live.stage is Stage.RETRYING else frozenset()
        express = (
            live.stage is Stage.WAITING
            and live.queue_key.express
            and self._settings.policy == "adaptive"
        )
        key = live.job.model, accounts, avoid, express
        if key not in self._placed:
            choose = self._state.accounts.choose
            answer = choose(live.job.model, accounts, self._now, avoid)
            if express and isinstance(answer, Blocked) and answer.reason is Reason.WINDOW:
                answer = choose(live.job.model, accounts, self._now, avoid, express=True)
            self._placed[key] = answer
        return self._placed[key]

    def able(self) -> list[LiveJob]:
        """All that could start now, whoever's turn it is."""
        return [
            e
            for e in self._waiting
            if (
                e.stage is Stage.RETRYING
                or ((self._owns[e.cls] or self.lends) and self.has_places(e))
            )
            and isinstance(self.place(e, e.accounts), Fit)
        ]


def _turn(pool: Pool, live: LiveJob) -> Turn:
    return Turn.DEFERRED if live.queue_key.grade >= pool.deferred else TURN_OF[live.cls]


def _check_account(state: SchedulerState, live: LiveJob, account: str, now: float) -> None:
    """The account serves the model, if the settings name it, and has room for what runs there."""
    balance = state.settings.balance
    given = next(a for a in state.settings.accounts if a.name == account)
    shot = next(a for a in state.accounts.snapshot(now) if a.name == account)
    model = given.model_map.get(live.job.model)
    assert model or not live.routed, f"{account} does not serve {live.job.model}"
    assert account in live.accounts, f"{account} is not {live.job.id}'s"
    if balance.window == "watch":
        return
    running = [e for e in state.jobs.values() if e.stage is Stage.RUNNING and e.account == account]
    assert shot.state in ("open", "half_open"), f"{account} is {shot.state}"
    assert len(running) < shot.limit, f"{account} is full"
    for window in shot.windows:
        if window.model == model:
            extra = ceil(balance.express_ratio * window.window) if live.queue_key.express else 0
            assert window.inflight + 1 <= window.window + extra, f"{account}'s window is full"


def _check_pool(pool: Pool, entries: list[LiveJob]) -> None:
    waiting = [e for e in entries if e.stage is Stage.WAITING]
    inflight = [e for e in entries if e.stage is not Stage.WAITING]
    budget = pool.budget
    for cls in JobClass:
        mine = [e for e in inflight if e.cls is cls]
        assert budget.tokens[cls] == sum(e.reserve for e in mine), (pool.name, cls)
        assert budget.jobs[cls] == len(mine), (pool.name, cls)
        tokens = sum(e.reserve for e in waiting if e.cls is cls)
        assert pool.waiting_tokens_of[cls] == tokens, (pool.name, cls)
        assert pool.waiting_of[cls] == sum(e.cls is cls for e in waiting), (pool.name, cls)
    sizes = Counter(e.bucket for e in inflight)
    assert budget.buckets == {bucket: sizes[bucket] for bucket in SizeBucket}, pool.name
    assert set(pool.queued) == set(waiting), pool.name
    assert pool.waiting_tokens == sum(e.reserve for e in waiting), pool.name
    assert pool.waiting_bytes == sum(e.body_bytes for e in waiting), pool.name
    assert pool.retrying == sum(e.stage is Stage.RETRYING for e in inflight), pool.name
    assert pool.retried == sum(e.holds_retry for e in inflight), pool.name
    _check_queues(pool, waiting, inflight)


def _check_queues(pool: Pool, waiting: list[LiveJob], inflight: list[LiveJob]) -> None:
    retrying = [e for e in inflight if e.stage is Stage.RETRYING]
    standing: dict[int, list[LiveJob]] = {}  # by tenant queue
    for e in waiting:
        queue = pool.queued[e]
        of_class = queue.class_queue
        assert e in queue.jobs
        assert (queue.tenant, of_class.key) == (e.tenant, e.queue_key)
        assert of_class.accounts_queue is pool.queues[e.job.model, e.accounts, frozenset()]
        assert e.queue_key.cls is e.cls
        standing.setdefault(id(queue), []).append(e)
    sizes = Counter(id(pool.queue_of(e)) for e in waiting + retrying)
    assert sum(sizes.values()) == sum(len(queue.jobs) for queue in pool.queues.values())
    for accounts_queue in pool.queues.values():
        class_queues = accounts_queue.class_queues.values()
        assert len(accounts_queue.jobs) == sizes[id(accounts_queue)]
        assert accounts_queue.waiting == sum(of_class.size for of_class in class_queues)
        for of_class in class_queues:
            queues = list(of_class.tenant_queues.values())
            assert of_class.size == sum(len(of_tenant.jobs) for of_tenant in queues)
            for of_tenant in queues:
                _check_tenant_queue(of_tenant, standing.get(id(of_tenant), []))
            best = of_class.best()  # parks what is to be parked
            shown = [of_tenant for of_tenant in queues if of_tenant.first and not of_tenant.parked]
            assert best is min(shown, key=_rank, default=None), "a queue is lost to its class"
    assert all(e in pool.queue_of(e).jobs for e in waiting + retrying)
    for cls in JobClass:
        held = Counter(e.tenant.name for e in waiting if e.cls is cls)
        pool.shares[cls].check(held)
    assert not any(pool.rounds.credit[TURN_OF[c]] for c in JobClass if not pool.waiting_of[c])


def _check_tenant_queue(queue: TenantQueue, jobs: list[LiveJob]) -> None:
    assert queue.jobs == set(jobs)
    assert queue.first is min(jobs, key=lambda e: (e.key, e.seq), default=None)
    assert queue.oldest is min(jobs, key=lambda e: e.arrival, default=None)
    assert queue.parked == (queue in queue.tenant.parked)
    assert (queue in queue.share.queues) == bool(jobs)


def _rank(queue: TenantQueue) -> tuple[int, float, int]:
    assert queue.first is not None
    return queue.share.rank, queue.first.key, queue.first.seq


def _check_tenants(state: SchedulerState) -> None:
    waiting = Counter(e.tenant.name for e in state.jobs.values() if e.stage is Stage.WAITING)
    running = Counter(e.tenant.name for e in state.jobs.values() if e.stage is not Stage.WAITING)
    for name, tenant in state.tenants.items():
        assert tenant.waiting == waiting[name], name
        assert tenant.running == running[name], name
        tokens = sum(
            e.reserve
            for e in state.jobs.values()
            if e.tenant is tenant and e.stage is Stage.WAITING
        )
        assert tenant.waiting_tokens == tokens, name
        assert tenant.capped or not tenant.parked, f"{name} is parked without need"


def _check_leases(state: SchedulerState, now: float | None) -> None:
    running = [e for e in state.jobs.values() if e.stage is Stage.RUNNING]
    assert len({e.lease for e in running}) == len(running), "one lease per attempt"
    held = {a.name: a.inflight for a in state.accounts.snapshot(0.0 if now is None else now)}
    used = Counter(e.account for e in running)
    assert {name: n for name, n in held.items() if n} == dict(used), "leases = running jobs"
