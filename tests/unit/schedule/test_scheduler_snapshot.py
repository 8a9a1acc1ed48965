from __future__ import annotations

from gateway.schedule.events import SettingsChanged, Withdrawn
from gateway.schedule.overload import SLOWDOWN
from gateway.types import JobClass, Mode, Reason, Verdict
from tests.unit.schedule.build import World, settings


def test_snapshot_shows_a_pool_as_it_is() -> None:
    """A snapshot shows budgets, running and waiting jobs, the reasons and the oldest wait."""
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
    """A retry counts as running, for it holds its reserve, and as retrying."""
    it = World(settings())
    it.submit("j1")
    it.fail("j1", Verdict.RATE_LIMITED, retry_after_s=9.0)
    (pool,) = it.scheduler.snapshot(0.0).pools
    assert (pool.retrying, pool.classes[JobClass.HEAVY].running) == (1, 1)
    assert it.scheduler.snapshot(0.0).accounts[0].state == "backoff"
    assert it.scheduler.snapshot(0.0).accounts[0].state_until_s == 9.0


def test_snapshot_shows_no_backlog_once_what_waited_has_started() -> None:
    """The wait and the severity shown are of what waits now, not of the last assessment, which the
    start of the last one that waited made."""
    it = World(
        settings(
            {"a": {"initial_concurrency": 2}},
            schedule={"max_wait_s": 86_400.0, "clear_s": 10.0, "reject_above": 100.0},
        )
    )
    for n in range(20):
        it.submit(f"s{n}")
        it.finish(f"s{n}", 100, at=it.now + 10.0)
    for name, tokens in (("runs", 100), ("ends", 100), ("waits", 5000)):
        it.submit(name, tokens)
    (pool,) = it.scheduler.snapshot(it.now).pools
    assert (pool.clear_s > 100.0, pool.severity > 10.0) == (True, True)
    it.finish("ends", 100, at=it.now + 10.0)
    (pool,) = it.scheduler.snapshot(it.now).pools
    assert (pool.classes[JobClass.HEAVY].waiting, pool.clear_s) == (0, 0.0)
    assert pool.severity < 1.0


def test_snapshot_of_a_gateway_that_has_done_nothing() -> None:
    """A fresh gateway runs nothing, is not overloaded, and has ended nothing."""
    it = World(settings({"a": {}, "b": {"models": ["k", "l"]}}))
    seen = it.scheduler.snapshot(0.0)
    assert {pool.name: pool.models for pool in seen.pools} == {"m": ("m",), "k": ("k", "l")}
    for pool in seen.pools:
        assert (pool.mode, pool.saturation, pool.clear_s) == (Mode.FREE, 0, 0)
        assert pool.severity == 1 / SLOWDOWN, "no answer took longer than its service"
        assert (pool.retrying, pool.waiting_bytes) == (0, 0)
        for shot in pool.classes.values():
            assert (shot.running, shot.waiting, shot.oldest_wait_s, shot.blocked) == (0, 0, 0.0, {})
    assert (seen.submitted, seen.dispatched, seen.draining) == (0, 0, False)
    assert not any(seen.ended.values())


def test_snapshot_tells_reasons_and_waits_by_pool_and_class() -> None:
    """Each pool and class has its own oldest wait; jobs elsewhere do not count."""
    it = World(
        settings(
            {
                "a": {"initial_concurrency": 1},
                "b": {"initial_concurrency": 1, "models": ["k"]},
            },
            schedule={"clear_s": 60.0},
        )
    )
    it.submit("m0", 100)
    it.submit("k0", 100, model="k", accounts=("b",))
    it.submit("m1", 100, at=1.0)
    it.submit("m2", 400, at=2.0)
    it.submit("k1", 100, model="k", accounts=("b",), at=3.0)
    it.submit("k2", 20, model="k", accounts=("b",), at=4.0)
    pools = {pool.name: pool for pool in it.scheduler.snapshot(10.0).pools}
    found = {
        (name, cls): (shot.waiting, shot.waiting_tokens, shot.oldest_wait_s)
        for name, pool in pools.items()
        for cls, shot in pool.classes.items()
        if shot.waiting
    }
    assert found == {
        ("m", JobClass.HEAVY): (2, 500.0, 9.0),
        ("k", JobClass.HEAVY): (1, 100.0, 7.0),
        ("k", JobClass.INTERACTIVE): (1, 20.0, 6.0),
    }
    assert pools["m"].classes[JobClass.HEAVY].blocked == {Reason.ACCOUNT_LIMIT: 2}


