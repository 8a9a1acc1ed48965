from __future__ import annotations

import pytest

from gateway.schedule.budget import Budget, tier_cap
from gateway.types import JobClass, Mode, SizeBucket
from tests.unit.schedule.build import settings

INTERACTIVE, HEAVY, BACKGROUND = JobClass


def budget(policy: str = "dual_budget", borrow: bool | None = True) -> Budget:
    given = settings(
        schedule={
            "interactive_inflight_tokens": 100,
            "heavy_inflight_tokens": 200,
            **({"policy": policy} if borrow is None else {"policy": policy, "borrow": borrow}),
        }
    )
    return Budget(given.schedule)


def test_budget_lets_the_job_through_that_crosses_the_line() -> None:
    """A class below its budget has room, however large the next job is."""
    it = budget()
    it.take(INTERACTIVE, SizeBucket.SHORT, 99)
    assert it.owns_room(INTERACTIVE)
    it.take(INTERACTIVE, SizeBucket.LONG, 5000)
    assert not it.owns_room(INTERACTIVE)
    assert it.owns_room(HEAVY)
    assert it.borrowed(INTERACTIVE) == 4999
    assert not it.lends


def test_budget_counts_what_is_taken_corrected_and_given_back() -> None:
    """The budget counts tokens by class, jobs by class and size, and their totals."""
    it = budget()
    it.take(INTERACTIVE, SizeBucket.SHORT, 40)
    it.take(HEAVY, SizeBucket.LONG, 150)
    it.correct(HEAVY, -50)
    assert it.tokens == {INTERACTIVE: 40, HEAVY: 100, BACKGROUND: 0}
    assert (it.total_tokens, it.total_jobs, it.total_limit) == (140, 2, 300)
    it.give_back(HEAVY, SizeBucket.LONG, 100)
    it.give_back(INTERACTIVE, SizeBucket.SHORT, 40)
    assert (it.total_tokens, it.total_jobs) == (0, 0)
    assert not any(it.buckets.values())


def test_budget_lends_by_its_policy_unless_set() -> None:
    """By default `adaptive` lends without a bound of its own, and `dual_budget` not at all."""
    assert budget("adaptive", None).lends
    assert not budget("dual_budget", None).lends
    assert not budget("adaptive", False).lends
    adaptive = budget("adaptive", None)
    adaptive.take(HEAVY, SizeBucket.LONG, 10**6)
    assert adaptive.lends


def test_budget_of_background_work_is_the_heavy_one_where_there_are_two() -> None:
    """Background and heavy work fill the heavy budget for each other and leave the interactive one
    alone."""
    it = budget()
    it.take(BACKGROUND, SizeBucket.LONG, 200)
    assert (it.owns_room(HEAVY), it.owns_room(BACKGROUND)) == (False, False)
    assert it.owns_room(INTERACTIVE)


def test_budget_is_divided_anew_as_the_accounts_grow() -> None:
    """The parts stay 1 : 2 as given, under pressure the interactive part counts twice, and fixed
    budgets stay."""
    it = budget("adaptive", None)
    it.resize(6000.0, 1.0)
    assert (it.limits[INTERACTIVE], it.limits[HEAVY], it.total_limit) == (2000, 4000, 6000)
    assert 0 < it.limits[BACKGROUND] < 1000
    it.resize(6000.0, 2.0)
    assert (it.limits[INTERACTIVE], it.limits[HEAVY]) == (3000, 3000)
    fixed = budget()
    fixed.resize(6000.0, 2.0)
    assert (fixed.limits[INTERACTIVE], fixed.limits[HEAVY]) == (100, 200)


def test_budget_given_back_twice_is_an_error() -> None:
    """A reserve that is given back twice is seen."""
    it = budget()
    it.take(HEAVY, SizeBucket.LONG, 10)
    it.give_back(HEAVY, SizeBucket.LONG, 10)
    with pytest.raises(AssertionError):
        it.give_back(HEAVY, SizeBucket.LONG, 10)


def test_tier_cap_shrinks_with_the_mode_but_never_to_nothing() -> None:
    """A cap is scaled down to at least 1; 0 is no cap in every mode."""
    given = settings(schedule={"tier_caps": {"medium": 1, "long": 8}}).schedule
    caps = {b: [tier_cap(given, b, m) for m in Mode] for b in SizeBucket}
    assert caps == {
        SizeBucket.SHORT: [0, 0, 0],
        SizeBucket.MEDIUM: [1, 1, 1],
        SizeBucket.LONG: [8, 6, 4],
    }


def test_budget_of_background_work_is_nothing_of_its_own_where_there_are_two() -> None:
    """Background work borrows all that it holds; in the adaptive policy a little is its own."""
    fixed = budget()
    fixed.take(BACKGROUND, SizeBucket.LONG, 50)
    assert (fixed.limits[BACKGROUND], fixed.borrowed(BACKGROUND)) == (0.0, 50.0)
    adaptive = budget("adaptive", None)
    adaptive.take(BACKGROUND, SizeBucket.LONG, 50)
    assert 0.0 < adaptive.borrowed(BACKGROUND) < 50.0
    assert adaptive.borrowed(HEAVY) == 0.0


def test_budget_is_steady_unless_it_moves_and_lends_nothing() -> None:
    """Time alone may give a class room only where the budgets move and lend nothing."""
    assert budget("adaptive", None).steady
    assert budget("dual_budget", False).steady
    assert not budget("adaptive", False).steady


def test_budget_is_full_at_its_limit() -> None:
    """A budget is full at its limit to the token, in either policy."""
    for policy in ("adaptive", "dual_budget"):
        it = budget(policy)
        it.take(INTERACTIVE, SizeBucket.SHORT, 99)
        assert it.owns_room(INTERACTIVE)
        it.take(INTERACTIVE, SizeBucket.SHORT, 1)
        assert not it.owns_room(INTERACTIVE), policy


@pytest.mark.parametrize(
    ("cls", "bucket", "tokens"),
    [
        (HEAVY, SizeBucket.LONG, 11),
        (INTERACTIVE, SizeBucket.LONG, 0),
        (HEAVY, SizeBucket.SHORT, 10),
    ],
)
def test_budget_given_back_as_another_job_is_an_error(
    cls: JobClass, bucket: SizeBucket, tokens: int
) -> None:
    """Giving back more tokens, another class or another size than was taken is seen."""
    it = budget()
    it.take(HEAVY, SizeBucket.LONG, 10)
    with pytest.raises(AssertionError):
        it.give_back(cls, bucket, tokens)
