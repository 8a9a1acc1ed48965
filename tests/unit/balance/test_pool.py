from __future__ import annotations

from typing import Any

import pytest

from gateway.balance.pool import Accounts
from gateway.types import Blocked, Fit, Reason, Verdict
from tests.unit.schedule.build import settings


def accounts(**each: dict[str, Any]) -> Accounts:
    given = settings(each, balance={"eject_after": 1})
    return Accounts(given.accounts, given.balance)


def reconfigured(it: Accounts, **each: dict[str, Any]) -> None:
    given = settings(each, balance={"eject_after": 1})
    it.reconfigure(given.accounts, given.balance, 0.0)
    it.check()


def end(it: Accounts, account: str, verdict: Verdict, **more: Any) -> None:
    it.give_back(it.take(account, "m", 1.0, 0.0), verdict, now=0.0, **more)
    it.check()


def spread(it: Accounts, names: tuple[str, ...], times: int) -> list[str]:
    chosen = []
    for _ in range(times):
        fit = it.place("m", names, 0.0)
        assert isinstance(fit, Fit)
        it.take(fit.account, "m", 1.0, 0.0)
        chosen.append(fit.account)
    return chosen


def test_accounts_equal_ones_take_turns() -> None:
    """Ties go to the one used longest ago, also when nothing is in flight."""
    it = accounts(a={}, b={}, c={})
    assert spread(it, ("a", "b", "c"), 6) == ["a", "b", "c"] * 2
    for name in "ab":
        end(it, name, Verdict.SUCCESS)
    it = accounts(a={}, b={})
    for expected in ("a", "b", "a", "b"):
        fit = it.place("m", ("a", "b"), 0.0)
        assert fit == Fit(expected)
        end(it, expected, Verdict.IGNORED)


def test_accounts_share_by_limit_times_weight() -> None:
    """Twice the limit, or the weight, is twice the work."""
    it = accounts(a={"initial_concurrency": 20}, b={"initial_concurrency": 10})
    assert spread(it, ("a", "b"), 15).count("a") == 10
    it = accounts(a={"weight": 3.0}, b={})
    assert spread(it, ("a", "b"), 12).count("a") == 9


def test_accounts_blocked_for_the_reason_of_the_nearest() -> None:
    """Full is nearer than backoff, backoff nearer than ill; until the first that time heals."""
    it = accounts(a={"initial_concurrency": 1}, b={}, c={})
    it.take("a", "m", 1.0, 0.0)
    end(it, "b", Verdict.RATE_LIMITED, retry_after_s=9.0)
    end(it, "c", Verdict.SERVER_ERROR)
    assert it.place("m", ("c",), 0.0) == Blocked(Reason.HEALTH, 30.0)
    assert it.place("m", ("b", "c"), 0.0) == Blocked(Reason.ACCOUNT_BACKOFF, 9.0)
    assert it.place("m", ("a", "b", "c"), 0.0) == Blocked(Reason.ACCOUNT_LIMIT, 9.0)
    assert it.place("m", ("a", "b", "c"), 9.0) == Fit("b")


def test_accounts_avoided_ones_serve_only_at_need() -> None:
    """A full other account is waited for; one that is ill or resting is not."""
    it = accounts(a={}, b={"initial_concurrency": 1})
    avoid = frozenset({"a"})
    assert it.place("m", ("a", "b"), 0.0, avoid) == Fit("b")
    lease = it.take("b", "m", 1.0, 0.0)
    assert it.place("m", ("a", "b"), 0.0, avoid) == Blocked(Reason.ACCOUNT_LIMIT)
    it.give_back(lease, Verdict.RATE_LIMITED, now=0.0)
    assert it.place("m", ("a", "b"), 0.0, avoid) == Fit("a")
    assert it.place("m", ("a",), 0.0, avoid) == Fit("a")


