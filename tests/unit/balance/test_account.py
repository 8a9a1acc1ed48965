from __future__ import annotations

from typing import Any

import pytest

from gateway.balance.account import (
    ENDLESS,
    MIN_BACKOFF_S,
    TRANSITIONS,
    Account,
    Signal,
    State,
)
from gateway.balance.window import Window
from gateway.settings.schema import Balance
from gateway.types import Reason, Verdict
from tests.unit.schedule.build import settings


class Driver:
    """An account with its lease numbers."""

    def __init__(self, **fields: Any) -> None:
        given = settings({"a": fields}, balance={"eject_after": 3})
        self.balance: Balance = given.balance
        self.account = Account(given.accounts[0], given.balance)
        self.next = 1
        self.now = 0.0

    def take(self, tokens: float = 10.0) -> int:
        assert self.account.blocked(self.now) is None
        lease, self.next = self.next, self.next + 1
        self.account.take(lease, tokens, self.now)
        return lease

    def end(
        self, lease: int, verdict: Verdict, after: float | None = None, used: float | None = None
    ) -> None:
        self.account.give_back(
            lease,
            verdict,
            charged=10.0,
            actual=used,
            retry_after_s=after,
            next_lease=self.next,
            now=self.now,
        )
        self.account.check()

    def once(self, verdict: Verdict, after: float | None = None) -> None:
        self.end(self.take(), verdict, after)

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.once(Verdict.SERVER_ERROR)

    @property
    def state(self) -> str:
        return self.account.snapshot(self.now).state

    @property
    def reason(self) -> Reason | None:
        blocked = self.account.blocked(self.now)
        return blocked.reason if blocked else None


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
    assert it.account.until_s == rest


def test_account_burst_of_429_cuts_and_rests_once() -> None:
    """One episode: the limit falls once, and the rest is not begun anew by each answer."""
    it = Driver()
    leases = [it.take() for _ in range(10)]
    for lease in leases:
        it.end(lease, Verdict.RATE_LIMITED)
        it.now += 0.1
    assert it.account.limit.cuts == 1
    assert it.account.until_s == 2.0
    assert it.account.drops == {Verdict.RATE_LIMITED: 10}


def test_account_extends_its_rest_by_a_later_retry_after() -> None:
    """A Retry-After speaks of the future, however old its request is; it never shortens."""
    it = Driver()
    one, two, three = it.take(), it.take(), it.take()
    it.end(one, Verdict.RATE_LIMITED, 5.0)
    it.end(two, Verdict.RATE_LIMITED, 20.0)
    it.end(three, Verdict.RATE_LIMITED, 1.0)
    assert it.account.until_s == 20.0


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
        rests.append(it.account.until_s - it.now)
        it.now = it.account.until_s
        it.once(Verdict.UNREACHABLE)
    assert rests[:3] == [30.0, 60.0, 90.0]
    assert rests[-1] == 300.0
    it.now = it.account.until_s
    it.once(Verdict.SUCCESS)
    it.fail(3)
    assert it.account.until_s - it.now == 30.0


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
    assert (it.state, it.account.until_s) == ("ejected", 30.0)
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
    assert it.account.heals_s(it.now) == float("inf")
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


@pytest.mark.parametrize("verdict", [Verdict.SERVER_ERROR, Verdict.UNREACHABLE])
def test_account_fault_of_the_server_does_not_cut_the_limit(verdict: Verdict) -> None:
    """5xx and broken connections say nothing about load."""
    it = Driver()
    it.once(verdict)
    assert (it.account.limit.value, it.account.limit.cuts) == (16, 0)


def test_account_timeout_cuts_and_counts_as_a_failure() -> None:
    """A provider that does not answer has too much, or is down."""
    it = Driver()
    for _ in range(3):
        it.once(Verdict.TIMEOUT)
    assert it.account.limit.cuts == 3
    assert it.state == "ejected"


