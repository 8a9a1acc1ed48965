from __future__ import annotations

import pytest

from gateway.schedule.admission import queue_position
from gateway.schedule.rounds import Turn
from gateway.schedule.shares import SLACK_TOKENS
from gateway.snapshots import QueuePosition
from gateway.types import JobClass, Verdict
from tests.unit.schedule.build import World, settings


def busy(**schedule: object) -> World:
    """One slot at 0.1 s a token, taken at 120 s; shortest first, nobody turned away."""
    it = World(
        settings(
            {"a": {"initial_concurrency": 1}},
            {"t": {}, "u": {}},
            schedule={"ordering": "sjf", "shed": False, "max_wait_s": 86_400.0, **schedule},
        )
    )
    for n in range(12):
        it.submit(f"p{n}", 100)
        it.finish(f"p{n}", 100, at=it.now + 10.0)
    it.submit("run", 100)
    return it


def stands(it: World, job_id: str) -> QueuePosition:
    found = queue_position(it.scheduler, job_id, it.now)
    assert found is not None
    return found


def test_queue_position_is_of_jobs_that_wait() -> None:
    """A job that never came, runs, is between two attempts or has ended has no position."""
    it = busy()
    it.submit("w")
    assert queue_position(it.scheduler, "w", it.now) is not None
    assert queue_position(it.scheduler, "?", it.now) is None
    assert queue_position(it.scheduler, "run", it.now) is None
    it.fail("run", Verdict.RATE_LIMITED, retry_after_s=9.0)
    assert queue_position(it.scheduler, "run", it.now) is None
    assert queue_position(it.scheduler, "p0", it.now) is None


def test_queue_position_counts_from_one_in_the_order_of_starts() -> None:
    """Position follows the key, not the arrival; of two equal ones the job submitted first is
    before."""
    it = busy()
    for name, tokens in (("long", 300), ("short", 100), ("twin", 100), ("middle", 200)):
        it.submit(name, tokens)
    places = {name: stands(it, name).position for name in ("short", "twin", "middle", "long")}
    assert places == {"short": 1, "twin": 2, "middle": 3, "long": 4}


def test_queue_position_puts_the_tenant_first_that_was_given_less() -> None:
    """Counters come before keys, as in the drain."""
    it = busy()
    it.submit("mine", 100)
    it.submit("theirs", 300, tenant="u")
    shares = it.scheduler.pools["m"].shares[JobClass.HEAVY]
    shares.charge(shares.of("t", 1.0), 2 * SLACK_TOKENS)
    assert (stands(it, "theirs").position, stands(it, "mine").position) == (1, 2)


def test_queue_position_is_inside_the_class() -> None:
    """Other classes take their turns beside it: they count as waiting, not as ahead."""
    it = busy()
    for name in ("h1", "h2"):
        it.submit(name, 100)
    it.submit("i1", 30)
    it.submit("b1", 50, class_override=JobClass.BACKGROUND)
    seen = {name: stands(it, name) for name in ("h1", "h2", "i1", "b1")}
    assert {name: s.position for name, s in seen.items()} == {"h1": 1, "h2": 2, "i1": 1, "b1": 1}
    assert {s.waiting for s in seen.values()} == {4}


def test_queue_position_tells_how_long_a_job_has_waited() -> None:
    """The wait counts from the arrival at the gateway, which may be before the submission."""
    it = busy()
    it.submit("early", at=it.now - 2.5)
    it.submit("w")
    it.now += 4.0
    assert stands(it, "w").waited_s == pytest.approx(4.0)
    assert stands(it, "early").waited_s == pytest.approx(6.5)


def test_queue_position_expects_what_is_ahead_at_the_pace_of_late() -> None:
    """The expected wait is tokens ahead × seconds a token, and nothing for the next job."""
    it = busy()
    for name, tokens in (("a", 100), ("b", 200), ("c", 400)):
        it.submit(name, tokens)
    found = [stands(it, name).expected_wait_s for name in ("a", "b", "c")]
    assert found == pytest.approx([0.0, 10.0, 30.0])


def test_queue_position_expects_its_classs_share_of_the_pace_beside_others() -> None:
    """Beside other classes the wait is by the class's share, but no longer than all that waits
    would take."""
    it = busy()
    for name, tokens in (("a", 100), ("b", 200), ("i", 60)):
        it.submit(name, tokens)
    assert stands(it, "b").expected_wait_s == pytest.approx(16.0), "a and i are all there is"
    it.submit("i2", 6000, class_override=JobClass.INTERACTIVE)
    share = it.scheduler.pools["m"].rounds.share(Turn.HEAVY)
    assert stands(it, "b").expected_wait_s == pytest.approx(100 / share * 0.1)
    assert 0.3 < share < 0.9


def test_queue_position_expects_nothing_before_the_pace_is_known() -> None:
    """An expected wait of zero stands for one that is not known."""
    it = World(settings({"a": {"initial_concurrency": 1}}))
    for name in ("run", "a", "b"):
        it.submit(name)
    assert stands(it, "b").expected_wait_s == 0.0
