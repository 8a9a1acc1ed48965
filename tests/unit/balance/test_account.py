from __future__ import annotations

import pytest

from gateway.balance.account import ENDLESS, Account
from gateway.balance.window import Window
from gateway.types import Reason, Verdict
from tests.unit.balance.driver import Driver
from tests.unit.schedule.build import settings


def test_account_burst_of_429_cuts_and_rests_once() -> None:
    """Five 429s of one episode cut the limit once, and only the first begins the rest."""
    it = Driver()
    leases = [it.take() for _ in range(10)]
    for lease in leases:
        it.end(lease, Verdict.RATE_LIMITED)
        it.now += 0.1
    assert it.account.limit.cuts == 1
    assert it.account.health.until_s == 2.0
    assert it.account.drops == {Verdict.RATE_LIMITED: 10}


@pytest.mark.parametrize("verdict", [Verdict.SERVER_ERROR, Verdict.UNREACHABLE])
def test_account_fault_of_the_server_does_not_cut_the_limit(verdict: Verdict) -> None:
    """5xx and broken connections leave the limit alone: they say nothing about load."""
    it = Driver()
    it.once(verdict)
    assert (it.account.limit.value, it.account.limit.cuts) == (16, 0)


def test_account_timeout_cuts_and_counts_as_a_failure() -> None:
    """A time-out cuts the limit and counts as a failure: the provider is overloaded or down."""
    it = Driver()
    for _ in range(3):
        it.once(Verdict.TIMEOUT)
    assert it.account.limit.cuts == 3
    assert it.state == "ejected"


def test_account_at_its_ceiling_or_ahead_of_its_pace_is_blocked() -> None:
    """The limit is asked before the pacer, and the pacer gives a time."""
    it = Driver(initial_concurrency=1, rpm=6)
    it.take()
    assert it.reason is Reason.ACCOUNT_LIMIT
    it = Driver(rpm=6)
    it.take()
    blocked = it.account.blocked(0.0)
    assert blocked is not None
    assert (blocked.reason, blocked.until_s) == (Reason.PACER, 9.0)


def test_account_widens_its_windows_where_forecasts_are_not_trusted() -> None:
    """Without trust a window is widened by half, express slots on top, within the limit, and the
    snapshot shows it; with full trust it is not."""
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
        account.window_by_model = account.windows
        (seen,) = account.snapshot(0.0).windows
        assert seen.window == min(8 * (1.5 - 0.5 * trust), ceiling)
        assert account.room == seen.window


def test_account_without_windows_widens_nothing() -> None:
    """With `window = "off"` the limit alone counts, whatever the trust."""
    it = Driver(initial_concurrency=8, max_concurrency=8)
    it.account.trust(0.0)
    assert (it.account.room, it.account.snapshot(0.0).windows) == (8, ())
    while it.account.blocked(0.0) is None:
        it.take()
    assert it.account.inflight == 8


def test_account_takes_what_only_a_window_refuses() -> None:
    """`takes` is true while limit, pace and health allow a request: another model may have room."""
    it = Driver(initial_concurrency=1)
    assert it.account.takes(0.0)
    lease = it.take()
    assert not it.account.takes(0.0)
    it.end(lease, Verdict.RATE_LIMITED, after=5.0)
    assert [it.account.takes(now) for now in (4.0, 5.0)] == [False, True]


def test_account_gives_back_tokens_that_were_not_generated() -> None:
    """An attempt that was refused or reached nobody used no tokens; an answered one used its
    count."""
    for verdict, used, free_s in (
        (Verdict.RATE_LIMITED, None, -1.0),
        (Verdict.SUCCESS, 4.0, 3.0),
        (Verdict.SERVER_ERROR, None, 9.0),
    ):
        it = Driver(tpm=60)
        it.end(it.take(), verdict, used=used)
        assert it.account.pacer.free_s == free_s, verdict


def test_account_that_has_done_nothing_shows_so() -> None:
    """A fresh account's snapshot is open, with nothing in flight, counted or learned."""
    seen = Driver(initial_concurrency=5).account.snapshot(7.0)
    assert (seen.name, seen.limit, seen.inflight) == ("a", 5.0, 0)
    assert (seen.state, seen.state_until_s) == ("open", 0.0)
    assert (seen.successes, seen.drops, seen.cuts, seen.rpm, seen.tpm) == (0, {}, 0, 0, 0)


def test_account_counts_successes_and_drops_by_verdict() -> None:
    """A client that left is neither a success nor a drop, and a snapshot does not change later."""
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


def test_account_takes_the_limits_of_a_reload() -> None:
    """New bounds, pace and `eject_after` hold from the reload on."""
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
    """With `window = "watch"` headers, rests and limits hold nothing back; the settings' pace
    does."""
    given = settings({"a": {"initial_concurrency": 1, "rpm": 6}}, balance={"window": "watch"})
    it = Account(given.accounts[0], given.balance)
    it.take(1, 10.0, 0.0)
    blocked = it.blocked(1.0)
    assert blocked is not None
    assert (blocked.reason, blocked.until_s) == (Reason.PACER, 9.0)
    assert it.blocked(9.0) is None, "its one slot is taken, which is not asked"
    assert it.room == ENDLESS


def test_account_scores_by_its_load_after_one_more() -> None:
    """The score is (in flight + 1) / (limit × weight), with the smaller of limit and window."""
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
