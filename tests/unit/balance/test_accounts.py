from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from gateway.balance.accounts import Accounts
from gateway.balance.health import MIN_BACKOFF_S
from gateway.balance.saved_state import RESTORE_RATIO, SavedState
from gateway.types import Blocked, Fit, RateLimits, Reason, Verdict
from tests.unit.schedule.build import settings


def accounts(window: str = "off", **each: dict[str, Any]) -> Accounts:
    given = settings(each, balance={"eject_after": 1, "window": window})
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
        fit = it.choose("m", names, 0.0)
        assert isinstance(fit, Fit)
        it.take(fit.account, "m", 1.0, 0.0)
        chosen.append(fit.account)
    return chosen


def test_accounts_equal_ones_take_turns() -> None:
    """Of equal accounts the one used longest ago is chosen, also when nothing is in flight."""
    it = accounts(a={}, b={}, c={})
    assert spread(it, ("a", "b", "c"), 6) == ["a", "b", "c"] * 2
    for name in "ab":
        end(it, name, Verdict.SUCCESS)
    it = accounts(a={}, b={})
    for expected in ("a", "b", "a", "b"):
        fit = it.choose("m", ("a", "b"), 0.0)
        assert fit == Fit(expected)
        end(it, expected, Verdict.IGNORED)


def test_accounts_share_by_limit_times_weight() -> None:
    """Twice the limit, or twice the weight, gets twice the requests."""
    it = accounts(a={"initial_concurrency": 20}, b={"initial_concurrency": 10})
    assert spread(it, ("a", "b"), 15).count("a") == 10
    it = accounts(a={"weight": 3.0}, b={})
    assert spread(it, ("a", "b"), 12).count("a") == 9


def test_accounts_blocked_for_the_reason_of_the_nearest() -> None:
    """The reason is that of the account nearest to serving, and the time the earliest that
    heals."""
    it = accounts(a={"initial_concurrency": 1}, b={}, c={})
    it.take("a", "m", 1.0, 0.0)
    end(it, "b", Verdict.RATE_LIMITED, retry_after_s=9.0)
    end(it, "c", Verdict.SERVER_ERROR)
    assert it.choose("m", ("c",), 0.0) == Blocked(Reason.HEALTH, 30.0)
    assert it.choose("m", ("b", "c"), 0.0) == Blocked(Reason.ACCOUNT_BACKOFF, 9.0)
    assert it.choose("m", ("a", "b", "c"), 0.0) == Blocked(Reason.ACCOUNT_LIMIT, 9.0)
    assert it.choose("m", ("a", "b", "c"), 9.0) == Fit("b")


def test_accounts_avoided_ones_serve_only_at_need() -> None:
    """An avoided account serves only if the others are ill or resting; a full one is waited for."""
    it = accounts(a={}, b={"initial_concurrency": 1})
    avoid = frozenset({"a"})
    assert it.choose("m", ("a", "b"), 0.0, avoid) == Fit("b")
    lease = it.take("b", "m", 1.0, 0.0)
    assert it.choose("m", ("a", "b"), 0.0, avoid) == Blocked(Reason.ACCOUNT_LIMIT)
    it.give_back(lease, Verdict.RATE_LIMITED, now=0.0)
    assert it.choose("m", ("a", "b"), 0.0, avoid) == Fit("a")
    assert it.choose("m", ("a",), 0.0, avoid) == Fit("a")


def test_accounts_heal_when_the_first_one_does() -> None:
    """Accounts heal now if one serves, and never if only an operator can help."""
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
    """A lease that is given back twice raises."""
    it = accounts(a={})
    lease = it.take("a", "m", 1.0, 0.0)
    it.give_back(lease, Verdict.SUCCESS, now=0.0)
    with pytest.raises(KeyError):
        it.give_back(lease, Verdict.SUCCESS, now=0.0)


