from __future__ import annotations

from typing import Any

from gateway.schedule.events import Answered, SettingsChanged, Withdrawn, Woke
from gateway.schedule.overload import Grade
from gateway.schedule.rounds import Turn
from gateway.types import JobClass, Mode, Outcome, RateLimits, Verdict
from tests.unit.schedule.build import World, places, refused, settings, started

ONE = {"a": {"initial_concurrency": 1}}


def reload(
    it: World,
    accounts: dict[str, dict[str, Any]],
    tenants: dict[str, dict[str, Any]] | None = None,
    **sections: Any,
) -> list[Any]:
    return it.feed(SettingsChanged(settings(accounts, tenants, **sections)))


def test_reload_lets_waiting_jobs_use_a_new_account() -> None:
    """A job that could go wherever its model was served still can."""
    it = World(settings(ONE))
    it.submit("j1")
    it.submit("j2")
    assert places(reload(it, {**ONE, "b": {}})) == {"j2": "b"}


def test_reload_keeps_a_bound_job_to_its_accounts() -> None:
    """A job that was made for some accounts only does not go elsewhere."""
    it = World(settings({"a": {"initial_concurrency": 1}, "b": {}}))
    it.submit("j1", accounts=("a",))
    it.submit("j2", accounts=("a",))
    assert reload(it, {"a": {"initial_concurrency": 1}, "b": {}, "c": {}}) == []
    assert places(it.finish("j1")) == {"j2": "a"}


def test_reload_refuses_waiting_jobs_of_a_model_that_is_gone() -> None:
    """Running jobs finish; waiting and retrying ones are refused at once."""
    it = World(settings({**ONE, "x": {"models": ["k"]}}))
    it.submit("running")
    it.submit("waiting")
    it.submit("retrying", model="k", accounts=("x",))
    it.fail("retrying", Verdict.RATE_LIMITED, retry_after_s=99.0)
    assert refused(reload(it, {"n": {"models": ["new"]}})) == {
        "waiting": ("no_account", Outcome.EVICTED),
        "retrying": ("upstream_failed", Outcome.RATE_LIMITED),
    }
    it.finish("running")
    assert it.leases == 0


def test_reload_does_not_send_a_job_to_an_account_that_lost_its_model() -> None:
    """The account stays of use to others; a job of no configured model still may go there."""
    it = World(settings(ONE))
    it.submit("run")
    it.submit("j")
    it.submit("relayed", model="?")
    gone = refused(reload(it, {"a": {"models": ["k"], "initial_concurrency": 1}}))
    assert gone == {"j": ("no_account", Outcome.EVICTED)}
    assert places(it.finish("run")) == {"relayed": "a"}


def test_reload_joins_and_cuts_pools_under_running_jobs() -> None:
    """Live jobs count in the pool that serves their model now."""
    it = World(settings({"a": {}, "b": {"models": ["k"]}}))
    it.submit("j1", 100)
    it.submit("j2", 200, model="k", accounts=("b",))
    reload(it, {"a": {"models": ["m", "k"]}, "b": {"models": ["k"]}})
    (pool,) = it.scheduler.snapshot(0.0).pools
    assert pool.models == ("m", "k")
    assert pool.classes[JobClass.HEAVY].inflight_tokens == 300
    reload(it, {"a": {}, "b": {"models": ["k"]}})
    pools = it.scheduler.snapshot(0.0).pools
    assert [p.classes[JobClass.HEAVY].inflight_tokens for p in pools] == [100, 200]


def test_reload_wakes_a_job_for_an_account_that_ends_in_another_pool() -> None:
    """An account may be moved while a job of its old pool still runs on it."""
    it = World(
        settings({"a": {"models": ["m", "k"], "initial_concurrency": 1}, "b": {"models": ["m"]}})
    )
    it.submit("m1", accounts=("a",))
    reload(it, {"a": {"models": ["k"], "initial_concurrency": 1}, "b": {"models": ["m"]}})
    assert started(it.submit("k1", model="k", accounts=("a",))) == []
    assert places(it.finish("m1")) == {"k1": "a"}


def test_reload_changes_caps_budgets_and_waits() -> None:
    """New numbers hold for jobs that wait, too."""
    it = World(settings({"a": {}}, {"t": {"max_inflight": 1}}))
    for name in ("j1", "j2", "j3", "j4"):
        it.submit(name, 500)
    assert started(reload(it, {"a": {}}, {"t": {"max_inflight": 2}})) == ["j2"]
    small = {"heavy_inflight_tokens": 1200, "borrow": False}
    assert started(reload(it, {"a": {}}, schedule=small)) == ["j3"]
    assert refused(reload(it, {"a": {}}, schedule={**small, "max_wait_s": 0.5})) == {}
    assert refused(it.feed(Woke(), at=0.5)) == {"j4": ("queue_timeout", Outcome.EVICTED)}


def test_reload_accepts_a_job_made_before_it() -> None:
    """The shell may have built a job with the old routes."""
    it = World(settings({"a": {}}))
    reload(it, {"b": {}})
    assert places(it.submit("j1", accounts=("a",))) == {"j1": "b"}