def test_account_at_its_ceiling_or_ahead_of_its_pace_is_blocked() -> None:
    """The ceiling is asked before the pacer, which says until when."""
    it = Driver(initial_concurrency=1, rpm=6)
    it.take()
    assert it.reason is Reason.ACCOUNT_LIMIT
    it = Driver(rpm=6)
    it.take()
    blocked = it.account.blocked(0.0)
    assert blocked is not None
    assert (blocked.reason, blocked.until_s) == (Reason.PACER, 9.0)


def test_account_widens_its_windows_where_forecasts_are_not_trusted() -> None:
    """By half at most, the slots for the express on top, never above the limit; seen in the
    snapshot. In full trust nothing changes."""
    for trust, ceiling, express, given in (
        (1.0, 64, False, 8),
        (0.5, 64, False, 10),
        (0.0, 64, False, 12),
        (0.0, 64, True, 15),
        (0.0, 9, False, 9),
    ):
        it = Driver(initial_concurrency=8, max_concurrency=64)
        account, window = it.account, it.account.windows["m"]
        account.limit.configure(1, ceiling, 0.75)
        account.limit.value = float(ceiling)
        account.trust(trust)
        while account.blocked(0.0, window, express=express) is None:
            window.take(0.0)
            it.take()
        assert window.inflight == given
        account.window_of = account.windows
        (seen,) = account.snapshot(0.0).windows
        assert seen.window == min(8 * (1.5 - 0.5 * trust), ceiling)
        assert account.room == seen.window


def test_account_without_windows_widens_nothing() -> None:
    """`window = "off"`: the limit alone, whatever the trust."""
    it = Driver(initial_concurrency=8, max_concurrency=8)
    it.account.trust(0.0)
    assert (it.account.room, it.account.snapshot(0.0).windows) == (8, ())
    while it.account.blocked(0.0) is None:
        it.take()
    assert it.account.inflight == 8


def test_account_takes_what_only_a_window_refuses() -> None:
    """Limit, pace and health let it in: then another model's request may fit."""
    it = Driver(initial_concurrency=1)
    assert it.account.takes(0.0)
    lease = it.take()
    assert not it.account.takes(0.0)
    it.end(lease, Verdict.RATE_LIMITED, after=5.0)
    assert [it.account.takes(now) for now in (4.0, 5.0)] == [False, True]


def test_account_gives_back_tokens_that_were_not_generated() -> None:
    """A refused or unreachable attempt used none; an answered one what it says."""
    for verdict, used, free_s in (
        (Verdict.RATE_LIMITED, None, -1.0),
        (Verdict.SUCCESS, 4.0, 3.0),
        (Verdict.SERVER_ERROR, None, 9.0),
    ):
        it = Driver(tpm=60)
        it.end(it.take(), verdict, used=used)
        assert it.account.pacer.free_s == free_s, verdict


def test_account_that_was_removed_drains() -> None:
    """It finishes what it has and takes nothing, whatever its leases say."""
    it = Driver()
    lease = it.take()
    it.account.remove()
    assert it.reason is Reason.HEALTH
    it.end(lease, Verdict.DEAD_KEY)
    assert it.state == "draining"


def test_account_that_has_done_nothing_shows_so() -> None:
    """Open, nothing in flight, nothing counted, no limit learned."""
    seen = Driver(initial_concurrency=5).account.snapshot(7.0)
    assert (seen.name, seen.limit, seen.inflight) == ("a", 5.0, 0)
    assert (seen.state, seen.state_until_s) == ("open", 0.0)
    assert (seen.successes, seen.drops, seen.cuts, seen.rpm, seen.tpm) == (0, {}, 0, 0, 0)


def test_account_counts_successes_and_drops_by_verdict() -> None:
    """A client that left is neither; the snapshot is no view of the live counts."""
    it = Driver()
    before = it.account.snapshot(0.0)
    for verdict in (Verdict.SUCCESS, Verdict.IGNORED, Verdict.SUCCESS, Verdict.SERVER_ERROR):
        it.once(verdict)
    it.once(Verdict.TIMEOUT)
    it.once(Verdict.DEAD_KEY)
    seen = it.account.snapshot(0.0)
    assert (seen.successes, seen.cuts) == (2, 1)
    assert seen.drops == {Verdict.SERVER_ERROR: 1, Verdict.TIMEOUT: 1, Verdict.DEAD_KEY: 1}
    assert before.drops == {}


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
        it.now = it.account.until_s
        it.once(Verdict.UNREACHABLE)
    it.now = it.account.until_s
    it.once(Verdict.DEAD_KEY)
    it.end(old, Verdict.SUCCESS)
    it.now = it.account.until_s
    it.once(Verdict.UNREACHABLE)
    assert it.account.until_s - it.now == 4 * 30.0