def test_accounts_keep_what_they_learned_over_a_reload() -> None:
    """An account of the same name keeps limit, leases and health under the new settings."""
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
    """A removed account takes nothing new and is dropped with its last lease."""
    it = accounts(a={}, b={})
    lease = it.take("b", "m", 1.0, 0.0)
    reconfigured(it, a={})
    assert it.choose("m", ("b",), 0.0) == Blocked(Reason.HEALTH)
    assert {s.name: s.state for s in it.snapshot(0.0)} == {"a": "open", "b": "draining"}
    it.give_back(lease, Verdict.SUCCESS, now=0.0)
    it.check()
    assert [s.name for s in it.snapshot(0.0)] == ["a"]


def test_accounts_removed_one_that_comes_back_keeps_its_leases() -> None:
    """An account configured again before it has drained is probed once, then serves as before."""
    it = accounts(a={}, b={})
    lease = it.take("b", "m", 1.0, 0.0)
    reconfigured(it, a={})
    reconfigured(it, a={}, b={})
    assert it.choose("m", ("b",), 0.0) == Fit("b")
    it.give_back(lease, Verdict.SUCCESS, now=0.0)
    end(it, "b", Verdict.SUCCESS)
    assert {s.name: s.state for s in it.snapshot(0.0)}["b"] == "open"


def test_accounts_load_counts_those_that_are_not_out_for_good() -> None:
    """Load leaves out accounts with a refused key, and is 0 if none is left."""
    it = accounts(a={"initial_concurrency": 4}, b={"initial_concurrency": 4})
    it.take("a", "m", 1.0, 0.0)
    it.take("a", "m", 1.0, 0.0)
    assert it.load(("a", "b")) == 0.25
    end(it, "b", Verdict.DEAD_KEY)
    assert it.load(("a", "b")) == 0.5
    assert it.load(("b",)) == 0.0


def test_accounts_check_sees_a_lost_lease() -> None:
    """The twin of every `check` that passes: a lost lease is found."""
    it = accounts(a={})
    it.take("a", "m", 1.0, 0.0)
    it.check()
    it._leases.clear()
    with pytest.raises(AssertionError):
        it.check()


def fill(it: Accounts, times: int, model: str = "m", **how: Any) -> int:
    """Numbers of requests per account, placed until blocked, at most `times`."""
    for n in range(times):
        fit = it.choose(model, ("a",), 0.0, **how)
        if not isinstance(fit, Fit):
            return n
        it.take("a", model, 1.0, 0.0)
    return times


WIDE = {"initial_concurrency": 8, "max_concurrency": 100}


def test_accounts_full_window_is_the_reason_before_the_limit() -> None:
    """A full window is the reason; express requests may use a quarter more, within the limit."""
    it = accounts("auto", a=WIDE | {"models": {"m": "up", "other": "o"}})
    it._accounts["a"].limit.restore(11.0, float("inf"))
    assert fill(it, 99) == 8
    assert it.choose("m", ("a",), 0.0) == Blocked(Reason.WINDOW)
    assert fill(it, 99, express=True) == 2
    assert it.choose("m", ("a",), 0.0, express=True) == Blocked(Reason.WINDOW)
    assert fill(it, 99, "other") == 1, "its own window has room, the account one slot"
    assert it.choose("other", ("a",), 0.0) == Blocked(Reason.ACCOUNT_LIMIT)
    it.check()


def test_accounts_window_belongs_to_the_providers_name() -> None:
    """Two names of one model share a window; a model that is not configured has none."""
    it = accounts("auto", a=WIDE | {"models": {"m": "up", "alias": "up"}})
    it._accounts["a"].limit.restore(50.0, float("inf"))
    assert fill(it, 4) + fill(it, 99, "alias") == 8
    assert fill(it, 99, "unknown") == 42
    assert [w.model for w in it.snapshot(0.0)[0].windows] == ["up"]


def test_accounts_without_windows_have_the_ceiling_alone() -> None:
    """With `window = "off"` the limit alone holds requests back."""
    it = accounts(a=WIDE)
    it._accounts["a"].limit.restore(20.0, float("inf"))
    assert fill(it, 99) == 20
    assert it.choose("m", ("a",), 0.0) == Blocked(Reason.ACCOUNT_LIMIT)
    assert it.snapshot(0.0)[0].windows == ()


