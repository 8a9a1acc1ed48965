"""Whatever happens to the scheduler, in whatever order: CONTRIBUTING.md's properties 1–6, 9, 10."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.balance.pool import Accounts
from gateway.errors import UpstreamFailed
from gateway.schedule.events import (
    Action,
    Answered,
    AttemptFailed,
    DrainStarted,
    Event,
    Finished,
    Outgrown,
    Recalibrated,
    Reforecast,
    Refuse,
    SettingsChanged,
    Submitted,
    Withdrawn,
    Woke,
)
from gateway.schedule.scheduler import Scheduler
from gateway.settings.schema import Settings
from gateway.types import Job, JobClass, Outcome, RateLimits, Rung, Verdict
from tests.unit.schedule.build import job, settings, workload

QUICK = hypothesis_settings(max_examples=150, stateful_step_count=50, deadline=None, database=None)

# Two pools: m and k share b; x stands alone on c. The others join, cut and remove.
SHAPES: list[dict[str, dict[str, Any]]] = [
    {"a": {"models": ["m"]}, "b": {"models": ["m", "k"]}, "c": {"models": ["x"]}},
    {"a": {"models": ["m", "x"]}, "b": {"models": ["k"]}, "d": {"models": ["m"]}},
    {"a": {"models": ["m", "k"]}, "c": {"models": ["k"]}},
    {"a": {"models": {"m": "u", "k": "u", "x": "v"}}, "b": {"models": ["x"]}},  # one window for two
]
TENANTS = {
    "t": {},
    "small": {"max_inflight": 2, "max_queued": 3, "weight": 0.5, "max_queued_tokens": 3000},
}
TOKENS = st.sampled_from([1, 30, 64, 65, 200, 256, 300, 2000, 9000])
STEPS = st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, 2.0, 7.0, 31.0])
FAILURES = st.sampled_from(
    [
        Verdict.RATE_LIMITED,
        Verdict.OVERLOADED,
        Verdict.TIMEOUT,
        Verdict.SERVER_ERROR,
        Verdict.UNREACHABLE,
        Verdict.DEAD_KEY,
        Verdict.IGNORED,
    ]
)
OUTCOMES = st.sampled_from(
    [
        (Outcome.OK, Verdict.SUCCESS),
        (Outcome.OK, Verdict.SUCCESS),
        (Outcome.CLIENT_ERROR, Verdict.IGNORED),
        (Outcome.UPSTREAM_ERROR, Verdict.SERVER_ERROR),
        (Outcome.STALLED, Verdict.IGNORED),
    ]
)


@st.composite
def some_settings(draw: st.DrawFn) -> Settings:
    shape = draw(st.sampled_from(SHAPES))
    limit = draw(st.sampled_from([1, 2, 5]))
    return settings(
        {
            name: {
                "initial_concurrency": limit,
                "max_concurrency": 6,
                "rpm": draw(st.sampled_from([0, 0, 60])),
                "tpm": draw(st.sampled_from([0, 0, 6000])),
                **fields,
            }
            for name, fields in shape.items()
        },
        TENANTS,
        schedule={
            "interactive_inflight_tokens": draw(st.sampled_from([1, 100, 3000])),
            "heavy_inflight_tokens": draw(st.sampled_from([1, 500, 7000])),
            "borrow": draw(st.booleans()),
            "tier_caps": {
                "short": draw(st.sampled_from([0, 2])),
                "long": draw(st.sampled_from([0, 1])),
            },
            "max_queue_items": draw(st.sampled_from([3, 1000])),
            "max_wait_s": draw(st.sampled_from([5.0, 600.0])),
            "max_overtake_s": draw(st.sampled_from([0.0, 30.0])),
            "ordering": draw(st.sampled_from(["boost", "gittins", "sjf", "fcfs", "slowdown"])),
            "policy": draw(st.sampled_from(["adaptive", "adaptive", "dual_budget"])),
            "max_queue_tokens": draw(st.sampled_from([0, 0, 5000])),
            "clear_s": draw(st.sampled_from([0.5, 60.0])),
            "shed": draw(st.booleans()),
            "heavy_deadline_s": draw(st.sampled_from([0.0, 0.0, 50.0])),
            "drain_longest_first": draw(st.booleans()),
        },
        balance={
            "eject_after": 2,
            "window": draw(st.sampled_from(["off", "auto", "auto"])),
            "min_window": 1,
        },
        retry={"budget_min": draw(st.sampled_from([0, 3]))},
    )


def plain(actions: list[Action]) -> list[Any]:
    """Actions as comparable values: exceptions compare by identity."""
    return [
        (a.job_id, type(a.error), str(a.error), a.error.code, a.error.retry_after_s, a.outcome)
        if isinstance(a, Refuse)
        else a
        for a in actions
    ]


@dataclass
class Known:
    """What the outside knows of a live job."""

    job: Job
    running: bool = False
    dispatches: int = 0
    charged: tuple[str, JobClass, int] | None = None  # pool, class, reserve


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.count = 0
        self.live: dict[str, Known] = {}
        self.ended: dict[str, Outcome] = {}
        self.gone: list[str] = []
        self.told: list[tuple[Event, float, list[Any]]] = []
        self.draining = False

    @initialize(given=some_settings())
    def start(self, given: Settings) -> None:
        self.first = self.settings = given
        self.accounts = Accounts(given.accounts, given.balance)
        self.scheduler = Scheduler(given, self.accounts)

    # ---- what happens

    @rule(
        tokens=TOKENS,
        model=st.sampled_from("mkx"),
        tenant=st.sampled_from(["t", "t", "small"]),
        patience=st.sampled_from([None, None, 3.0, 40.0]),
        n=st.sampled_from([1, 3]),
        max_tokens=st.sampled_from([None, 50]),
        retries=st.sampled_from([0, 0, 2]),
        earlier=st.sampled_from([0.0, 0.0, 2.0]),
        cls=st.sampled_from([None, None, None, JobClass.BACKGROUND]),
    )
    def submit(
        self,
        tokens: int,
        model: str,
        tenant: str,
        patience: float | None,
        n: int,
        max_tokens: int | None,
        retries: int,
        earlier: float,
        cls: JobClass | None,
    ) -> None:
        self.count += 1
        accounts = tuple(a.name for a in self.settings.accounts if model in a.model_map)
        new = job(
            f"j{self.count}",
            tokens,
            at=self.now - earlier,
            model=model,
            accounts=accounts,
            tenant=tenant,
            n=n,
            max_tokens=max_tokens,
            client_retries=retries,
            deadline_s=None if patience is None else self.now + patience,
            class_override=cls,
        )
        self.live[new.id] = Known(new)
        self.tell(Submitted(new, body_bytes=100))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=TOKENS, rung=st.sampled_from(list(Rung)))
    def reforecast(self, data: st.DataObject, tokens: int, rung: Rung) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.live)))
        self.tell(Reforecast(job_id, workload(tokens, rung=rung)))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=TOKENS)
    def outgrow(self, data: st.DataObject, tokens: int) -> None:
        self.tell(Outgrown(data.draw(st.sampled_from(self.running)), tokens))

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        limit=st.sampled_from([None, 60, 600]),
        left=st.sampled_from([0, 1, 50]),
        reset_s=st.sampled_from([None, 1.0, 12.0]),
    )
    def answer(
        self, data: st.DataObject, limit: int | None, left: int, reset_s: float | None
    ) -> None:
        job_id = data.draw(st.sampled_from(self.running))
        self.tell(Answered(job_id, RateLimits(limit, left, reset_s)))

    @rule(trust=st.sampled_from([0.0, 0.5, 0.55, 1.0]))
    def recalibrate(self, trust: float) -> None:
        self.tell(Recalibrated(trust))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), end=OUTCOMES, output=st.sampled_from([None, 0.0, 20.0, 5000.0]))
    def finish(
        self, data: st.DataObject, end: tuple[Outcome, Verdict], output: float | None
    ) -> None:
        job_id = data.draw(st.sampled_from(self.running))
        self.end(job_id, end[0])
        self.tell(Finished(job_id, *end, output))

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        verdict=FAILURES,
        after=st.sampled_from([None, 0.0, 4.0, 100.0]),
        retryable=st.sampled_from([True, True, True, False]),
    )
    def fail(
        self, data: st.DataObject, verdict: Verdict, after: float | None, retryable: bool
    ) -> None:
        job_id = data.draw(st.sampled_from(self.running))
        self.live[job_id].running = False
        error = UpstreamFailed("failed")
        self.tell(AttemptFailed(job_id, verdict, error, retryable, after))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.live)))
        self.end(job_id, Outcome.CANCELLED)
        self.tell(Withdrawn(job_id))

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def repeat_the_end(self, data: st.DataObject) -> None:
        """A second end of the same job changes nothing."""
        job_id = data.draw(st.sampled_from(self.gone))
        before = self.scheduler.snapshot(self.now)
        for event in (
            Finished(job_id, Outcome.OK, Verdict.SUCCESS, 10.0),
            Withdrawn(job_id),
            AttemptFailed(job_id, Verdict.TIMEOUT, UpstreamFailed("late")),
            Reforecast(job_id, workload(5)),
        ):
            assert self.tell(event) == []
        assert self.scheduler.snapshot(self.now) == before

    @rule(step=STEPS)
    def pass_time(self, step: float) -> None:
        self.now += step
        self.tell(Woke())

    @rule()
    def wake_in_time(self) -> None:
        wake_s = self.scheduler.next_wake(self.now)
        if wake_s is not None:
            self.now = max(self.now, wake_s)
        self.tell(Woke())
        again = self.scheduler.next_wake(self.now)
        assert again is None or again > self.now, "a timer that fires for ever"

    @rule(given=some_settings())
    def reload(self, given: Settings) -> None:
        self.settings = given
        self.tell(SettingsChanged(given))

    @precondition(lambda self: len(self.told) > 30)
    @rule()
    def drain(self) -> None:
        self.draining = True
        self.tell(DrainStarted())

    # ---- what must hold

    @invariant()
    def counts_agree(self) -> None:
        """1, 2, 4: one outcome per job; each waiting job has one reason."""
        if not self.told:
            return
        seen = self.scheduler.snapshot(self.now)
        assert seen.submitted == self.count == len(self.live) + len(self.ended)
        classes = [c for pool in seen.pools for c in pool.classes.values()]
        assert sum(c.running + c.waiting for c in classes) == len(self.live)
        for c in classes:
            assert sum(c.blocked.values()) == c.waiting
        assert sum(seen.ended.values()) == len(self.ended)
        for outcome in Outcome:
            assert seen.ended[outcome] == sum(o is outcome for o in self.ended.values())
        on_accounts = sum(a.inflight for a in seen.accounts)
        assert on_accounts == len(self.running) == self.accounts.leases

    def teardown(self) -> None:
        if not self.told:
            return
        self.same_events_give_the_same_actions()
        for job_id in sorted(self.live):
            if job_id in self.live:
                self.end(job_id, Outcome.CANCELLED)
                self.tell(Withdrawn(job_id))
        seen = self.scheduler.snapshot(self.now)
        assert self.accounts.leases == 0
        assert sum(seen.ended.values()) == seen.submitted
        assert all(c.inflight_tokens == 0 for p in seen.pools for c in p.classes.values())

    def same_events_give_the_same_actions(self) -> None:
        """5."""
        twin = Scheduler(self.first, Accounts(self.first.accounts, self.first.balance))
        for event, now, actions in self.told:
            assert plain(twin.handle(event, now)) == actions

    # ---- plumbing

    @property
    def running(self) -> list[str]:
        return sorted(job_id for job_id, known in self.live.items() if known.running)

    def end(self, job_id: str, outcome: Outcome) -> None:
        del self.live[job_id]
        self.ended[job_id] = outcome
        self.gone.append(job_id)

    def tell(self, event: Event) -> list[Action]:
        actions = self.scheduler.handle(event, self.now)
        self.told.append((event, self.now, plain(actions)))
        for action in actions:
            known = self.live[action.job_id]  # KeyError: an action for a job that has ended
            assert not known.running
            if isinstance(action, Refuse):
                self.end(action.job_id, action.outcome)
            else:
                known.running = True
                known.dispatches += 1
                assert action.attempt == known.dispatches
                assert known.job.model in self.models_of(action.account)
                assert known.job.deadline_s is None or self.now < known.job.deadline_s
        self.scheduler.check(self.now)
        return actions

    def models_of(self, account: str) -> dict[str, str]:
        return next(a.model_map for a in self.settings.accounts if a.name == account)


def test_scheduler_keeps_its_properties_whatever_happens() -> None:
    """One outcome per job, sums agree, nothing waits that fits, same events same actions."""
    run_state_machine_as_test(SchedulerMachine, settings=QUICK)  # type: ignore[no-untyped-call]