def test_accounts_heal_when_the_first_one_does() -> None:
    """Now if one serves; never where only an operator can help."""
    it = accounts(a={}, b={}, c={})
    end(it, "a", Verdict.DEAD_KEY)
    end(it, "b", Verdict.SERVER_ERROR)
    assert it.heals_s(("a", "b", "c"), 1.0) == 1.0
    assert it.heals_s(("a", "b"), 1.0) == 30.0
    assert it.heals_s(("a",), 1.0) == float("inf")
    assert it.heals_s(("gone",), 1.0) == float("inf")
    it.take("b", "m", 1.0, 30.0)
    assert it.heals_s(("b",), 30.0) == 30.0, "its probe runs and may say so any moment"


def test_accounts_lease_comes_back_once() -> None:
    """A second time is an error of the caller."""
    it = accounts(a={})
    lease = it.take("a", "m", 1.0, 0.0)
    it.give_back(lease, Verdict.SUCCESS, now=0.0)
    with pytest.raises(KeyError):
        it.give_back(lease, Verdict.SUCCESS, now=0.0)


def test_accounts_keep_what_they_learned_over_a_reload() -> None:
    """By name: limit, leases, health; new settings hold from then on."""
    it = accounts(a={}, b={})
    lease = it.take("a", "m", 1.0, 0.0)
    end(it, "a", Verdict.RATE_LIMITED, retry_after_s=9.0)
    reconfigured(it, a={"max_concurrency": 50, "weight": 2.0}, n={"initial_concurrency": 3})
    seen = {s.name: s for s in it.snapshot(0.0)}
    assert list(seen) == ["a", "n"]
    assert (seen["a"].limit, seen["a"].inflight, seen["a"].state) == (12.0, 1, "backoff")
    assert seen["n"].limit == 3
    it.give_back(lease, Verdict.SUCCESS, now=0.0)
    it.check()


def test_accounts_removed_one_finishes_its_leases_and_goes() -> None:
    """It takes nothing new, and is forgotten with its last lease."""
    it = accounts(a={}, b={})
    lease = it.take("b", "m", 1.0, 0.0)
    reconfigured(it, a={})
    assert it.place("m", ("b",), 0.0) == Blocked(Reason.HEALTH)
    assert {s.name: s.state for s in it.snapshot(0.0)} == {"a": "open", "b": "draining"}
    it.give_back(lease, Verdict.SUCCESS, now=0.0)
    it.check()
    assert [s.name for s in it.snapshot(0.0)] == ["a"]


def test_accounts_removed_one_that_comes_back_keeps_its_leases() -> None:
    """Removed and named again before it had drained: one probe, then as before."""
    it = accounts(a={}, b={})
    lease = it.take("b", "m", 1.0, 0.0)
    reconfigured(it, a={})
    reconfigured(it, a={}, b={})
    assert it.place("m", ("b",), 0.0) == Fit("b")
    it.give_back(lease, Verdict.SUCCESS, now=0.0)
    end(it, "b", Verdict.SUCCESS)
    assert {s.name: s.state for s in it.snapshot(0.0)}["b"] == "open"


def test_accounts_load_counts_those_that_are_not_out_for_good() -> None:
    """In flight over limit, without refused keys; 0 where nothing is left."""
    it = accounts(a={"initial_concurrency": 4}, b={"initial_concurrency": 4})
    it.take("a", "m", 1.0, 0.0)
    it.take("a", "m", 1.0, 0.0)
    assert it.load(("a", "b")) == 0.25
    end(it, "b", Verdict.DEAD_KEY)
    assert it.load(("a", "b")) == 0.5
    assert it.load(("b",)) == 0.0


def test_accounts_check_sees_a_lost_lease() -> None:
    """The twin of every `check` that passes."""
    it = accounts(a={})
    it.take("a", "m", 1.0, 0.0)
    it.check()
    it._leases.clear()
    with pytest.raises(AssertionError):
        it.check()