def test_accounts_room_is_the_sum_of_windows_under_the_limits() -> None:
    """Room is the sum of windows within the limits, and load the share of it in flight."""
    it = accounts("auto", a=WIDE, b={"initial_concurrency": 4})
    it._accounts["a"].limit.restore(6.0, float("inf"))
    assert it.room(("a", "b")) == 10
    assert fill(it, 5) == 5
    assert it.load(("a", "b")) == 0.5


def work(it: Accounts, account: str, seconds: float, start: float) -> float:
    """Plays a few dozen requests of one size, one after the other; the time after."""
    now = start
    for _ in range(40):
        lease = it.take(account, "m", 200.0, now)
        now += seconds
        it.give_back(lease, Verdict.SUCCESS, tokens=200.0, output_tokens=100.0, now=now)
    return now


def test_accounts_prefer_the_faster_of_two_until_it_is_fuller() -> None:
    """An account twice as fast gets about twice the load; an unknown speed is ignored."""
    it = accounts("auto", a=WIDE, b=WIDE)
    now = work(it, "a", 1.0, 0.0)
    assert spread(it, ("a", "b"), 6).count("a") == 3, "b's speed is not known yet"
    it = accounts("auto", a=WIDE, b=WIDE)
    now = work(it, "b", 2.0, work(it, "a", 1.0, 0.0))
    chosen = [it.choose("m", ("a", "b"), now)]
    for _ in range(8):
        fit = it.choose("m", ("a", "b"), now)
        assert isinstance(fit, Fit)
        it.take(fit.account, "m", 1.0, now)
        chosen.append(fit)
    assert chosen[0] == Fit("a")
    assert chosen[1:].count(Fit("a")) in (5, 6)


def test_accounts_are_paced_by_an_answer_with_nothing_left() -> None:
    """An answer with nothing left paces the account until the reset; one without headers does
    not."""
    it = accounts(a={})
    lease = it.take("a", "m", 10.0, 0.0)
    it.answered(lease, None, 0.0)
    assert it.choose("m", ("a",), 0.0) == Fit("a")
    it.answered(lease, RateLimits(remaining_tokens=0, reset_tokens_s=1.5), 1.0)
    assert it.choose("m", ("a",), 1.0) == Blocked(Reason.PACER, 2.5)
    assert it.choose("m", ("a",), 2.5) == Fit("a")
    it.answered(99, RateLimits(remaining_tokens=0), 6.0)
    assert it.choose("m", ("a",), 6.0) == Fit("a"), "a lease that is gone says nothing"


def test_accounts_apply_a_header_to_its_own_model_alone() -> None:
    """Headers limit the provider's model they came for; settings limit the whole account."""
    it = accounts(a={"models": {"big": "x", "huge": "x", "small": "y"}})
    lease = it.take("a", "big", 10.0, 0.0)
    it.answered(lease, RateLimits(limit_requests=60, remaining_requests=0), 0.0)
    held = Blocked(Reason.PACER, 1.0)
    assert [it.choose(m, ("a",), 0.0) for m in ("big", "huge", "small")] == [held, held, Fit("a")]
    it = accounts(a={"models": ["big", "small"], "rpm": 60})
    for _ in range(3):
        it.take("a", "big", 10.0, 0.0)
    assert it.choose("small", ("a",), 0.0) == Blocked(Reason.PACER, 2.0)


def test_accounts_give_a_model_back_what_it_did_not_use() -> None:
    """Charged tokens are corrected on the model's limits too; a 429 used none."""
    for verdict, used, free_s in (
        (Verdict.SUCCESS, 6000.0, 5.0),
        (Verdict.RATE_LIMITED, None, 0.0),
    ):
        it = accounts(a={})
        first = it.take("a", "m", 1.0, 0.0)
        it.answered(first, RateLimits(limit_tokens=60_000, remaining_tokens=1000), 0.0)
        lease = it.take("a", "m", 60_000.0, 0.0)
        assert it.choose("m", ("a",), 0.0) == Blocked(Reason.PACER, 59.0)
        it.give_back(lease, verdict, tokens=used, retry_after_s=0.0, now=0.0)
        answer = it.choose("m", ("a",), MIN_BACKOFF_S)
        assert answer == (Blocked(Reason.PACER, free_s) if free_s else Fit("a"))


