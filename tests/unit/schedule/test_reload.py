from __future__ import annotations

from typing import Any

from gateway.schedule.events import SettingsChanged, Withdrawn, Woke
from gateway.types import JobClass, Mode, Outcome, Verdict
from tests.unit.schedule.build import World, places, refused, settings, started

ONE = {"a": {"initial_concurrency": 1}}


def reload(
    it: World,
    accounts: dict[str, dict[str, Any]],
    tenants: dict[str, dict[str, Any]] | None = None,
    **sections: Any,
) -> list[Any]:
    return it.tell(SettingsChanged(settings(accounts, tenants, **sections)))


def test_reload_lets_waiting_jobs_use_a_new_account() -> None:
    """A job that could go wherever its model was served still can."""
    it = World(settings(ONE))
    it.submit("j1")
    it.submit("j2")
    assert places(reload(it, {**ONE, "b": {}})) == {"j2": "b"}


def test_reload_keeps_a_bound_job_to_its_accounts() -> None:
    """One that was made for some accounts only does not go elsewhere."""
    it = World(settings({"a": {"initial_concurrency": 1}, "b": {}}))
    it.submit("j1", accounts=("a",))
    it.submit("j2", accounts=("a",))
    assert reload(it, {"a": {"initial_concurrency": 1}, "b": {}, "c": {}}) == []
    assert places(it.finish("j1")) == {"j2": "a"}


def test_reload_refuses_waiting_jobs_of_a_model_that_is_gone() -> None:
    """Running ones finish; waiting and retrying ones learn it at once."""
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
    assert it.accounts.leases == 0


def test_reload_joins_and_cuts_pools_under_running_jobs() -> None:
    """Live jobs count where their model now lives."""
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
    """New numbers hold for those that wait, too."""
    it = World(settings({"a": {}}, {"t": {"max_inflight": 1}}))
    for name in ("j1", "j2", "j3", "j4"):
        it.submit(name, 500)
    assert started(reload(it, {"a": {}}, {"t": {"max_inflight": 2}})) == ["j2"]
    small = {"heavy_inflight_tokens": 1200, "borrow": False}
    assert started(reload(it, {"a": {}}, schedule=small)) == ["j3"]
    assert refused(reload(it, {"a": {}}, schedule={**small, "max_wait_s": 0.5})) == {}
    assert refused(it.tell(Woke(), at=0.5)) == {"j4": ("queue_timeout", Outcome.EVICTED)}


def test_reload_accepts_a_job_made_before_it() -> None:
    """The shell may have built it with the old routes."""
    it = World(settings({"a": {}}))
    reload(it, {"b": {}})
    assert places(it.submit("j1", accounts=("a",))) == {"j1": "b"}


def test_reload_keeps_what_a_pool_knows_of_itself() -> None:
    """Its mode, for the hysteresis, its pace, for the next Retry-After, its tenants' counters."""
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
    """Its cap is full before and after."""
    it = World(settings({"a": {}}, {"t": {"max_inflight": 1}}))
    it.submit("j1")
    it.submit("j2")
    assert reload(it, {"a": {}}, {"t": {"max_inflight": 1}}) == []
    assert started(it.tell(Withdrawn("j1"))) == ["j2"]
