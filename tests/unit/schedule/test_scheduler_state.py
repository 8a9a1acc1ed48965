from __future__ import annotations

from math import inf

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