def test_reload_keeps_what_a_pool_learned() -> None:
    """A pool keeps its mode, its pace and its tenants' counters."""
    budgets = {
        "policy": "dual_budget",
        "borrow": True,
        "heavy_inflight_tokens": 1000,
        "interactive_inflight_tokens": 3000,
        "shed": False,
    }
    it = World(settings(ONE, schedule=budgets))
    it.submit("j1", 4200)
    it.submit("j2", 4200)
    it.finish("j1", 4200, at=1.0)
    before = it.scheduler.pools["m"]
    assert (before.mode, before.saturation) == (Mode.CONGESTED, 1.05)
    reload(it, ONE, schedule=budgets)
    after = it.scheduler.pools["m"]
    assert (after is before, after.pace is before.pace) == (False, True)
    assert after.mode is Mode.CONGESTED, "a new pool would be moderate at 1.05"
    counters = [p.shares[JobClass.HEAVY].of("t", 1.0).counter for p in (before, after)]
    assert counters[0] == counters[1] > 0


def test_reload_keeps_a_tenants_jobs_in_flight() -> None:
    """A tenant's cap is full before and after."""
    it = World(settings({"a": {}}, {"t": {"max_inflight": 1}}))
    it.submit("j1")
    it.submit("j2")
    assert reload(it, {"a": {}}, {"t": {"max_inflight": 1}}) == []
    assert started(it.feed(Withdrawn("j1"))) == ["j2"]


def test_reload_takes_a_bound_job_from_an_account_that_lost_its_model() -> None:
    """The job stays bound to those of its accounts that are left and still serve its model."""
    it = World(settings({name: {"initial_concurrency": 1} for name in "abc"}))
    for name in "abc":
        it.submit(f"{name}1", accounts=(name,))
    it.submit("j", accounts=("a", "b"))
    after = {
        "a": {"models": ["k"]},
        "b": {"models": ["m", "k"], "initial_concurrency": 1},
        "c": {},
    }
    assert reload(it, after) == []
    assert it.scheduler.jobs["j"].accounts == ("b",)
    assert places(it.finish("b1")) == {"j": "b"}


def test_reload_keeps_what_a_retry_holds_of_the_budget() -> None:
    """A retry holds its reserve, running again or still between two attempts."""
    it = World(settings({"a": {}, "b": {}}))
    for name in ("j1", "j2"):
        it.submit(name, accounts=("a", "b"))
        it.fail(name)
    it.fail("j1", Verdict.RATE_LIMITED, retry_after_s=9.0)
    reload(it, {"a": {}, "b": {}})
    pool = it.scheduler.pools["m"]
    assert (pool.retried, pool.budget.total_jobs) == (2, 2)
    for name in ("j1", "j2"):
        it.feed(Withdrawn(name))
    assert (pool.retried, pool.budget.total_jobs) == (0, 0)


def test_reload_forgets_the_credit_of_a_class_that_moved_away() -> None:
    """A turn starts anew where none of its jobs waits any more; the others keep their credit."""
    it = World(settings({"a": {"models": ["m", "k"], "initial_concurrency": 1}}))
    it.submit("run", 100)
    it.submit("i1", 30, model="k")
    it.submit("h1", 300)
    credit = it.scheduler.pools["m"].rounds.credit
    credit[Turn.INTERACTIVE], credit[Turn.HEAVY] = 50.0, -70.0
    reload(it, {"a": {"initial_concurrency": 1}, "b": {"models": ["k"]}})
    credit = it.scheduler.pools["m"].rounds.credit
    assert (credit[Turn.INTERACTIVE], credit[Turn.HEAVY]) == (0.0, -70.0)


def test_reload_moves_what_is_between_two_attempts_to_its_new_home() -> None:
    """A retry goes on waiting in its new pool, as long as it still may."""
    it = World(settings({"a": {}}, schedule={"max_wait_s": 30.0}))
    it.submit("j")
    it.fail("j", Verdict.RATE_LIMITED, retry_after_s=20.0)
    assert places(reload(it, {"a": {}, "b": {}}, schedule={"max_wait_s": 30.0})) == {"j": "b"}
    it = World(settings({"a": {}}, schedule={"max_wait_s": 30.0}))
    it.submit("j")
    it.fail("j", Verdict.RATE_LIMITED, retry_after_s=20.0)
    assert refused(reload(it, {"a": {}}, schedule={"max_wait_s": 10.0})) == {
        "j": ("upstream_failed", Outcome.RATE_LIMITED)
    }


def test_reload_keeps_what_was_deferred_and_rejected() -> None:
    """A pool of the new settings inherits both, for the hysteresis of the ladder."""
    it = World(settings(ONE))
    before = it.scheduler.pools["m"]
    before.deferred, before.rejected = Grade.LONG, Grade.HUGE
    after = it.scheduler.pool("other")
    after.inherit(before)
    assert (after.deferred, after.rejected) == (Grade.LONG, Grade.HUGE)


def test_reload_hears_the_headers_of_an_account_for_its_new_pool() -> None:
    """An answer to a job of the old pool opens the account to jobs of the one it is in by now."""
    it = World(settings({"a": {"models": {"m": "one"}}, "b": {}}))
    for name in ("old", "old2"):
        it.submit(name, accounts=("a",))
    it.feed(SettingsChanged(settings({"a": {"models": {"k": "one"}}, "b": {}})))
    it.feed(Answered("old", RateLimits(60, 0, 60.0)))
    assert started(it.submit("new", model="k")) == []
    assert started(it.feed(Answered("old2", RateLimits(60, 50, 1.0)))) == ["new"]