def test_accounts_snapshot_has_the_lowest_limit_and_each_models_own() -> None:
    """A snapshot has the lowest limit of settings and headers per account, and each model's own."""
    it = accounts("auto", a=WIDE | {"models": ["m", "n"], "tpm": 5000})
    for model, rpm, tpm in (("m", 500, 40_000), ("n", 100, 0)):
        lease = it.take("a", model, 1.0, 0.0)
        it.answered(lease, RateLimits(limit_requests=rpm, limit_tokens=tpm or None), 0.0)
    seen = it.snapshot(0.0)[0]
    assert (seen.rpm, seen.tpm) == (100, 5000)
    assert [(w.rpm, w.tpm) for w in seen.windows] == [(500, 40_000), (100, 0)]


def test_accounts_restore_passes_over_members_it_does_not_know() -> None:
    """Saved state of an earlier version is read: members it had besides are ignored."""
    old = b'{"accounts": [{"name": "a", "limit": 8.0, "ceiling": 1e9, "rpm": 500, "tpm": 0}]}'
    it = accounts(a={})
    assert it.restore(msgspec.json.decode(old, type=SavedState), 0.0) == 1
    assert it.snapshot(0.0)[0].limit == 8.0 * RESTORE_RATIO


def test_accounts_inherit_header_limits() -> None:
    """The core that follows a failed one keeps the header limits."""
    it = accounts(a={})
    it.answered(it.take("a", "m", 1.0, 0.0), RateLimits(60, 0, 1.0), 0.0)
    again = accounts(a={})
    again.restore(it.to_save(), 0.0)
    again.inherit(it)
    assert again.choose("m", ("a",), 0.0) == Blocked(Reason.PACER, 1.0)


def test_accounts_remember_what_they_learned_over_a_restart() -> None:
    """Limit at 0.7, ceiling, header limits and windows are restored by name, for an hour."""
    it = accounts("auto", a=WIDE, b=WIDE)
    work(it, "a", 1.0, 0.0)
    end(it, "a", Verdict.RATE_LIMITED)
    lease = it.take("a", "m", 1.0, 0.0)
    it.answered(lease, RateLimits(limit_requests=500, remaining_requests=400), 50.0)
    stored = msgspec.json.decode(msgspec.json.encode(it.to_save()), type=SavedState)
    again = accounts("auto", a=WIDE, c=WIDE)
    assert again.restore(stored, 3601.0) == again.restore(stored, -1.0) == 0
    assert again.snapshot(0.0)[0].limit == 8
    assert again.restore(stored, 60.0) == 1
    again.check()
    seen, new = again.snapshot(0.0)
    before = it.snapshot(0.0)[0]
    assert seen.limit == before.limit * 0.7
    assert again._accounts["a"].limit.ceiling == it._accounts["a"].limit.ceiling
    assert (seen.rpm, new.rpm) == (500, 0)
    assert again._accounts["a"].header_limits.limits_of("m") == (500, 0)
    assert seen.windows[0].window == round(before.windows[0].window * 0.7)
    assert seen.windows[0].output_token_s > 0.0
    assert (new.limit, new.windows[0].output_token_s) == (8, 0.0)


def test_accounts_keep_a_window_over_a_reload_and_drop_it_with_its_model() -> None:
    """A reload keeps a model's window under new bounds and drops that of a removed model."""
    it = accounts("auto", a=WIDE | {"models": ["m", "n"]})
    given = settings(
        {"a": WIDE | {"max_concurrency": 8, "models": ["m"]}}, balance={"window": "auto"}
    )
    kept = it._accounts["a"].windows["m"]
    lease = it.take("a", "n", 1.0, 0.0)
    it.reconfigure(given.accounts, given.balance, 0.0)
    assert it._accounts["a"].windows == {"m": kept}
    assert kept.bounds == (2, 8)
    it.give_back(lease, Verdict.SUCCESS, now=1.0)
    it.check()


def test_accounts_widen_windows_by_trust_over_a_reload_too() -> None:
    """An account added by a reload is widened like the others."""
    it = accounts("auto", a=WIDE)
    it.trust(0.0)
    given = settings({"a": WIDE, "b": WIDE}, balance={"window": "auto"})
    it.reconfigure(given.accounts, given.balance, 0.0)
    before = Accounts(given.accounts, given.balance).snapshot(0.0)
    for seen, plain in zip(it.snapshot(0.0), before, strict=True):
        assert seen.windows[0].window == min(1.5 * plain.windows[0].window, seen.limit)


