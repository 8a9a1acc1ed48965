from __future__ import annotations

import pytest

from gateway.schedule.events import Outgrown, Reforecast, Woke
from gateway.types import JobClass, Outcome, Rung, Verdict
from tests.unit.schedule.build import World, refused, settings, started, workload


def paced() -> World:
    """One slot, taken; 0.1 s a token."""
    it = World(settings({"a": {"initial_concurrency": 1}}, schedule={"ordering": "sjf"}))
    for n in range(12):
        it.submit(f"p{n}", 100)
        it.finish(f"p{n}", 100, at=it.now + 10.0)
    it.submit("run", 100)
    return it


def held(it: World) -> float:
    return it.scheduler.pools["m"].budget.tokens[JobClass.HEAVY]


def test_reforecast_of_a_longer_answer_ends_a_wait_earlier() -> None:
    """The wait ends at deadline − service by the new forecast, at once where that is past
    already."""
    it = paced()
    it.submit("j", 100, deadline_s=it.now + 30.0)
    assert it.scheduler.next_wake(it.now) == pytest.approx(it.now + 20.0)
    it.feed(Reforecast("j", workload(250, rung=Rung.GLOBAL_NEIGHBORS)))
    assert it.scheduler.next_wake(it.now) == pytest.approx(it.now + 5.0)
    gone = it.feed(Reforecast("j", workload(900, rung=Rung.TENANT_NEIGHBORS)))
    assert refused(gone) == {"j": ("deadline_unreachable", Outcome.EVICTED)}


def test_reforecast_of_a_shorter_answer_lets_a_job_wait_longer() -> None:
    """The wait is longer by the new forecast, and the earlier timer wakes nobody in vain."""
    it = paced()
    it.submit("j", 200, deadline_s=it.now + 25.0)
    it.feed(Reforecast("j", workload(70, rung=Rung.GLOBAL_NEIGHBORS)))
    assert refused(it.feed(Woke(), at=it.now + 6.0)) == {}
    assert it.scheduler.next_wake(it.now) == pytest.approx(it.now + 12.0)


def test_reforecast_keeps_the_arrival() -> None:
    """max_wait_s runs from the arrival, not from the forecast."""
    it = World(settings({"a": {"initial_concurrency": 1}}, schedule={"max_wait_s": 10.0}))
    it.submit("run")
    it.submit("j")
    it.feed(Reforecast("j", workload(500, rung=Rung.GLOBAL_NEIGHBORS)), at=4.0)
    assert it.scheduler.next_wake(4.0) == 10.0


def test_reforecast_may_let_a_waiting_job_start() -> None:
    """A job that moves to a class with room starts."""
    it = World(settings({"a": {}}, schedule={"heavy_inflight_tokens": 100, "borrow": False}))
    it.submit("run", 500)
    assert started(it.submit("j", 500)) == []
    assert started(it.feed(Reforecast("j", workload(20, rung=Rung.GLOBAL_NEIGHBORS)))) == ["j"]


def test_reforecast_of_a_job_between_two_attempts_corrects_what_it_holds() -> None:
    """A retry's reserve follows its forecast; the answer of its failed attempt does not go on."""
    it = World(settings({"a": {}}))
    it.submit("j", 100)
    it.fail("j", Verdict.RATE_LIMITED, retry_after_s=9.0)
    it.feed(Reforecast("j", workload(300, rung=Rung.GLOBAL_NEIGHBORS)))
    assert held(it) == 300
    it.feed(Outgrown("j", 5000.0))
    assert held(it) == 300


def test_outgrown_answer_of_a_waiting_job_is_no_event() -> None:
    """A waiting job has no answer that could be outgrown."""
    it = World(settings({"a": {"initial_concurrency": 1}}))
    it.submit("run", 100)
    it.submit("j", 100)
    it.feed(Outgrown("j", 5000.0))
    assert held(it) == 100
    assert it.scheduler.jobs["j"].reserve == 100


def test_outgrown_answer_holds_what_its_quantile_expects_of_what_is_left() -> None:
    """The new reserve follows `reserve_quantile`: a careful one holds more."""
    for quantile, expected in ((0.5, 300.0), (0.9, 380.0)):
        it = World(settings({"a": {}}, schedule={"reserve_quantile": quantile}))
        it.submit("j", 100)
        it.feed(Outgrown("j", 200.0))
        assert held(it) == pytest.approx(expected), quantile


def test_reforecast_ends_a_wait_whose_last_moment_is_now() -> None:
    """A job found to be of a class whose deadline is this moment is refused at once."""
    given = {"interactive_deadline_s": 5.0}
    it = World(settings({"a": {"initial_concurrency": 1}}, schedule=given))
    it.submit("run", 100)
    it.submit("j", 100)
    gone = it.feed(Reforecast("j", workload(20, rung=Rung.GLOBAL_NEIGHBORS)), at=5.0)
    assert list(refused(gone)) == ["j"]
