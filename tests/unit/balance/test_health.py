"""Health, tested through the account that owns it."""

from __future__ import annotations

from math import inf

import pytest

from gateway.balance.health import MIN_BACKOFF_S, TRANSITIONS, HealthSignal, HealthState
from gateway.types import Reason, Verdict
from tests.unit.balance.driver import Driver


def test_account_rests_for_the_providers_retry_after() -> None:
    """Retry-After of a 429 is the length of the rest, after which the account is open at once."""
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
    """A rest is the default without Retry-After, at most max_backoff_s, and never 0."""
    it = Driver()
    it.once(Verdict.OVERLOADED, after)
    assert it.account.health.until_s == rest


def test_account_extends_its_rest_by_a_later_retry_after() -> None:
    """A Retry-After of an old request extends a rest and never shortens it."""
    it = Driver()
    one, two, three = it.take(), it.take(), it.take()
    it.end(one, Verdict.RATE_LIMITED, 5.0)
    it.end(two, Verdict.RATE_LIMITED, 20.0)
    it.end(three, Verdict.RATE_LIMITED, 1.0)
    assert it.account.health.until_s == 20.0


def test_account_is_ejected_after_failures_in_a_row() -> None:
    """eject_after failures without a success between them eject the account."""
    it = Driver()
    it.fail(2)
    it.once(Verdict.SUCCESS)
    it.fail(2)
    assert it.state == "open"
    it.fail(1)
    assert (it.state, it.reason) == ("ejected", Reason.HEALTH)


def test_account_lets_one_probe_through_when_its_ejection_ends() -> None:
    """Half open, one probe is let through, and its success opens the account."""
    it = Driver()
    it.fail(3)
    it.now = 30.0
    assert (it.state, it.reason) == ("half_open", None)
    probe = it.take()
    assert it.reason is Reason.HEALTH
    it.end(probe, Verdict.SUCCESS)
    assert (it.state, it.reason) == ("open", None)


def test_account_is_ejected_longer_each_time() -> None:
    """An ejection lasts eject_s × the number of ejections, at most max_eject_s; a success starts
    over."""
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


def test_account_probe_without_a_verdict_makes_room_for_another() -> None:
    """A probe whose client left leaves the account half open for another."""
    it = Driver()
    it.fail(3)
    it.now = 30.0
    it.once(Verdict.IGNORED)
    assert (it.state, it.reason) == ("half_open", None)


def test_account_ignores_requests_older_than_its_state() -> None:
    """The end of a request from before the ejection changes nothing."""
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
    """A late 429 with Retry-After does not open a half-open account."""
    it = Driver()
    late = it.take()
    it.fail(3)
    it.now = 30.0
    assert it.state == "half_open"
    it.end(late, Verdict.RATE_LIMITED, 1.0)
    assert it.state == "half_open"


def test_account_with_a_refused_key_is_out_and_probed_later() -> None:
    """A refused key is out for dead_key_s, then probed once; refused again, it is out again."""
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
    """A reload probes a refused key, and ends of older requests are ignored."""
    it = Driver()
    old = it.take()
    it.once(Verdict.DEAD_KEY)
    it.account.configure(it.account.settings, it.balance, it.next)
    assert (it.state, it.reason) == ("half_open", None)
    it.end(old, Verdict.DEAD_KEY)
    assert it.state == "half_open"


def test_account_that_was_removed_drains() -> None:
    """A removed account finishes its leases and takes nothing, however they end."""
    it = Driver()
    lease = it.take()
    it.account.remove()
    assert it.reason is Reason.HEALTH
    it.end(lease, Verdict.DEAD_KEY)
    assert it.state == "draining"


def test_account_shows_how_long_its_state_still_lasts() -> None:
    """A snapshot has the seconds until the state ends; a probe and draining have no such time."""
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


