from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from gateway.schedule.budget import SURE_STARTS
from gateway.schedule.events import Recalibrated
from gateway.schedule.model_pool import Pool
from gateway.schedule.overload import Grade
from gateway.schedule.pressure import EVERY, LONG_QUEUE, saturation
from gateway.schedule.rounds import Turn
from gateway.types import JobClass, Mode, Reason, Verdict
from tests.unit.schedule.build import World, reason, settings, started


def world(slots: int = 1, **schedule: Any) -> World:
    """`slots` of them, whose pace is 0.1 s a token once jobs have been served."""
    given = {"max_wait_s": 86_400.0, "max_queue_items": 10_000, **schedule}
    return World(settings({"a": {"initial_concurrency": slots}}, schedule=given))


def serve(it: World, jobs: int, tokens: float = 100) -> None:
    for n in range(jobs):
        name = f"{it.scheduler.submitted}-{n}"
        it.submit(name, tokens)
        it.finish(name, tokens, at=it.now + tokens / 10)


def only(it: World) -> Pool:
    (pool,) = it.scheduler.pools.values()
    return pool


def test_budgets_follow_the_room_and_the_mean_reserve() -> None:
    """Budgets are the settings' until enough has started to know the mean reserve."""
    it = world(slots=4)
    serve(it, SURE_STARTS - 1, 50)
    assert only(it).budget.total_limit == 10_000
    serve(it, 1, 50)
    assert only(it).budget.total_limit == pytest.approx(4 * 50)
    limits = only(it).budget.limits
    assert limits[JobClass.INTERACTIVE] / limits[JobClass.HEAVY] == pytest.approx(3 / 7)


def test_budgets_favour_the_interactive_as_it_fills() -> None:
    """The interactive part counts twice when congested, and its turn's quantum with it."""
    it = world(slots=2)
    serve(it, SURE_STARTS + 1)
    free = only(it).rounds.share(Turn.INTERACTIVE)
    for n in range(12):
        it.submit(f"w{n}", 100)
    assert only(it).mode is Mode.CONGESTED
    limits = only(it).budget.limits
    assert limits[JobClass.INTERACTIVE] / limits[JobClass.HEAVY] == pytest.approx(6 / 7)
    assert free < only(it).rounds.share(Turn.INTERACTIVE) < 2 * free


def test_saturation_is_the_fuller_of_tokens_and_slots() -> None:
    """Saturation is tokens in flight and waiting over the limit, background's left out, or the
    accounts' load."""
    it = world(slots=4, shed=False)
    it.submit("r1", 1000)
    assert saturation(only(it), it.accounts) == 0.25, "one slot of four"
    it.submit("r2", 5000)
    assert saturation(only(it), it.accounts) == 0.6, "6,000 tokens of 10,000"
    for n in range(2):
        it.submit(f"r{n + 3}", 1000)
    it.submit("waits", 4000)
    it.submit("background", 50_000, class_override=JobClass.BACKGROUND)
    assert saturation(only(it), it.accounts) == 1.2


def test_turn_of_the_deferred_begins_when_something_is_deferred() -> None:
    """The deferred turn has not starved since the gateway started, nor does it bring old debts."""
    it = world(clear_s=30.0, reject_above=40.0, max_overtake_s=20.0)
    serve(it, 20)
    it.submit("run", 100)
    pool = only(it)
    pool.rounds.credit[Turn.DEFERRED] = -500.0
    assert pool.deferred is Grade.NONE
    for n in range(3):
        it.submit(f"i{n}", 60)
    it.submit("huge", 5000)
    assert (pool.deferred, pool.served_s[Turn.DEFERRED]) == (Grade.HUGE, it.now)
    assert pool.rounds.credit[Turn.DEFERRED] == 0.0
    assert started(it.finish("run", 100, at=it.now + 1.0)) == ["i0"]
    begun_s = pool.served_s[Turn.DEFERRED]
    it.submit("huge2", 5000)
    assert pool.deferred is Grade.LONG
    assert pool.served_s[Turn.DEFERRED] == begun_s, "more of it is no new beginning"


def test_severity_is_of_what_is_predicted_only_once_the_pace_is_sure() -> None:
    """A first slow answer defers nobody."""
    it = world(clear_s=10.0)
    serve(it, 2)
    it.submit("run", 100)
    it.submit("w", 5000)
    assert (only(it).clear_s, only(it).severity) == (0.0, pytest.approx(0.05))
    it = world(clear_s=10.0, reject_above=100.0)
    serve(it, 8)
    it.submit("run", 100)
    it.submit("w", 200)
    assert (only(it).clear_s, only(it).severity) == (pytest.approx(20.0), pytest.approx(2.0))


def test_order_takes_the_scale_of_what_was_measured() -> None:
    """Backlog, typical size, speed and trust are measured; the settings' guesses hold until
    then."""
    it = world(shed=False, ordering="boost")
    serve(it, 3, 30)
    it.submit("run", 100)
    it.submit("w1", 4000)
    assert only(it).order.typical_tokens == 250.0, "a guess"
    it = world(shed=False, ordering="boost")
    serve(it, SURE_STARTS + 4, 400)
    it.submit("run", 100)
    for n in range(20):
        it.submit(f"w{n}", 400)
    order = only(it).order
    assert order.typical_tokens == pytest.approx(400, rel=0.3)
    assert order.token_s == pytest.approx(0.1)
    assert 0.5 < only(it).pressing_tokens / order.backlog_tokens < 2.0
    it.feed(Recalibrated(0.5))
    assert only(it).order.trust == 0.5


