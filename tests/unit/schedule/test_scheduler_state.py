from __future__ import annotations

from math import inf

from gateway.schedule.events import Woke
from gateway.types import Verdict
from tests.unit.schedule.build import World, settings


def test_touched_pool_keeps_the_best_key_that_may_start_there() -> None:
    """A pool is touched with the smallest of its keys; a touch without a key hides none."""
    state = World(settings({"a": {}})).scheduler
    for key in (7.0, 3.0, 5.0, inf):
        state.touch("p", key)
    state.touch("q")
    assert state.touched == {"p": 3.0, "q": inf}
    state.touch("q", 4.0)
    assert state.touched == {"p": 3.0, "q": 4.0}


def test_trust_is_full_at_first_and_between_0_and_1() -> None:
    """Forecasts are trusted until measured, and trust has no more and no less than its bounds."""
    state = World(settings({"a": {}})).scheduler
    assert state.trust == 1.0
    for given, found in ((0.3, 0.3), (1.5, 1.0), (-1.0, 0.0)):
        state.trust = given
        assert state.trust == found


def test_started_job_has_waited_as_long_as_all_its_waits() -> None:
    """A second wait adds to the first, and the time of an attempt to neither."""
    it = World(settings({"a": {"initial_concurrency": 1}}))
    it.submit("run")
    it.submit("j")
    it.finish("run", at=2.0)
    it.fail("j", Verdict.RATE_LIMITED, retry_after_s=3.0, at=10.0)
    it.feed(Woke(), at=13.0)
    live = it.scheduler.jobs["j"]
    assert (live.attempts, live.waited_s) == (2, 5.0)
