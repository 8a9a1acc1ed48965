"""Through the account, whose health it is."""

from __future__ import annotations

import pytest

from gateway.balance.health import MIN_BACKOFF_S, TRANSITIONS, HealthSignal, HealthState
from gateway.types import Reason, Verdict
from tests.unit.balance.driver import Driver


def test_account_rests_as_long_as_the_provider_says() -> None:
    """Retry-After of a 429 is honoured, then the account is open at once."""
    it = Driver()
    it.once(Verdict.RATE_LIMITED, after=7.0)
    assert (it.state, it.reason) == ("backoff", Reason.ACCOUNT_BACKOFF)
    it.now = 6.9
    assert it.reason is Reason.ACCOUNT_BACKOFF
    it.now = 7.0
    assert (it.state, it.reason) == ("open", None)


@pytest.mark.parametrize(
    ("after", "rest"), [(None, 2.0), (1e9, 300.0), (0.0, MIN_BACKOFF_S), (-5.0, MIN_BACKOFF_S)]
)
def test_account_bounds_its_rest(after: float | None, rest: float) -> None:
    """Without Retry-After the default; never longer than max_backoff_s, never nothing."""
    it = Driver()
    it.once(Verdict.OVERLOADED, after)
    assert it.account.health.until_s == rest


def test_account_extends_its_rest_by_a_later_retry_after() -> None:
    """A Retry-After speaks of the future, however old its request is; it never shortens."""
    it = Driver()
    one, two, three = it.take(), it.take(), it.take()
    it.end(one, Verdict.RATE_LIMITED, 5.0)
    it.end(two, Verdict.RATE_LIMITED, 20.0)
    it.end(three, Verdict.RATE_LIMITED, 1.0)
    assert it.account.health.until_s == 20.0


def test_account_is_ejected_after_failures_in_a_row() -> None:
    """eject_after failures without a success between them."""
    it = Driver()
    it.fail(2)
    it.once(Verdict.SUCCESS)
    it.fail(2)
    assert it.state == "open"
    it.fail(1)
    assert (it.state, it.reason) == ("ejected", Reason.HEALTH)


def test_account_lets_one_probe_through_when_its_ejection_ends() -> None:
    """half_open: a single probe, whose success opens the account."""
    it = Driver()
    it.fail(3)
    it.now = 30.0
    assert (it.state, it.reason) == ("half_open", None)
    probe = it.take()
    assert it.reason is Reason.HEALTH
    it.end(probe, Verdict.SUCCESS)
    assert (it.state, it.reason) == ("open", None)


def test_account_is_ejected_longer_each_time() -> None:
    """eject_s × the number of ejections, at most max_eject_s; a success starts over."""
    it = Driver()
    it.fail(3)
    rests = []
    for _ in range(12):
        rests.append(it.account.health.until_s - it.now)
        it.now = it.account.health.until_s
        it.once(Verdict.UNREACHABLE)
    assert rests[:3] == [30.0, 60.0, 90.0]
    assert rests[-1] == 300.0
    it.now = it.account.health.until_s
    it.once(Verdict.SUCCESS)
    it.fail(3)
    assert it.account.health.until_s - it.now == 30.0


def test_account_probe_that_says_nothing_makes_room_for_another() -> None:
    """The client left: the account stays half open."""
    it = Driver()
    it.fail(3)
    it.now = 30.0
    it.once(Verdict.IGNORED)
    assert (it.state, it.reason) == ("half_open", None)


def test_account_does_not_hear_requests_older_than_its_state() -> None:
    """A stream from before the ejection neither heals nor harms it."""
    it = Driver()
    good, bad, late, later = (it.take() for _ in range(4))
    it.fail(3)
    it.end(good, Verdict.SUCCESS)
    it.end(bad, Verdict.SERVER_ERROR)
    assert (it.state, it.account.health.until_s) == ("ejected", 30.0)
    it.now = 30.0
    it.end(late, Verdict.SUCCESS)
    assert it.state == "half_open"
    it.once(Verdict.SUCCESS)
    it.end(later, Verdict.DEAD_KEY)
    assert it.state == "open"


def test_account_is_not_opened_past_its_probe() -> None:
    """A late 429 with a Retry-After would lead to backoff, and from there to open."""
    it = Driver()
    late = it.take()
    it.fail(3)
    it.now = 30.0
    assert it.state == "half_open"
    it.end(late, Verdict.RATE_LIMITED, 1.0)
    assert it.state == "half_open"


