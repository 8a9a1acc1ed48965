"""The failsafe around cores that raise: what it does with each job, and how it comes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.balance.accounts import Accounts
from gateway.engine.failsafe import (
    HEAL_S,
    LOOK_AGAIN_S,
    SECOND_CHANCES,
    STORM,
    STORM_S,
    Failsafe,
)
from gateway.errors import UpstreamFailed
from gateway.schedule.events import (
    Action,
    AttemptFailed,
    Dispatch,
    DrainStarted,
    Event,
    Finished,
    Reforecast,
    SettingsChanged,
    Submitted,
    Withdrawn,
    Woke,
)
from gateway.schedule.scheduler import Scheduler
from gateway.settings.schema import Settings
from gateway.types import JobClass, Outcome, Verdict
from tests.kit.ledger import Live
from tests.unit.schedule.build import job, places, refused, settings, started, workload

GIVEN = settings({"a": {"initial_concurrency": 1}, "b": {"initial_concurrency": 1}})
BROKEN = UpstreamFailed("broken")


class World:
    """A failsafe over a ledger that is kept as the engine does. Its cores raise where `wrong` says
    so of an event, and at every question for a deadline once `wakes_wrong` is set."""

    def __init__(self, given: Settings = GIVEN) -> None:
        self.now = 0.0
        self.wrong: Callable[[Event], bool] = lambda event: False
        self.wakes_wrong = False
        self.ledger: dict[str, Live] = {}
        self.safe = Failsafe(self._core(given, None), self._core, self.ledger, lambda reason: None)

    def _core(self, given: Settings, old: Scheduler | None) -> Scheduler:
        world = self

        class Raising(Scheduler):
            def handle(self, event: Event, now: float) -> list[Action]:
                if world.wrong(event):
                    raise RuntimeError("wrong")
                return super().handle(event, now)

            def next_wake(self, now: float) -> float | None:
                if world.wakes_wrong:
                    raise RuntimeError("no deadline")
                return super().next_wake(now)

        return Raising(given, Accounts(given.accounts, given.balance))

    def feed(self, event: Event, *, at: float | None = None) -> list[Action]:
        if at is not None:
            self.now = at
        actions = self.safe.handle(event, self.now)
        for action in actions:
            live = self.ledger[action.job_id]
            if isinstance(action, Dispatch):
                assert live.account is None, "started twice"
                live.account = action.account
                live.attempts += 1
            else:
                del self.ledger[action.job_id]
        return actions

    def submit(
        self, name: str, tokens: float = 100, body_bytes: int = 0, **fields: object
    ) -> list[Action]:
        new = job(name, tokens, at=self.now, **({"accounts": ("a", "b")} | fields))  # type: ignore[arg-type]
        self.ledger[name] = Live(new, new.workload, body_bytes=body_bytes)
        return self.feed(Submitted(new, body_bytes))

    def fail(self, name: str, *, retryable: bool = True) -> list[Action]:
        self.ledger[name].account = None
        return self.feed(AttemptFailed(name, Verdict.SERVER_ERROR, BROKEN, retryable))

    def finish(self, name: str) -> list[Action]:
        del self.ledger[name]
        return self.feed(Finished(name, Outcome.OK, Verdict.SUCCESS, 100.0))

    def fault(self, *, at: float | None = None) -> list[Action]:
        """A core that raises once, of no fault of any job."""
        wrong, self.wrong = self.wrong, lambda event: isinstance(event, Woke)
        actions = self.feed(Woke(), at=at)
        self.wrong = wrong
        return actions

    def storm(self) -> None:
        """Leave the core out, from now on."""
        for _ in range(STORM + 1):
            self.fault()


def of_job(*names: str) -> Callable[[Event], bool]:
    """True of every event that tells of one of these jobs."""
    return lambda event: (
        (getattr(event, "job_id", None) or getattr(getattr(event, "job", None), "id", None))
        in names
    )


# -- a failed attempt that raised ------------------------------------------------------------------


def test_failed_attempt_that_raises_has_two_more_chances() -> None:
    """The job then waits for another account; after the second time it gets its error."""
    it = World()
    it.submit("j")
    it.wrong = lambda event: isinstance(event, AttemptFailed)
    for _ in range(SECOND_CHANCES):
        assert started(it.fail("j")) == ["j"]
    assert refused(it.fail("j")) == {"j": ("upstream_failed", Outcome.UPSTREAM_ERROR)}
    assert (it.safe.rebuilds, it.safe.core.jobs) == (3, {})


def test_failed_attempt_that_raises_has_no_other_chance_where_it_must_not_be_made_again() -> None:
    """A route with side effects is not repeated, whatever the core does."""
    it = World()
    it.submit("j")
    it.wrong = lambda event: isinstance(event, AttemptFailed)
    assert list(refused(it.fail("j", retryable=False))) == ["j"]


@pytest.mark.parametrize("end", ["finished", "refused"])
def test_chances_are_forgotten_with_the_job(end: str) -> None:
    """Another job of the same name has its own."""
    it = World()
    it.wrong = lambda event: isinstance(event, AttemptFailed)
    it.submit("j")
    for _ in range(SECOND_CHANCES):
        it.fail("j")
    if end == "finished":
        it.finish("j")
    else:
        it.fail("j")
    it.submit("j")
    assert started(it.fail("j")) == ["j"]


# -- jobs that make every core raise ---------------------------------------------------------------


def test_job_around_the_core_is_known_to_nobody_else() -> None:
    """The job's events reach no core and do no further harm; the failure of an attempt ends it."""
    for end in ("finish", "fail"):
        it = World()
        it.wrong = of_job("bad")
        assert places(it.submit("bad")) == {"bad": "a"}
        assert (it.safe.rebuilds, it.safe.snapshot(0.0).around) == (1, 1)
        answer = it.finish("bad") if end == "finish" else it.fail("bad")
        assert list(refused(answer)) == ([] if end == "finish" else ["bad"])
        assert (it.safe.rebuilds, it.safe.snapshot(0.0).around) == (1, 0)


