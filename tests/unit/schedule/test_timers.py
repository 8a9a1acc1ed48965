"""Pools by the time at which they are to be looked at again."""

from __future__ import annotations

from math import inf
from random import Random

from gateway.schedule.model_pool import Pool
from gateway.schedule.timers import Timers
from tests.unit.schedule.build import settings


def pools(*names: str) -> list[Pool]:
    return [Pool(name, settings().schedule) for name in names]


def test_timers_name_the_earliest_of_all_pools() -> None:
    """The earliest time is by what was set last, sooner, later or never."""
    timers = Timers()
    a, b = pools("a", "b")
    assert timers.next_s() == inf
    for pool, at_s, first_s in (
        (a, 5.0, 5.0),
        (b, 3.0, 3.0),
        (b, 9.0, 5.0),
        (a, 4.0, 4.0),
        (a, inf, 9.0),
        (a, 8.0, 8.0),
        (b, inf, 8.0),
        (a, inf, inf),
    ):
        timers.set(pool, at_s)
        assert timers.next_s() == first_s


def test_timers_give_each_due_pool_once() -> None:
    """A due pool has no time until it is set again; the others keep theirs."""
    timers = Timers()
    a, b, c = pools("a", "b", "c")
    for pool, at_s in ((a, 5.0), (a, 2.0), (b, 3.0), (c, 7.0)):
        timers.set(pool, at_s)
    assert timers.due(1.0) == []
    assert timers.due(3.0) == ["a", "b"]
    assert timers.due(3.0) == []
    assert timers.next_s() == 7.0
    timers.set(a, 6.0)
    assert timers.next_s() == 6.0


def test_timers_agree_with_a_look_at_every_pool() -> None:
    """Any sequence of settings agrees with a scan of all pools, and nothing piles up."""
    timers, random = Timers(), Random(3)
    given = pools(*"abcde")
    for _ in range(3000):
        timers.set(random.choice(given), random.choice([inf, *range(50)]))
        assert timers.next_s() == min(pool.wake_s for pool in given)
        assert len(timers._heap) <= 100


def test_timers_are_swept_when_they_have_doubled() -> None:
    """The first sweep comes with the 65th entry, the next at twice what was valid at the last."""
    timers = Timers()
    given = pools(*(f"p{n}" for n in range(40)))
    sizes = []
    for pool in given:
        timers.set(pool, 1000.0)
        sizes.append(len(timers._heap))
    for n in range(25 + 41):
        timers.set(given[0], 999.0 - n)
        sizes.append(len(timers._heap))
    assert sizes[:65] == [*range(1, 65), 40], "64 fit, and 40 of 65 are valid"
    assert sizes[65:] == [*range(41, 81), 40], "80 fit: twice 40"
    assert timers.next_s() == 999.0 - 65
    timers, (pool,) = Timers(), pools("p")
    sizes = []
    for n in range(65 + 64):
        timers.set(pool, 999.0 - n)
        sizes.append(len(timers._heap))
    assert sizes == [*range(1, 65), *range(1, 65), 1], "64 fit again, however few are valid"


def test_timers_hold_a_time_once_that_is_set_again() -> None:
    """A pool that is set to the time it has, a time or never, adds nothing."""
    timers, (pool,) = Timers(), pools("p")
    for at_s, size in ((inf, 0), (5.0, 1), (5.0, 1), (9.0, 1)):
        timers.set(pool, at_s)
        assert len(timers._heap) == size