def test_accounts_say_whether_an_end_matters_to_other_models() -> None:
    """An end matters to other models unless the account took requests before and still does."""
    for limit, verdict, wide in (
        (2, Verdict.SUCCESS, False),
        (2, Verdict.IGNORED, False),
        (2, Verdict.SERVER_ERROR, True),
        (1, Verdict.SUCCESS, True),
    ):
        it = accounts("auto", a={"initial_concurrency": limit, "models": ["m", "k"]})
        lease = it.take("a", "m", 1.0, 0.0)
        assert it.give_back(lease, verdict, now=1.0) is wide


def test_accounts_say_whether_headers_open_one() -> None:
    """`answered` is true only if headers let a paced account take requests sooner."""
    it = accounts(a={"initial_concurrency": 9})
    first, second, third = (it.take("a", "m", 1.0, 0.0) for _ in range(3))
    little, much, none = (RateLimits(limit_requests=60, remaining_requests=n) for n in (3, 50, 0))
    assert it.answered(first, little, 0.0) is False
    while isinstance(it.choose("m", ("a",), 0.0), Fit):
        it.take("a", "m", 1.0, 0.0)
    assert it.answered(second, None, 0.0) is False
    assert it.answered(third, much, 0.0) is True
    assert isinstance(it.choose("m", ("a",), 0.0), Fit)
    assert it.answered(third, none, 0.0) is False
    assert isinstance(it.choose("m", ("a",), 0.0), Blocked)


def test_accounts_teach_a_window_prompt_and_output_apart() -> None:
    """A window learns prompt and output tokens separately from their sum."""
    it = accounts("auto", a=WIDE)
    now, rng = 0.0, Random(4)
    for _ in range(200):
        prompt, output = rng.uniform(50, 900), rng.uniform(50, 900)
        lease = it.take("a", "m", prompt + output, now)
        now += 0.5 + 0.01 * prompt + 0.002 * output
        it.give_back(lease, Verdict.SUCCESS, tokens=prompt + output, output_tokens=output, now=now)
    (window,) = it.snapshot(now)[0].windows
    assert window.prompt_token_s == pytest.approx(0.01, rel=0.1)
    assert window.output_token_s == pytest.approx(0.002, rel=0.2)


def test_accounts_ask_the_window_also_where_a_job_has_failed() -> None:
    """A job whose only serving account has failed it waits for a slot of its model there."""
    it = accounts("auto", a=WIDE)
    it._accounts["a"].limit.restore(50.0, float("inf"))
    assert fill(it, 99) == 8
    assert it.choose("m", ("a",), 0.0, frozenset("a")) == Blocked(Reason.WINDOW)
    assert it.choose("other", ("a",), 0.0, frozenset("a")) == Fit("a")


def test_accounts_restore_what_is_at_most_an_hour_old() -> None:
    """Saved state is used from age 0 to an hour, not from the future."""
    stored = accounts(a={}).to_save()
    ages = (-0.1, 0.0, 3600.0, 3600.1)
    assert [accounts(a={}).restore(stored, age_s) for age_s in ages] == [0, 1, 1, 0]
    assert accounts(b={}).restore(stored, 1.0) == 0


def test_accounts_lease_numbers_go_on_after_a_failed_core() -> None:
    """Lease numbers continue after a failed core, so "older than the last cut" keeps its
    meaning."""
    old = accounts(a={})
    for _ in range(5):
        end(old, "a", Verdict.SUCCESS)
    fresh = accounts(a={}, new={})
    fresh.inherit(old)
    assert fresh.take("a", "m", 1.0, 0.0) == 6
    assert fresh.snapshot(0.0)[0].successes == 5
    assert fresh.snapshot(0.0)[1].successes == 0


