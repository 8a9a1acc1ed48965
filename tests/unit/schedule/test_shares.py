from __future__ import annotations

import pytest

from gateway.schedule.shares import SLACK_TOKENS, Shares


def test_shares_count_work_by_weight() -> None:
    """Twice the weight counts half."""
    it = Shares()
    light, heavy = it.of("light", 1.0), it.of("heavy", 2.0)
    for share in (light, heavy):
        it.joined(share)
        it.charge(share, 1000.0)
    assert (light.counter, heavy.counter) == (1000.0, 500.0)


def test_shares_rank_in_steps() -> None:
    """Within a step all tenants are equal, and their jobs' keys decide."""
    it = Shares()
    share = it.of("t", 1.0)
    ranks = []
    for _ in range(5):
        it.charge(share, SLACK_TOKENS / 2)
        ranks.append(share.rank)
    assert ranks == [0, 1, 1, 2, 2]


def test_shares_correct_what_was_charged() -> None:
    """The end of a job corrects its charge up or down."""
    it = Shares()
    share = it.of("t", 2.0)
    it.charge(share, 1000.0)
    it.correct(share, -600.0)
    assert share.counter == 200.0


def test_shares_lift_a_tenant_that_comes_back_to_those_at_work() -> None:
    """Idle time is not saved up: a returning tenant is one step ahead, no more."""
    it = Shares()
    busy, idle = it.of("busy", 1.0), it.of("idle", 1.0)
    it.joined(busy)
    for _ in range(100):
        it.charge(busy, 1000.0)
    it.joined(idle)
    assert idle.counter == pytest.approx(99_000.0 - SLACK_TOKENS)
    assert idle.rank < busy.rank


def test_shares_do_not_lift_a_tenant_that_is_still_waiting() -> None:
    """A second job is no return, and a tenant that is ahead already is not pulled back."""
    it = Shares()
    share, other = it.of("t", 1.0), it.of("other", 1.0)
    it.joined(share)
    it.joined(other)
    for _ in range(10):
        it.charge(other, 1000.0)
    it.joined(share)
    assert share.counter == 0.0
    it.left(other)
    it.joined(other)
    assert other.counter == 10_000.0


def test_shares_do_not_owe_for_ever_to_a_tenant_kept_back() -> None:
    """A tenant that its own cap held for long is paid a few steps, not all of it."""
    it = Shares()
    held_back, other = it.of("held_back", 1.0), it.of("other", 1.0)
    it.joined(held_back)
    it.joined(other)
    for _ in range(100):
        it.charge(other, 1000.0)
    it.charge(held_back, 10.0)
    assert held_back.counter == pytest.approx(99_000.0 - 4 * SLACK_TOKENS + 10.0)


def test_shares_inherit_counters_by_name() -> None:
    """After a reload the counters stay and the weights are the new ones."""
    old, new = Shares(), Shares()
    old.charge(old.of("t", 1.0), 5000.0)
    old.charge(old.of("t", 1.0), 5000.0)
    share = new.of("t", 4.0)
    new.inherit(old)
    assert new.of("t", 4.0) is share, "whose queues know it"
    assert (share.counter, share.weight, new.floor) == (10_000.0, 4.0, 5000.0)


def test_shares_rank_below_zero_in_the_same_steps() -> None:
    """A tenant charged too much may come below all; the step around zero is no wider."""
    it = Shares()
    share = it.of("t", 1.0)
    ranks = []
    for tokens in (100.0, -200.0, -SLACK_TOKENS, SLACK_TOKENS, 200.0):
        it.correct(share, tokens)
        ranks.append(share.rank)
        it.check({})
    assert ranks == [0, -1, -2, -1, 0]


def test_shares_weigh_tenants_that_wait() -> None:
    """Each waiting tenant counts once, however many jobs it has; `check` sees another sum."""
    it = Shares()
    one, two = it.of("one", 1.0), it.of("two", 2.5)
    seen = []
    for step, share in ((it.joined, one), (it.joined, two), (it.joined, two)):
        step(share)
        seen.append(it.weight)
    assert seen == [1.0, 3.5, 3.5]
    it.check({"one": 1, "two": 2})
    for wrong in (0.99, 1.01, 2.0):
        it.weight *= wrong
        with pytest.raises(AssertionError):
            it.check({"one": 1, "two": 2})
        it.weight /= wrong
    with pytest.raises(AssertionError):
        it.check({"one": 1, "two": 1})
    it.left(two)
    it.left(two)
    assert it.weight == 1.0
    with pytest.raises(AssertionError):
        it.left(two)


def test_shares_floor_is_of_the_tenant_served_last() -> None:
    """The floor rises with the tenants served and never falls for one that lies behind."""
    it = Shares()
    ahead, behind = it.of("ahead", 1.0), it.of("behind", 1.0)
    it.joined(ahead)
    it.joined(behind)
    floors = []
    for share in (ahead, ahead, behind, ahead):
        it.charge(share, 600.0)
        floors.append(it.floor)
    assert floors == [0.0, 600.0, 600.0, 1200.0]
    it.correct(ahead, -5000.0)
    assert it.floor == 1200.0