def test_snapshot_names_a_pool_whose_models_are_gone() -> None:
    """Running jobs of a removed model are seen under the old name and no model."""
    it = World(settings({"a": {}}))
    it.submit("j1")
    it.feed(SettingsChanged(settings({"b": {"models": ["k"]}})))
    pools = {pool.name: pool for pool in it.scheduler.snapshot(0.0).pools}
    assert pools["m"].models == ()
    assert pools["m"].classes[JobClass.HEAVY].running == 1


def test_snapshot_gives_the_mode_of_its_own_saturation() -> None:
    """Mode and saturation are of one moment, also while nothing waits."""
    it = World(settings({"a": {"initial_concurrency": 4}}))
    for n in range(3):
        it.submit(f"j{n}")
    (pool,) = it.scheduler.snapshot(0.0).pools
    assert (pool.mode, pool.saturation) == (Mode.MODERATE, 0.75)
    it.finish("j0")
    it.finish("j1")
    (pool,) = it.scheduler.snapshot(0.0).pools
    assert (pool.mode, pool.saturation) == (Mode.FREE, 0.25)


def test_snapshot_leaves_a_mode_below_where_it_entered_it() -> None:
    """A mode stays until the saturation is well below its entry, in what is shown as in what
    decides."""
    it = World(settings({"a": {"initial_concurrency": 10}}))
    for n in range(11):
        if n == 6:
            assert it.scheduler.snapshot(0.0).pools[0].mode is Mode.FREE
        it.submit(f"j{n}")
    for running, mode in ((7, Mode.MODERATE), (6, Mode.MODERATE), (5, Mode.FREE)):
        while len(it.scheduler.jobs) > running:
            it.finish(next(iter(it.scheduler.jobs)))
        (pool,) = it.scheduler.snapshot(0.0).pools
        assert (pool.saturation, pool.mode) == (running / 10, mode)


def test_snapshot_asks_what_blocks_at_its_own_moment() -> None:
    """A rest that is over at the snapshot's time blocks nobody, whenever the last event was."""
    it = World(settings({"a": {}, "b": {"rpm": 6}}))
    it.submit("j1", accounts=("a",))
    it.fail("j1", Verdict.RATE_LIMITED, retry_after_s=9.0)
    it.submit("a1", accounts=("a",))
    it.submit("b1", accounts=("b",))
    it.submit("b2", accounts=("b",))
    heavy = it.scheduler.snapshot(5.0).pools[0].classes[JobClass.HEAVY]
    assert heavy.blocked == {Reason.ACCOUNT_BACKOFF: 1, Reason.PACER: 1}
    heavy = it.scheduler.snapshot(9.0).pools[0].classes[JobClass.HEAVY]
    assert (heavy.waiting, heavy.blocked) == (2, {})


def test_snapshot_sees_past_tenants_that_wait_for_nothing() -> None:
    """Empty queues hide none that hold jobs."""
    it = World(settings({"a": {"initial_concurrency": 1}}, {"t": {}, "u": {}}))
    for name, tokens, tenant in (
        ("run", 100, "t"),
        ("gone", 100, "t"),
        ("gone2", 400, "t"),
        ("h1", 100, "u"),
        ("h2", 400, "u"),
        ("i1", 30, "u"),
    ):
        it.submit(name, tokens, tenant=tenant)
    for name in ("gone", "gone2"):
        it.feed(Withdrawn(name))
    classes = it.scheduler.snapshot(0.0).pools[0].classes
    assert (classes[JobClass.HEAVY].waiting, classes[JobClass.INTERACTIVE].waiting) == (2, 1)