def test_account_success_before_a_refused_key_shortens_no_ejection() -> None:
    """A success from before a refused key does not shorten the next ejection."""
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
    """A Retry-After of an older request extends an ejection and never shortens it."""
    it = Driver()
    one, two = it.take(), it.take()
    it.fail(3)
    it.end(one, Verdict.OVERLOADED, 100.0)
    assert (it.state, it.account.health.until_s) == ("ejected", 100.0)
    it.end(two, Verdict.OVERLOADED, 1.0)
    assert it.account.health.until_s == 100.0


def test_account_heals_at_the_end_of_its_state() -> None:
    """An account heals now, when its rest ends, or never if only an operator can help."""
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
    """The table has no dead end but draining, which a reload ends."""
    assert set(TRANSITIONS.values()) == set(HealthState)
    for state in HealthState:
        assert any(a is state and b is not state for (a, _), b in TRANSITIONS.items()), state
    assert {signal for _, signal in TRANSITIONS} == set(HealthSignal)


def test_account_shows_no_end_of_a_state_that_time_does_not_end() -> None:
    """Open, half-open and draining accounts have no time at which they change."""
    it = Driver()
    assert it.account.health.until_s == inf
    it.fail(3)
    it.now = 30.0
    assert (it.state, it.account.health.until_s) == ("half_open", inf)
    it.once(Verdict.SUCCESS)
    assert (it.state, it.account.health.until_s) == ("open", inf)
    it.account.remove()
    assert (it.state, it.account.health.until_s) == ("draining", inf)


def test_account_success_before_an_ejection_shortens_no_later_one() -> None:
    """A success from before an ejection does not begin the count of ejections anew."""
    it = Driver()
    old = it.take()
    it.fail(3)
    it.end(old, Verdict.SUCCESS)
    it.now = 30.0
    it.once(Verdict.UNREACHABLE)
    assert it.account.health.until_s - it.now == 60.0


def test_account_failures_before_a_refused_key_lengthen_no_ejection() -> None:
    """Requests that began before a key was refused and fail after it are not counted."""
    it = Driver()
    old = [it.take() for _ in range(3)]
    it.once(Verdict.DEAD_KEY)
    for lease in old:
        it.end(lease, Verdict.SERVER_ERROR)
    it.now = 300.0
    it.once(Verdict.UNREACHABLE)
    assert it.account.health.until_s - it.now == 30.0


def test_account_failures_before_a_rest_eject_nobody_after_it() -> None:
    """Requests that began before a rest and fail after it are not counted."""
    it = Driver()
    old = [it.take() for _ in range(3)]
    it.once(Verdict.RATE_LIMITED, after=7.0)
    it.now = 8.0
    for lease in old:
        it.end(lease, Verdict.SERVER_ERROR)
    assert it.state == "open"
    it.fail(2)
    assert it.state == "open"
    it.fail(1)
    assert it.state == "ejected"


def test_account_that_its_probe_opens_ignores_requests_older_than_that() -> None:
    """A request that was taken over while the account was ejected says nothing once it is open."""
    it = Driver()
    it.fail(3)
    over, it.next = it.next, it.next + 1
    it.account.take(over, 10.0, it.now)
    it.now = 30.0
    it.once(Verdict.SUCCESS)
    it.end(over, Verdict.DEAD_KEY)
    assert it.state == "open"


def test_account_that_a_reload_brings_back_ignores_requests_older_than_that() -> None:
    """A success from before the reload does not begin the count of ejections anew, also if the
    account is removed once more."""
    it = Driver()
    it.fail(3)
    it.now = 30.0
    it.once(Verdict.RATE_LIMITED, after=7.0)
    it.now = 40.0
    old = it.take()
    for _ in range(2):
        it.account.remove()
        it.account.configure(it.account.settings, it.balance, it.next)
    it.account.remove()
    it.end(old, Verdict.SUCCESS)
    it.account.configure(it.account.settings, it.balance, it.next)
    it.once(Verdict.UNREACHABLE)
    assert it.account.health.until_s - it.now == 60.0