def test_job_around_the_core_goes_to_its_accounts_in_turn() -> None:
    """The attempt that raised was on the first account: the next one is on the second."""
    it = World()
    it.submit("bad")
    it.wrong = of_job("bad")
    assert places(it.fail("bad")) == {"bad": "b"}


def test_job_around_the_core_without_an_account_is_refused() -> None:
    it = World()
    it.wrong = of_job("bad")
    assert refused(it.submit("bad", accounts=())) == {"bad": ("no_account", Outcome.UPSTREAM_ERROR)}


def test_many_jobs_that_make_every_core_raise_end_the_search() -> None:
    """Beyond STORM of them the core is left out at once, and all jobs run."""
    it = World()
    it.submit("runs")
    names = [f"bad{n}" for n in range(STORM + 1)]
    for name in names:
        live = job(name, accounts=("a", "b"))
        it.ledger[name] = Live(live, live.workload)
    it.wrong = lambda event: isinstance(event, Woke) or of_job(*names)(event)
    assert sorted(started(it.feed(Woke()))) == sorted(names)
    assert it.safe.snapshot(0.0).around == len(it.ledger) == STORM + 2


# -- what a fresh core is told ---------------------------------------------------------------------


def test_fresh_core_knows_the_jobs_as_they_were() -> None:
    """A job that waits keeps its latest forecast and its bytes; one that runs keeps its number of
    attempts and its account."""
    it = World()
    it.submit("first", accounts=("a",))
    it.fail("first")
    it.submit("other", accounts=("b",))
    it.submit("waits", 500, accounts=("a",), body_bytes=700)
    it.ledger["waits"].workload = workload(30)
    it.feed(Reforecast("waits", workload(30)))
    it.fault()
    (pool,) = it.safe.snapshot(0.0).pools
    assert pool.waiting_bytes == 700
    assert pool.classes[JobClass.INTERACTIVE].waiting_tokens == 30
    assert {a.name: a.inflight for a in it.safe.snapshot(0.0).accounts} == {"a": 1, "b": 1}
    (again,) = it.fail("first")
    assert isinstance(again, Dispatch)
    assert (again.job_id, again.attempt) == ("first", 3)


def test_rebuild_lets_no_counter_fall() -> None:
    """Submitted, started and ended jobs stay counted, the event that raised included."""
    for event in ("finished", "withdrawn"):
        it = World()
        for name in ("one", "two", "three"):
            it.submit(name)
        it.finish("one")
        it.wrong = of_job("two")
        del it.ledger["two"]
        ends: Event = Withdrawn("two")
        if event == "finished":
            ends = Finished("two", Outcome.OK, Verdict.SUCCESS)
        it.feed(ends)
        shot = it.safe.snapshot(0.0)
        assert it.safe.rebuilds == 1
        assert (shot.submitted, sum(shot.ended.values())) == (3, 2)
        assert shot.ended[Outcome.OK] == (2 if event == "finished" else 1)
        assert shot.dispatched >= 3


