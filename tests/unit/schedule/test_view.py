from __future__ import annotations

from gateway.types import JobClass, Reason, Verdict
from tests.unit.schedule.build import World, settings


def test_snapshot_shows_a_pool_as_it_is() -> None:
    """Budgets, what runs and waits, why, and for how long."""
    it = World(
        settings(
            {"a": {"initial_concurrency": 2}},
            {"t": {}, "small": {"max_inflight": 1}},
            schedule={"heavy_inflight_tokens": 100, "interactive_inflight_tokens": 1000},
        )
    )
    it.submit("h1", 80, tenant="small")
    it.submit("h2", 80)
    it.submit("h3", 80, at=1.0, tenant="small", body_bytes=7)
    it.submit("i1", 20, at=2.0, body_bytes=5)
    it.now = 5.0
    seen = it.scheduler.snapshot(5.0)
    (pool,) = seen.pools
    heavy, interactive = pool.classes[JobClass.HEAVY], pool.classes[JobClass.INTERACTIVE]
    assert (pool.name, pool.models, pool.waiting_bytes) == ("m", ("m",), 12)
    assert (heavy.budget_tokens, heavy.inflight_tokens, heavy.borrowed_tokens) == (100, 160, 60)
    assert (heavy.running, heavy.waiting, heavy.waiting_tokens) == (2, 1, 80)
    assert heavy.oldest_wait_s == 4.0
    assert heavy.blocked == {Reason.TENANT_CAP: 1}
    assert interactive.blocked == {Reason.ACCOUNT_LIMIT: 1}
    assert interactive.oldest_wait_s == 3.0
    assert (seen.submitted, seen.dispatched, seen.accounts[0].inflight) == (4, 2, 2)


def test_snapshot_counts_jobs_between_two_attempts() -> None:
    """They hold their reserve, so they run; and they are retrying."""
    it = World(settings())
    it.submit("j1")
    it.fail("j1", Verdict.RATE_LIMITED, retry_after_s=9.0)
    (pool,) = it.scheduler.snapshot(0.0).pools
    assert (pool.retrying, pool.classes[JobClass.HEAVY].running) == (1, 1)
    assert it.scheduler.snapshot(0.0).accounts[0].state == "backoff"
    assert it.scheduler.snapshot(0.0).accounts[0].state_until_s == 9.0