def test_order_takes_the_measured_scale_once_enough_has_started_and_ended() -> None:
    """The scale is measured from the SURE_STARTS-th start on, if some answer's speed is known."""
    it = world(shed=False, ordering="boost")
    serve(it, SURE_STARTS - 1, 400)
    it.submit("run", 400)
    it.submit("w", 400)
    assert only(it).order.typical_tokens == pytest.approx(400.0)
    it = world(SURE_STARTS, shed=False, ordering="boost")
    for n in range(SURE_STARTS + 3):
        it.submit(f"j{n}", 400)
    assert only(it).waiting == 3
    assert only(it).order.typical_tokens == 250.0, "no answer has ended"


def test_budgets_of_a_single_slot_hold_one_mean_job() -> None:
    """The room is never taken for less than one job, nor one for more."""
    it = world(slots=1)
    serve(it, SURE_STARTS, 50)
    assert only(it).budget.total_limit == pytest.approx(50.0)
    it.submit("j", 50)
    it.fail("j", Verdict.RATE_LIMITED, retry_after_s=9.0)
    assert only(it).budget.total_limit == pytest.approx(50.0), "nor while the account rests"


def test_order_of_a_queue_that_is_not_long_is_renewed_at_once() -> None:
    """Up to LONG_QUEUE keys are made anew at the event that changes the order."""
    it = world(shed=False, ordering="sjf", max_overtake_s=3600.0)
    it.submit("run", 100)
    for n in range(LONG_QUEUE):
        it.submit(f"j{n}", 1000 - n)
    pool = only(it)
    for _ in range(EVERY):
        it.feed(Recalibrated(0.0))
        assert not pool.stale
    assert pool.order.trust == 0.0
    assert len({live.key for live in pool.queued}) == 1


def test_order_of_a_long_queue_is_renewed_in_slices() -> None:
    """A few keys are made anew at each event, until none is of the old order."""
    it = world(shed=False, ordering="sjf", max_overtake_s=3600.0)
    it.submit("run", 100)
    jobs = LONG_QUEUE + 8
    for n in range(jobs):
        it.submit(f"j{n}", 1000 - n)
    pool = only(it)
    it.feed(Recalibrated(0.0))
    left = [len(pool.stale)]
    while pool.stale or pool.order.trust:
        it.feed(Recalibrated(0.0))
        left.append(len(pool.stale))
    drops = [a - b for a, b in pairwise(left) if a > b]
    assert max(drops) <= LONG_QUEUE
    assert 2 in drops, "while it is long, two at a time"
    assert len({live.key for live in pool.queued}) == 1


def test_pool_with_a_long_queue_is_assessed_now_and_then() -> None:
    """A long queue is assessed once in EVERY events, a short one at each."""
    it = world(shed=False)
    it.submit("run", 100)
    seen = []
    for n in range(2 * LONG_QUEUE + 1):
        it.submit(f"w{n}", 5000)
        seen.append(only(it).saturation)
    looks = [b != a for a, b in pairwise(seen)]
    assert all(looks[2 : LONG_QUEUE - 2])
    late = looks[LONG_QUEUE:]
    assert sum(late) == len(late) // EVERY


def test_pool_of_fixed_budgets_is_assessed_at_each_event() -> None:
    """Also with a long queue."""
    it = world(shed=False, policy="dual_budget")
    it.submit("run", 100)
    seen = []
    for n in range(2 * LONG_QUEUE):
        it.submit(f"w{n}", 5000)
        seen.append(only(it).saturation)
    assert all(b != a for a, b in pairwise(seen))


def test_pool_in_which_nothing_waits_is_assessed_now_and_then() -> None:
    """While nothing waits one event in EVERY is assessed; the first that waits is at once, and so
    is the end of the last job."""
    names = [f"j{n}" for n in range(1 + 3 * EVERY)]
    it = world(slots=len(names), shed=False)
    it.submit(names[0])
    seen = [only(it).saturation]
    for name in names[1:]:
        it.submit(name)
        seen.append(only(it).saturation)
    assert sum(b != a for a, b in pairwise(seen)) == 3
    assert seen[-1] < 1.0
    it.submit("waits")
    assert only(it).saturation > 1.0
    for name in (*names, "waits"):
        it.finish(name)
    assert only(it).saturation == 0.0


def test_pool_whose_sizes_are_capped_by_its_mode_is_assessed_at_each_event() -> None:
    """Running jobs alone change the mode, and with it the next start."""
    it = world(slots=40, shed=False, tier_caps={"long": 4})
    for n in range(3):
        it.submit(f"j{n}", 6000)
    assert only(it).mode is Mode.CONGESTED
    assert it.waiting == {"j2"}
    assert reason(it, "j2") is Reason.TIER_CAP