# -- a core that is left out -----------------------------------------------------------------------


def test_core_is_left_out_after_many_faults_in_a_short_time() -> None:
    """Ten within a minute are borne; with the eleventh every job that waits starts at once, and
    what runs goes on."""
    it = World()
    for name in ("runs", "runs2", "waits", "waits2"):
        it.submit(name)
    for n in range(STORM):
        assert it.fault(at=n * STORM_S / (STORM + 1)) == []
    assert it.safe.queue_position("waits2", it.now) is not None
    assert started(it.fault(at=STORM_S - 1.0)) == ["waits", "waits2"]
    assert it.safe.queue_position("waits2", it.now) is None
    assert it.safe.snapshot(it.now).around == 4
    assert started(it.submit("new")) == ["new"]
    assert list(refused(it.fail("new"))) == ["new"], "nobody else could choose an account"


def test_core_whose_faults_are_far_apart_is_not_left_out() -> None:
    it = World()
    it.submit("runs", accounts=("a",))
    it.submit("waits", accounts=("a",))
    for n in range(3 * STORM):
        assert it.fault(at=n * (STORM_S / STORM + 0.1)) == []


def test_job_that_ends_with_the_fault_that_leaves_the_core_out_is_not_started() -> None:
    it = World()
    it.submit("j")
    for _ in range(STORM):
        it.fault()
    it.wrong = lambda event: isinstance(event, AttemptFailed)
    assert list(refused(it.fail("j", retryable=False))) == ["j"]
    assert started(it.submit("next")) == ["next"]


def test_core_comes_back_in_two_steps() -> None:
    """After a minute first come, first served; five minutes later as configured, by the settings
    that hold by then. The timer is asked for at both."""
    it = World()
    it.submit("ended")
    it.finish("ended")
    it.storm()
    it.wakes_wrong = True
    assert it.safe.next_wake(0.0) == STORM_S, "a core that is left out is not asked"
    it.wakes_wrong = False
    one = {"initial_concurrency": 1}
    it.feed(SettingsChanged(settings({"a": one}, schedule={"ordering": "sjf"})), at=1.0)
    it.feed(Woke(), at=STORM_S)
    assert it.safe.core.settings.schedule.ordering == "fcfs"
    assert it.safe.degraded
    assert started(it.submit("runs")) == ["runs"]
    assert it.submit("waits") == []
    assert it.safe.next_wake(it.now) == STORM_S + HEAL_S, "before the wait ends"
    it.feed(Woke(), at=STORM_S + HEAL_S)
    assert (it.safe.core.settings.schedule.ordering, it.safe.degraded) == ("sjf", False)
    shot = it.safe.snapshot(it.now)
    assert (shot.submitted, shot.dispatched, shot.ended[Outcome.OK]) == (3, 2, 1)


def test_core_that_comes_back_still_drains() -> None:
    """A gateway that stops takes nothing new, whatever became of its core meanwhile."""
    it = World()
    it.storm()
    it.feed(DrainStarted())
    assert list(refused(it.submit("one"))) == ["one"]
    it.feed(Woke(), at=STORM_S)
    assert refused(it.submit("two")) == {"two": ("draining", Outcome.REJECTED)}


# -- first come, first served ----------------------------------------------------------------------


def test_reload_does_not_bring_the_ordering_back_early() -> None:
    """The other settings hold at once."""
    it = World()
    it.fault()
    it.feed(SettingsChanged(settings({"a": {}, "c": {}}, schedule={"ordering": "sjf"})))
    assert it.safe.core.settings.schedule.ordering == "fcfs"
    assert [a.name for a in it.safe.core.settings.accounts] == ["a", "c"]
    it.fault()
    assert [a.name for a in it.safe.core.settings.accounts] == ["a", "c"]


def test_failsafe_remembers_a_reload_while_a_job_goes_around() -> None:
    it = World()
    it.wrong = of_job("bad")
    it.submit("bad")
    it.feed(SettingsChanged(settings({"a": {}, "c": {}})))
    it.fault()
    assert [a.name for a in it.safe.core.settings.accounts] == ["a", "c"]


def test_failsafe_asks_again_soon_where_a_deadline_cannot_be_told() -> None:
    it = World()
    it.wakes_wrong = True
    assert it.safe.next_wake(5.0) == 5.0 + LOOK_AGAIN_S