def test_account_takes_the_limits_of_a_reload() -> None:
    """Ceiling, pace, patience with failures: the new ones, from now on."""
    it = Driver()
    it.fail(2)
    given = settings(
        {"a": {"rpm": 6, "tpm": 60, "initial_concurrency": 4}}, balance={"eject_after": 2}
    )
    it.account.configure(given.accounts[0], given.balance, it.next)
    it.account.check()
    assert it.account.limit.value == 4
    assert it.state == "open", "one failure is forgiven rather than one too many held"
    it.take(tokens=120.0)
    assert it.account.pacer.requests.free_s == 9.0
    assert it.account.pacer.tokens.free_s == 119.0
    it.now = 119.0
    it.once(Verdict.UNREACHABLE)
    assert it.state == "ejected"


def test_account_that_only_watches_keeps_the_settings_pace() -> None:
    """Headers, rests and limits hold nobody; what the operator wrote does."""
    given = settings({"a": {"initial_concurrency": 1, "rpm": 6}}, balance={"window": "watch"})
    it = Account(given.accounts[0], given.balance)
    it.take(1, 10.0, 0.0)
    blocked = it.blocked(1.0)
    assert blocked is not None
    assert (blocked.reason, blocked.until_s) == (Reason.PACER, 9.0)
    assert it.blocked(9.0) is None, "its one slot is taken, which is not asked"
    assert it.room == ENDLESS


def test_account_extends_an_ejection_by_a_retry_after() -> None:
    """An answer from before it, but about the future; it never shortens one."""
    it = Driver()
    one, two = it.take(), it.take()
    it.fail(3)
    it.end(one, Verdict.OVERLOADED, 100.0)
    assert (it.state, it.account.until_s) == ("ejected", 100.0)
    it.end(two, Verdict.OVERLOADED, 1.0)
    assert it.account.until_s == 100.0


def test_account_says_when_it_heals() -> None:
    """Now while it serves or a probe runs; when its rest ends; never where only people help."""
    it = Driver()
    assert it.account.heals_s(5.0) == 5.0
    it.once(Verdict.RATE_LIMITED, after=7.0)
    assert (it.account.heals_s(5.0), it.account.heals_s(7.0)) == (7.0, 7.0)
    it.now = 7.0
    it.fail(3)
    assert it.account.heals_s(8.0) == 37.0
    assert it.account.heals_s(40.0) == 40.0
    it.account.remove()
    assert it.account.heals_s(50.0) == float("inf")


def test_account_scores_by_its_load_after_one_more() -> None:
    """Over limit × weight; with a window over the smaller of both, whose load may be others'."""
    it = Driver(initial_concurrency=8, weight=2.0).account
    assert it.score(None) == 1 / 16
    it.take(1, 1.0, 0.0)
    assert it.score(None) == 2 / 16
    window = Window("m", 4)
    assert window.value == 4
    assert it.score(window) == pytest.approx((0.5 + 1) / (4 * 2)), "one of eight in flight"
    window.take(0.0)
    assert it.score(window) == pytest.approx(2 / 8)
    wide = Window("m", 100)
    assert it.score(wide) == pytest.approx((100 / 8 + 1) / (8 * 2)), "the limit is the smaller"


def test_transitions_reach_every_state_and_leave_every_state() -> None:
    """The table has no dead end but draining, whose way back is a reload."""
    assert set(TRANSITIONS.values()) == set(State)
    for state in State:
        assert any(a is state and b is not state for (a, _), b in TRANSITIONS.items()), state
    assert {signal for _, signal in TRANSITIONS} == set(Signal)
