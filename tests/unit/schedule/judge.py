"""A second opinion on what may start, counted anew from the live jobs, for the tests' schedulers.

It shares no code with choice.py but the cap of a size, asks the accounts itself and remembers
nothing between two events.
"""

from __future__ import annotations

from collections import Counter
from math import ceil

from gateway.schedule.budget import tier_cap
from gateway.schedule.live_job import LiveJob, Stage
from gateway.schedule.model_pool import Pool
from gateway.schedule.rounds import TURN_OF, Turn
from gateway.schedule.scheduler_state import SchedulerState
from gateway.types import Blocked, Fit, JobClass, Reason, SizeBucket

INTERACTIVE, HEAVY, BACKGROUND = JobClass.INTERACTIVE, JobClass.HEAVY, JobClass.BACKGROUND


def judge_rest(state: SchedulerState, now: float) -> None:
    """Raise AssertionError where a job waits that could start. Between two events, `now` being
    the last one's time."""
    for name, pool in state.pools.items():
        for live in Judge(state, pool, now).able():
            raise AssertionError(f"{live.job.id} waits in {name} although it could start")


def judge_start(
    state: SchedulerState, pool: Pool, live: LiveJob, account: str, turn: Turn | None, now: float
) -> None:
    """Raise AssertionError where a job must not start on `account` now.

    There is no room: in its class's budget (its own, or lent while no class that owns some could
    start), under its tenant's or its size's cap, on the account; or it is another's turn, or
    another's place in the turn. `turn` is None for a retry, and for a newcomer asked alone.
    """
    judge = Judge(state, pool, now)
    _judge_account(state, live, account, now)
    assert isinstance(judge.place(live, (account,)), Fit), f"{account} takes no {live.job.id}"
    if live.stage is Stage.RETRYING:
        return
    cls = live.cls
    assert judge.owns_room(cls) or judge.lends, f"{cls} has no room for {live.job.id}"
    assert judge.has_places(live), f"{live.job.id} is beyond a cap"
    others = [e for e in judge.able() if e is not live and e.stage is Stage.WAITING]
    if turn is None:
        assert not others, f"{live.job.id} starts unasked before {others[0].job.id}"
        return
    bound_s = state.settings.schedule.max_overtake_s
    starving = [t for e in others if now - pool.served_s[t := _turn(pool, e)] >= bound_s > 0.0]
    for other in starving:
        assert pool.served_s[turn] <= pool.served_s[other], f"{other} starves while {turn} starts"
    starved = bound_s > 0.0 and now - pool.served_s[turn] >= bound_s
    if not judge.owns_room(cls) and not starved and turn is not Turn.DEFERRED:
        for e in others:
            deferred = _turn(pool, e) is Turn.DEFERRED
            assert deferred or not judge.owns_room(e.cls), f"{cls} borrows before {e.job.id}"
    latest_s = live.job.arrived_s - bound_s
    for e in others:
        same = e.tenant is live.tenant and _turn(pool, e) is turn
        passed = same and e.job.arrived_s < latest_s
        assert not passed, f"{live.job.id} passes {e.job.id}, which came long before"


class Judge:
    """The jobs that could start in one pool at this moment, counted from the live jobs alone."""

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
        """Note the classes that hold less than their budget, and whether the pool lends."""
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
        """True where the job is under its tenant's cap and its size's, in the present mode."""
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


def _judge_account(state: SchedulerState, live: LiveJob, account: str, now: float) -> None:
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