def test_account_with_a_refused_key_is_out_and_probed_later() -> None:
    """dead_key for dead_key_s, then one probe; refused again, out again."""
    it = Driver()
    it.once(Verdict.DEAD_KEY)
    assert (it.state, it.reason) == ("dead_key", Reason.HEALTH)
    assert it.account.health.heals_s(it.now) == float("inf")
    it.now = 300.0
    assert it.state == "half_open"
    it.once(Verdict.DEAD_KEY)
    assert it.state == "dead_key"
    it.now = 600.0
    it.once(Verdict.SUCCESS)
    assert it.state == "open"


def test_account_with_a_refused_key_is_probed_after_a_reload() -> None:
    """The operator may have mended it; answers from before say nothing any more."""
    it = Driver()
    old = it.take()
    it.once(Verdict.DEAD_KEY)
    it.account.configure(it.account.settings, it.balance, it.next)
    assert (it.state, it.reason) == ("half_open", None)
    it.end(old, Verdict.DEAD_KEY)
    assert it.state == "half_open"


def test_account_that_was_removed_drains() -> None:
    """It finishes what it has and takes nothing, whatever its leases say."""
    it = Driver()
    lease = it.take()
    it.account.remove()
    assert it.reason is Reason.HEALTH
    it.end(lease, Verdict.DEAD_KEY)
    assert it.state == "draining"


def test_account_shows_how_long_its_state_still_lasts() -> None:
    """Seconds from now; a running probe and a draining have no end of their own."""
    it = Driver()
    it.once(Verdict.RATE_LIMITED, after=7.0)
    assert it.account.snapshot(3.0).state_until_s == 4.0
    it = Driver()
    it.fail(3)
    assert it.account.snapshot(10.0).state_until_s == 20.0
    it.now = 30.0
    it.take()
    assert it.account.snapshot(31.0).state_until_s == 0.0
    it = Driver()
    it.once(Verdict.DEAD_KEY)
    assert it.account.snapshot(100.0).state_until_s == 200.0
    it.account.remove()
    assert it.account.snapshot(100.0).state_until_s == 0.0


def test_account_that_hears_old_news_is_ejected_as_long_as_without() -> None:
    """A success from before the key was refused does not shorten the next ejection."""
    it = Driver()
    old = it.take()
    it.fail(3)
    for _ in range(2):
        it.now = it.account.health.until_s
        it.once(Verdict.UNREACHABLE)
    it.now = it.account.health.until_s
    it.once(Verdict.DEAD_KEY)
    it.end(old, Verdict.SUCCESS)
    it.now = it.account.health.until_s
    it.once(Verdict.UNREACHABLE)
    assert it.account.health.until_s - it.now == 4 * 30.0


def test_account_extends_an_ejection_by_a_retry_after() -> None:
    """An answer from before it, but about the future; it never shortens one."""
    it = Driver()
    one, two = it.take(), it.take()
    it.fail(3)
    it.end(one, Verdict.OVERLOADED, 100.0)
    assert (it.state, it.account.health.until_s) == ("ejected", 100.0)
    it.end(two, Verdict.OVERLOADED, 1.0)
    assert it.account.health.until_s == 100.0


def test_account_says_when_it_heals() -> None:
    """Now while it serves or a probe runs; when its rest ends; never where only people help."""
    it = Driver()
    assert it.account.health.heals_s(5.0) == 5.0
    it.once(Verdict.RATE_LIMITED, after=7.0)
    assert (it.account.health.heals_s(5.0), it.account.health.heals_s(7.0)) == (7.0, 7.0)
    it.now = 7.0
    it.fail(3)
    assert it.account.health.heals_s(8.0) == 37.0
    assert it.account.health.heals_s(40.0) == 40.0
    it.account.remove()
    assert it.account.health.heals_s(50.0) == float("inf")


def test_transitions_reach_every_state_and_leave_every_state() -> None:
    """The table has no dead end but draining, whose way back is a reload."""
    assert set(TRANSITIONS.values()) == set(HealthState)
    for state in HealthState:
        assert any(a is state and b is not state for (a, _), b in TRANSITIONS.items()), state
    assert {signal for _, signal in TRANSITIONS} == set(HealthSignal)
