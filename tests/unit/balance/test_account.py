from __future__ import annotations

import pytest

from gateway.balance.account import ENDLESS, Account
from gateway.balance.window import Window
from gateway.types import Reason, Verdict
from tests.unit.balance.driver import Driver
from tests.unit.schedule.build import settings


def test_account_burst_of_429_cuts_and_rests_once() -> None:
    """One episode: the limit falls once, and the rest is not begun anew by each answer."""
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
        account.window_by_model = account.windows
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
