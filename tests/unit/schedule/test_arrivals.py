from __future__ import annotations

from typing import Any

import pytest

from gateway.schedule.events import Action, Adopted, Dispatch, SettingsChanged
from gateway.types import JobClass, Outcome, Rung, Verdict
from tests.unit.schedule.build import World, job, refused, settings, started, workload

ONE = {"a": {"initial_concurrency": 1}}


def adopt(
    it: World, job_id: str, account: str = "a", *, attempts: int = 1, **fields: Any
) -> list[Action]:
    given = job(job_id, fields.pop("tokens", 100), **fields)
    return it.feed(Adopted(given, given.workload, account, attempts, body_bytes=9))


def test_adopted_job_counts_where_it_runs_and_is_not_started() -> None:
    """An adopted job counts in budget, tenant and slot as if this core had started it; no action
    follows."""
    it = World(settings(ONE, {"t": {"max_inflight": 1}}))
    assert adopt(it, "j1", tokens=300) == []
    seen = it.scheduler.snapshot(0.0)
    heavy = seen.pools[0].classes[JobClass.HEAVY]
    assert (heavy.running, heavy.inflight_tokens, heavy.waiting) == (1, 300, 0)
    assert seen.pools[0].waiting_bytes == 0
    assert (seen.accounts[0].inflight, seen.submitted, seen.dispatched) == (1, 1, 0)
    assert it.scheduler.tenants["t"].running == 1
    assert started(it.submit("j2")) == []
    assert started(it.finish("j1", 280)) == ["j2"]
    assert it.scheduler.snapshot(0.0).ended[Outcome.OK] == 1


def test_adopted_job_weighs_by_the_last_forecast_of_its_earlier_life() -> None:
    """An adopted job weighs by its last forecast, not by the one it arrived with."""
    it = World(settings(ONE))
    it.feed(Adopted(job("j1", 30), workload(700, rung=Rung.TENANT_NEIGHBORS), "a", 1))
    classes = it.scheduler.snapshot(0.0).pools[0].classes
    assert classes[JobClass.HEAVY].inflight_tokens == 700
    assert classes[JobClass.INTERACTIVE].running == 0


def test_adopted_job_has_used_the_attempts_it_had() -> None:
    """The next attempt of an adopted job is numbered on."""
    it = World(settings({"a": {}, "b": {}}))
    adopt(it, "j1", attempts=2, accounts=("a", "b"))
    assert it.fail("j1") == [Dispatch("j1", "b", 3, 100)]


def test_adopted_job_has_waited_since_its_arrival() -> None:
    """A retry of an adopted job has as much of max_wait_s left as before."""
    it = World(settings(ONE, schedule={"max_wait_s": 10.0}))
    it.now = 4.0
    adopt(it, "j1", at=0.0)
    it.fail("j1", Verdict.RATE_LIMITED, retry_after_s=6.5, at=50.0)
    assert it.scheduler.snapshot(50.0).ended[Outcome.RATE_LIMITED] == 1
    it = World(settings(ONE, schedule={"max_wait_s": 10.0}))
    it.now = 4.0
    adopt(it, "j1", at=0.0)
    assert refused(it.fail("j1", Verdict.RATE_LIMITED, retry_after_s=5.5, at=50.0)) == {}
    assert it.scheduler.next_wake(50.0) == 55.5


def test_adopted_job_is_charged_to_its_tenant() -> None:
    """A tenant that floods is behind itself also after a fault."""
    it = World(settings({"a": {"initial_concurrency": 2}}))
    adopt(it, "j1", tokens=500)
    share = it.scheduler.pools["m"].shares[JobClass.HEAVY].of("t", 1.0)
    assert share.counter == pytest.approx(502.0), "reserve and a quarter of the prompt"


def test_adopted_job_on_an_account_that_is_gone_stays_outside() -> None:
    """The end of a job on a removed account is an event about an unknown job."""
    it = World(settings(ONE))
    assert adopt(it, "j1", "gone") == []
    assert it.scheduler.submitted == 0
    assert it.finish("j1") == []


def test_job_is_adopted_once() -> None:
    """A job is adopted once and holds one lease."""
    it = World(settings({"a": {}}))
    adopt(it, "j1")
    adopt(it, "j1")
    assert (it.leases, it.scheduler.submitted) == (1, 1)


def test_adopted_job_of_no_configured_model_belongs_to_its_accounts_pool() -> None:
    """A relayed route belongs to its account's pool, also where none of the accounts that it names
    is left."""
    it = World(settings({"a": {}, "b": {"models": ["k"]}}))
    adopt(it, "j1", "b", model="?", accounts=("b",))
    adopt(it, "j2", "b", model="?", accounts=("gone",))
    pools = {p.name: p.classes[JobClass.HEAVY].running for p in it.scheduler.snapshot(0.0).pools}
    assert pools == {"m": 0, "k": 2}
    assert it.fail("j2") == [Dispatch("j2", "b", 2, 100)], "it may be tried again there"


def test_adopted_job_does_not_stay_where_its_model_is_gone() -> None:
    """A job whose model was configured is not retried once no account serves it; a relayed one
    is."""
    for model, gone in (("m", {"j1": ("upstream_failed", Outcome.UPSTREAM_ERROR)}), ("?", {})):
        it = World(settings({"a": {"models": ["m", "k"]}}))
        adopt(it, "j1", model=model)
        it.feed(SettingsChanged(settings({"a": {"models": ["k"]}})))
        assert refused(it.fail("j1")) == gone