def test_accounts_room_counts_the_windows_in_use() -> None:
    """A model without requests adds no room; if no window is in use, the limit is the room."""
    it = accounts("auto", a=WIDE | {"models": ["m", "n"]})
    it._accounts["a"].limit.restore(50.0, float("inf"))
    assert it.room(("a", "gone")) == 50.0
    lease = it.take("a", "m", 1.0, 0.0)
    assert it.room(("a",)) == 8.0
    it.take("a", "n", 1.0, 0.0)
    assert it.room(("a",)) == 16.0
    it.give_back(lease, Verdict.IGNORED, now=1.0)
    assert it.room(("a",)) == 8.0
    assert it.room(()) == it.load(()) == 0.0


def test_accounts_window_is_taught_by_successes_alone() -> None:
    """A failure teaches the window nothing and frees its slot."""
    it = accounts("auto", a=WIDE)
    for n in range(30):
        lease = it.take("a", "m", 100.0, float(n))
        it.give_back(lease, Verdict.IGNORED, tokens=100.0, output_tokens=50.0, now=n + 0.5)
    assert not it._accounts["a"].windows["m"].has_evidence
    assert it.snapshot(99.0)[0].windows[0].inflight == 0


def test_accounts_blocked_give_the_earliest_time() -> None:
    """The time is the earliest of accounts blocked by time; None if only an end can help."""
    it = accounts(a={"rpm": 6}, b={"rpm": 12}, c={"initial_concurrency": 1})
    for name in "abc":
        it.take(name, "m", 1.0, 0.0)
    assert it.choose("m", ("a", "b"), 0.0) == Blocked(Reason.PACER, 4.0)
    assert it.choose("m", ("a", "b", "c"), 0.0) == Blocked(Reason.ACCOUNT_LIMIT, 4.0)
    assert it.choose("m", ("c",), 0.0) == Blocked(Reason.ACCOUNT_LIMIT)
    assert it.choose("m", ("gone",), 0.0) == Blocked(Reason.HEALTH)


def test_accounts_share_by_their_windows() -> None:
    """Requests of a model with windows are shared in proportion to them."""
    it = accounts(
        "auto",
        a={"initial_concurrency": 4, "max_concurrency": 99},
        b={"initial_concurrency": 8, "max_concurrency": 99},
    )
    for account in it._accounts.values():
        account.limit.restore(50.0, float("inf"))
    assert spread(it, ("a", "b"), 6).count("b") == 4


def test_accounts_pass_over_names_that_are_gone() -> None:
    """Unknown names are skipped wherever they stand in the list."""
    it = accounts(a={})
    assert it.choose("m", ("gone", "a"), 0.0) == Fit("a")
    assert it.choose("m", ("a", "gone"), 0.0) == Fit("a")
    assert it.heals_s(("gone", "a"), 3.0) == 3.0
    assert it.room(("gone", "a")) == it.room(("a",))


def test_accounts_are_asked_for_express_slots_in_each_round_of_a_retry() -> None:
    """The slots above a window are open to an express request with accounts to avoid too: on the
    others, and on the avoided where no other serves."""
    size = {"initial_concurrency": 4, "max_concurrency": 9}
    it = accounts("auto", a=size, b=size)
    for account in it._accounts.values():
        account.limit.restore(9.0, float("inf"))
    for name in "ab":
        for _ in range(4):
            it.take(name, "m", 1.0, 0.0)
    for names, avoid, found in (
        (("a", "b"), frozenset(), Fit("a")),
        (("a", "b"), frozenset({"a"}), Fit("b")),
        (("a",), frozenset({"a"}), Fit("a")),
    ):
        assert it.choose("m", names, 0.0, avoid) == Blocked(Reason.WINDOW)
        assert it.choose("m", names, 0.0, avoid, express=True) == found


def test_accounts_show_each_with_its_state_and_load() -> None:
    """The text of all accounts, for people: name, state, and jobs in flight of its limit."""
    it = accounts(a={"initial_concurrency": 2}, b={"initial_concurrency": 3})
    it.take("b", "m", 1.0, 0.0)
    end(it, "a", Verdict.DEAD_KEY)
    shown = "<Account 'a' dead_key, 0 of 2 in flight>, <Account 'b' open, 1 of 3 in flight>"
    assert repr(it) == f"<Accounts {shown}>"
