from __future__ import annotations

from typing import Any

import pytest

from gateway.schedule.events import (
    Answered,
    Dispatch,
    DrainStarted,
    Finished,
    Outgrown,
    Recalibrated,
    Reforecast,
    Refuse,
    SettingsChanged,
    Withdrawn,
    Woke,
)
from gateway.schedule.live_job import LiveJob
from gateway.schedule.model_pool import Pool
from gateway.schedule.overload import Grade
from gateway.schedule.pressure import EVERY
from gateway.types import JobClass, Mode, Outcome, RateLimits, Rung, Verdict
from tests.unit.schedule.build import World, places, refused, settings, started, workload

ONE = {"a": {"initial_concurrency": 1}}
TWO_POOLS = {"a": {"initial_concurrency": 1}, "b": {"models": ["k"], "initial_concurrency": 1}}


def world(
    accounts: dict[str, dict[str, Any]] | None = None,
    tenants: dict[str, dict[str, Any]] | None = None,
    **schedule: Any,
) -> World:
    return World(settings(accounts or ONE, tenants, schedule=schedule))


def test_scheduler_starts_at_once_what_can_start() -> None:
    """A job that can start does not wait; the action names account, attempt and reserve."""
    it = world()
    assert it.submit("j1", 100) == [Dispatch("j1", "a", 1, 100)]


def test_scheduler_starts_the_next_when_one_ends() -> None:
    """Among equals the first to come is the first served."""
    it = world()
    for name in ("j1", "j2", "j3"):
        it.submit(name)
    assert started(it.finish("j1", 80)) == ["j2"]
    assert started(it.finish("j2", 80)) == ["j3"]


def test_scheduler_settles_a_job_once() -> None:
    """A second end, of any kind, is no event."""
    it = world()
    it.submit("j1")
    it.finish("j1")
    for event in (
        Finished("j1", Outcome.UPSTREAM_ERROR, Verdict.SERVER_ERROR),
        Withdrawn("j1"),
        Reforecast("j1", workload(5)),
    ):
        assert it.feed(event) == []
    assert it.fail("j1") == []
    ended = it.scheduler.snapshot(0.0).ended
    assert {k: n for k, n in ended.items() if n} == {Outcome.OK: 1}


def test_scheduler_ignores_a_job_id_that_lives() -> None:
    """A job submitted twice counts once."""
    it = world()
    it.submit("j1")
    assert it.submit("j1") == []
    assert it.scheduler.snapshot(0.0).submitted == 1


@pytest.mark.parametrize("where", ["running", "waiting", "retrying"])
def test_scheduler_forgets_a_client_that_left(where: str) -> None:
    """In every phase a cancelled job gives everything back, and the next one starts."""
    it = world()
    it.submit("j1")
    it.submit("j2")
    if where == "running":
        assert started(it.feed(Withdrawn("j1"))) == ["j2"]
    elif where == "waiting":
        assert it.feed(Withdrawn("j2")) == []
    else:
        it.fail("j1", Verdict.RATE_LIMITED, retry_after_s=9.0)
        assert it.feed(Withdrawn("j1")) == []
        assert started(it.feed(Woke(), at=9.0)) == ["j2"]
    assert it.scheduler.snapshot(it.now).ended[Outcome.CANCELLED] == 1
    assert it.leases == (0 if where == "waiting" and not it.scheduler.jobs else 1)


def test_scheduler_moves_a_waiting_job_by_its_new_forecast() -> None:
    """Key, class and size follow the forecast; the arrival stays."""
    it = world()
    it.submit("j1")
    it.submit("long", 3000)
    it.submit("other", 500)
    it.feed(Reforecast("long", workload(10, rung=Rung.GLOBAL_NEIGHBORS)))
    assert started(it.finish("j1")) == ["long"]
    classes = it.scheduler.snapshot(it.now).pools[0].classes
    assert classes[JobClass.INTERACTIVE].inflight_tokens == 10


def test_scheduler_takes_a_rung_once_per_job() -> None:
    """A waiting job moves at most four times, once per rung."""
    it = world()
    it.submit("j1")
    it.submit("long", 3000)
    it.submit("other", 500)
    it.feed(Reforecast("long", workload(2000, rung=Rung.GLOBAL_NEIGHBORS)))
    it.feed(Reforecast("long", workload(10, rung=Rung.GLOBAL_NEIGHBORS)))
    assert started(it.finish("j1")) == ["other"]


def test_scheduler_trues_up_a_running_job() -> None:
    """A smaller reserve makes room at once; the class stays the one it was charged to."""
    it = world({"a": {}}, heavy_inflight_tokens=1000, borrow=False)
    it.submit("j1", 5000)
    assert started(it.submit("j2", 500)) == []
    assert started(it.feed(Reforecast("j1", workload(10, rung=Rung.TENANT_NEIGHBORS)))) == ["j2"]
    heavy = it.scheduler.snapshot(0.0).pools[0].classes[JobClass.HEAVY]
    assert (heavy.inflight_tokens, heavy.running) == (510, 2)


def test_scheduler_corrects_a_running_job_by_a_rung_it_has_had_before() -> None:
    """Once per rung holds for places in a queue; in flight the newest forecast counts."""
    it = world({"a": {"initial_concurrency": 1}})
    it.submit("run")
    it.submit("j1", 500)
    it.feed(Reforecast("j1", workload(400, rung=Rung.GLOBAL_NEIGHBORS)))
    it.finish("run")
    it.feed(Reforecast("j1", workload(900, rung=Rung.GLOBAL_NEIGHBORS)))
    heavy = it.scheduler.snapshot(0.0).pools[0].classes[JobClass.HEAVY]
    assert heavy.inflight_tokens == 900


def test_scheduler_grows_the_reserve_of_an_answer_that_outgrows_its_forecast() -> None:
    """The reserve never shrinks by that, and is given back whole at the end."""
    it = world({"a": {}})
    it.submit("j1", 100, n=2)

    def held() -> float:
        return it.scheduler.snapshot(0.0).pools[0].classes[JobClass.HEAVY].inflight_tokens

    found = [held()]
    for tokens in (50.0, 200.0, 150.0, 400.0):
        it.feed(Outgrown("j1", tokens))
        found.append(held())
    assert found == [200, 200, 600, 600, 1200]
    it.feed(Outgrown("?", 1.0))
    it.finish("j1", 900)
    assert held() == 0


def test_scheduler_orders_by_arrival_when_forecasts_are_not_to_be_trusted() -> None:
    """Jobs that wait already get new keys too, a few at each event."""
    it = world({"a": {"initial_concurrency": 1}}, max_overtake_s=3600.0, ordering="sjf")
    it.submit("run")
    for n, tokens in enumerate((900, 500, 700, 300, 800)):
        it.submit(f"j{n}", tokens)
    it.feed(Recalibrated(0.0))
    for _ in range(2 * EVERY):
        it.feed(Woke())
    order = []
    running = "run"
    for _ in range(5):
        (running,) = started(it.finish(running))
        order.append(running)
    assert order == [f"j{n}" for n in range(5)]


def test_scheduler_rekeys_what_waits_when_its_scale_has_changed() -> None:
    """A boost that was made for a short queue is not left to stand in a long one."""
    it = world({"a": {"initial_concurrency": 1}}, shed=False, max_queue_items=10_000)
    for n in range(30):
        it.submit(f"p{n}", 100)
        it.finish(f"p{n}", 100, at=it.now + 1.0)
    it.submit("run", 100)
    it.submit("small", 70)
    pool = it.scheduler.pools["m"]
    early = it.scheduler.jobs["small"].key
    for n in range(60):
        it.submit(f"j{n}", 400)
    assert pool.order.backlog_tokens > 5000
    assert it.scheduler.jobs["small"].key < early - 10.0
    assert not [e for e in pool.queued if e.key != key_of(pool, e)] or pool.stale


def key_of(pool: Pool, live: LiveJob) -> float:
    return pool.order.key(live.job, live.workload, live.reserve, live.deadline_s)


def test_scheduler_refuses_when_the_queue_is_full() -> None:
    """A full queue refuses with 429 queue_full and a Retry-After; jobs that wait are not
    touched."""
    it = world(max_queue_items=2)
    for name in ("run", "w1", "w2"):
        it.submit(name)
    (refusal,) = it.submit("w3", 10)
    assert isinstance(refusal, Refuse)
    assert (refusal.error.status, refusal.error.code) == (429, "queue_full")
    assert refusal.error.retry_after_s == pytest.approx(5.0, rel=0.25), "a guess, jittered"
    assert refusal.outcome is Outcome.REJECTED
    assert it.waiting == {"w1", "w2"}


def test_scheduler_bounds_the_bytes_that_wait() -> None:
    """Bodies of waiting requests are bounded per pool."""
    it = world(max_queue_bytes=2048)
    it.submit("run", body_bytes=10_000)
    assert refused(it.submit("w1", body_bytes=2000)) == {}
    assert refused(it.submit("w2", body_bytes=100)) == {"w2": ("queue_full", Outcome.REJECTED)}
    assert refused(it.submit("w3", body_bytes=48)) == {}


def test_scheduler_bounds_what_one_tenant_queues() -> None:
    """max_queued bounds one tenant; others are not touched."""
    it = world(tenants={"t": {}, "small": {"max_queued": 1}})
    it.submit("run")
    assert refused(it.submit("s1", tenant="small")) == {}
    assert refused(it.submit("s2", tenant="small")) == {"s2": ("queue_full", Outcome.REJECTED)}
    assert refused(it.submit("t1")) == {}


def test_scheduler_never_refuses_what_can_start_for_a_full_queue() -> None:
    """The queue may be full of jobs that wait for something else."""
    it = world({"a": {}}, {"t": {}, "small": {"max_inflight": 1}}, max_queue_items=1)
    it.submit("s1", tenant="small")
    it.submit("s2", tenant="small")
    assert started(it.submit("t1")) == ["t1"]


def test_scheduler_says_when_a_full_queue_will_have_drained() -> None:
    """Retry-After is waiting tokens at the pace of late, jittered, at most a minute."""
    it = world(max_queue_items=20, shed=False)
    for n in range(21):
        it.submit(f"j{n}", 100)
    for n in range(10):
        it.finish(f"j{n}", 100, at=float(n + 1))
        it.submit(f"k{n}", 100)
    for _ in range(30):
        (refusal,) = it.submit("late", 100)
        assert isinstance(refusal, Refuse)
        assert refusal.error.retry_after_s == pytest.approx(21.0, rel=0.26)
    slow = world(max_queue_items=1, max_wait_s=86_400.0, shed=False)
    slow.submit("run", 100)
    slow.submit("w", 100)
    slow.finish("run", 100, at=5000.0)
    slow.submit("w2", 100, at=5000.0)
    (refusal,) = slow.submit("late", 100)
    assert isinstance(refusal, Refuse)
    assert 45.0 <= (refusal.error.retry_after_s or 0.0) <= 60.0


def test_scheduler_evicts_what_waited_too_long() -> None:
    """A wait ends after max_wait_s from the arrival or at the job's deadline, whichever is
    first."""
    it = world(max_wait_s=10.0)
    it.submit("run")
    it.submit("patient")
    it.submit("hurried", deadline_s=4.0)
    assert it.scheduler.next_wake(0.0) == 4.0
    assert refused(it.feed(Woke(), at=4.0)) == {"hurried": ("queue_timeout", Outcome.EVICTED)}
    assert it.scheduler.next_wake(4.0) == 10.0
    assert refused(it.feed(Woke(), at=10.0)) == {"patient": ("queue_timeout", Outcome.EVICTED)}
    assert it.scheduler.next_wake(10.0) is None


def test_scheduler_does_not_take_in_what_is_too_late() -> None:
    """A job that is too late is rejected, not evicted: it never waited."""
    it = world()
    assert refused(it.submit("late", at=0.0, deadline_s=0.0)) == {
        "late": ("queue_timeout", Outcome.REJECTED)
    }


def test_scheduler_refuses_when_no_account_is_left() -> None:
    """With every key refused nothing heals by itself, so nobody is kept waiting."""
    it = world()
    it.submit("j1")
    it.submit("j2")
    gone = refused(it.fail("j1", Verdict.DEAD_KEY))
    assert gone == {
        "j1": ("upstream_failed", Outcome.UPSTREAM_ERROR),
        "j2": ("no_account", Outcome.EVICTED),
    }
    assert refused(it.submit("j3")) == {"j3": ("no_account", Outcome.REJECTED)}
    assert started(it.submit("probe", at=300.0)) == ["probe"]


def test_scheduler_refuses_those_whom_no_account_will_serve_in_time() -> None:
    """An account that rests longer than a job may wait does not serve it, but may serve the
    next."""
    it = world()
    it.submit("j1")
    it.submit("hurried", deadline_s=20.0)
    it.submit("patient")
    gone = it.fail("j1", Verdict.OVERLOADED, retry_after_s=60.0)
    assert refused(gone) == {"hurried": ("no_account", Outcome.EVICTED)}
    (refusal,) = gone
    assert isinstance(refusal, Refuse)
    assert refusal.error.retry_after_s == 60.0
    assert it.waiting == {"j1", "patient"}


def test_scheduler_refuses_a_model_nobody_serves() -> None:
    """A job of which neither model nor accounts are known is refused."""
    it = world()
    assert refused(it.submit("j1", model="?", accounts=("?",))) == {
        "j1": ("no_account", Outcome.REJECTED)
    }


def test_scheduler_draining_takes_nothing_in_and_finishes_its_queue() -> None:
    """New jobs get 503 draining; jobs that wait still run."""
    it = world()
    it.submit("j1")
    it.submit("j2")
    it.feed(DrainStarted())
    assert refused(it.submit("j3")) == {"j3": ("draining", Outcome.REJECTED)}
    assert started(it.finish("j1")) == ["j2"]
    assert it.scheduler.snapshot(0.0).draining


def test_scheduler_full_pool_does_not_touch_another() -> None:
    """Models that share no account share nothing."""
    it = world(TWO_POOLS, max_queue_items=1)
    for name in ("m1", "m2", "m3"):
        it.submit(name)
    assert started(it.submit("k1", model="k", accounts=("b",))) == ["k1"]
    assert refused(it.submit("k2", model="k", accounts=("b",))) == {}


def test_scheduler_caps_a_tenant_over_all_pools() -> None:
    """max_inflight is the tenant's: a job that ends in one pool frees it in another."""
    it = world(TWO_POOLS, {"t": {}, "small": {"max_inflight": 1}})
    it.submit("s1", tenant="small")
    assert started(it.submit("s2", model="k", accounts=("b",), tenant="small")) == []
    assert started(it.submit("t1", model="k", accounts=("b",))) == ["t1"]
    it.finish("t1")
    assert started(it.finish("s1")) == ["s2"]


def test_scheduler_gives_a_freed_cap_to_the_best_key() -> None:
    """Of two pools that want a freed cap, the job that waits longer gets it."""
    it = world(TWO_POOLS, {"t": {}, "small": {"max_inflight": 1}})
    it.submit("s1", tenant="small")
    it.submit("k1", model="k", accounts=("b",), tenant="small", at=1.0)
    it.submit("m1", tenant="small", at=2.0)
    assert started(it.finish("s1", at=3.0)) == ["k1"]
    assert started(it.finish("k1", at=4.0)) == ["m1"]
    it = world(TWO_POOLS, {"t": {}, "small": {"max_inflight": 1}})
    it.submit("s1", tenant="small")
    it.submit("m1", tenant="small", at=1.0)
    it.submit("k1", model="k", accounts=("b",), tenant="small", at=2.0)
    assert started(it.finish("s1", at=3.0)) == ["m1"]


def test_scheduler_tightens_tier_caps_when_congested() -> None:
    """The mode follows work in flight and waiting, and scales the caps."""
    it = world(
        {"a": {}},
        policy="dual_budget",
        borrow=True,
        interactive_inflight_tokens=1000,
        heavy_inflight_tokens=4000,
        tier_caps={"long": 4},
    )
    for n in range(4):
        it.submit(f"j{n}", 500)
    assert it.scheduler.snapshot(0.0).pools[0].mode is Mode.FREE
    for n in range(8):
        it.submit(f"w{n}", 500)
    pool = it.scheduler.snapshot(0.0).pools[0]
    assert (pool.mode, pool.saturation) == (Mode.CONGESTED, 1.2)
    assert started(it.finish("j0")) == [], "the cap of four is now two"
    assert started(it.finish("j1")) == ["w0"], "moderate again: three"
    assert it.scheduler.snapshot(0.0).pools[0].mode is Mode.MODERATE


def test_scheduler_spreads_over_accounts() -> None:
    """A job goes to the least loaded account that serves its model."""
    it = world({"a": {}, "b": {}})
    actions = [a for n in range(4) for a in it.submit(f"j{n}", 10, accounts=("a", "b"))]
    assert list(places(actions).values()) == ["a", "b", "a", "b"]


def test_scheduler_tells_the_pacer_what_was_used() -> None:
    """Prompt and reserve are charged and corrected at the end: the next job need not wait for a
    guess."""
    it = world({"a": {"tpm": 600}}, heavy_inflight_tokens=100_000)
    it.submit("j1", 990)
    it.submit("j2", 990)
    assert it.scheduler.next_wake(0.0) == 99.0
    assert started(it.finish("j1", 20, at=1.0)) == []
    assert it.scheduler.next_wake(1.0) == pytest.approx(2.0)
    assert started(it.feed(Woke(), at=2.0)) == ["j2"]


def test_scheduler_widens_windows_where_forecasts_are_not_trusted() -> None:
    """A job that waits for a window starts when trust is lost; no more do when it is back."""
    account = {"initial_concurrency": 4, "max_concurrency": 64}
    it = World(settings({"a": account}, balance={"window": "auto"}))
    it.accounts._accounts["a"].limit.value = 64.0
    for n in range(8):
        it.submit(f"h{n}", 300)
    assert len(it.waiting) == 4
    assert started(it.feed(Recalibrated(0.0))) == ["h4", "h5"]
    assert it.scheduler.snapshot(0.0).accounts[0].windows[0].window == 6.0
    it.feed(Recalibrated(1.0))
    assert started(it.finish("h0", 300)) == started(it.finish("h1", 300)) == []
    assert started(it.finish("h2", 300)) == ["h6"]
    assert it.scheduler.snapshot(0.0).accounts[0].windows[0].window == 4.0


def test_scheduler_does_not_call_the_backgrounds_wait_a_slowdown() -> None:
    """A wait counts as slowdown only where somebody waited."""
    for cls, slowdown in ((JobClass.BACKGROUND, 1.0), (JobClass.HEAVY, 1.8)):
        it = world()
        it.submit("run", class_override=JobClass.BACKGROUND)
        it.submit("j", class_override=cls)
        it.finish("run", 100, at=40.0)
        it.finish("j", 100, at=50.0)
        assert it.scheduler.pools["m"].pace.slowdown == pytest.approx(slowdown, rel=0.02)


def test_scheduler_measures_service_from_the_last_dispatch() -> None:
    """Tokens are the usage's, else the forecast's for a full answer; a failed one counts
    nothing."""
    it = world()
    it.submit("j1", 100)
    it.submit("j2", 100)
    it.finish("j1", 200, at=10.0)
    pace = it.scheduler.pools["m"].pace
    assert pace.token_s == pytest.approx(10.0 / 200)
    it.finish("j2", None, at=40.0)
    assert pace.token_s == pytest.approx(40.0 / 300, rel=0.02)
    it.submit("j3", 100)
    it.feed(Finished("j3", Outcome.UPSTREAM_ERROR, Verdict.SERVER_ERROR), at=500.0)
    assert pace.completions == 2
    it.submit("j4", 100)
    it.feed(Withdrawn("j4"), at=900.0)
    assert pace.completions == 2


def test_scheduler_believes_no_more_than_was_asked_for() -> None:
    """A usage beyond n × max_tokens and some slack would pace an account for days."""
    for fields, most in (
        ({"max_tokens": 500}, 1500.0),
        ({"max_tokens": 500, "n": 3}, 2500.0),
        ({}, 201_000.0),
    ):
        it = world({"a": {}})
        it.submit("j", 100, **fields)
        it.finish("j", 1e9, at=10.0)
        pace = it.scheduler.pools["m"].pace
        assert pace.token_s == pytest.approx(10.0 / most)


def test_scheduler_wakes_no_earlier_than_now() -> None:
    """A wake whose moment has passed is due at once."""
    it = world(max_wait_s=10.0)
    it.submit("run")
    it.submit("j")
    assert it.scheduler.next_wake(4.0) == 10.0
    assert it.scheduler.next_wake(12.0) == 12.0


def test_scheduler_bounds_trust() -> None:
    """Trust is cut to 0 to 1."""
    it = world()
    for given, trust in ((-3.0, 0.0), (0.4, 0.4), (7.0, 1.0)):
        it.feed(Recalibrated(given))
        assert it.scheduler.trust == trust


def test_scheduler_serves_a_tenant_that_is_not_configured() -> None:
    """An unknown tenant has no caps and the weight of one."""
    it = world({"a": {}})
    assert started(it.submit("j1", tenant="new") + it.submit("j2", tenant="new")) == ["j1", "j2"]
    assert it.scheduler.tenants["new"].weight == 1.0


def test_scheduler_counts_how_jobs_ended() -> None:
    """Each job counts one outcome, also one that never came in."""
    it = world(max_queue_items=1, max_wait_s=10.0)
    for name in ("run", "w", "full"):
        it.submit(name)
    it.feed(Woke(), at=10.0)
    it.feed(Withdrawn("run", Outcome.SHUTDOWN))
    it.submit("?", model="?", accounts=("?",))
    ended = {outcome: n for outcome, n in it.scheduler.snapshot(10.0).ended.items() if n}
    assert ended == {Outcome.REJECTED: 2, Outcome.EVICTED: 1, Outcome.SHUTDOWN: 1}
    assert it.scheduler.snapshot(10.0).submitted == 4


def test_scheduler_does_not_blame_an_account_for_a_client_that_left() -> None:
    """A client that leaves is neither a success nor a drop, running or between two attempts."""
    it = world({"a": {"initial_concurrency": 2}})
    it.submit("j1")
    it.submit("j2")
    it.fail("j2", Verdict.RATE_LIMITED, retry_after_s=9.0)
    for name in ("j1", "j2"):
        it.feed(Withdrawn(name))
    (seen,) = it.scheduler.snapshot(it.now).accounts
    assert (seen.successes, seen.drops, seen.inflight) == (0, {Verdict.RATE_LIMITED: 1}, 0)


def test_scheduler_does_not_let_a_newcomer_pass_whose_time_has_come() -> None:
    """A job whose account is back goes before a newcomer, though no wake was sent yet."""
    it = world({"a": {"rpm": 6}})
    it.submit("j0")
    it.finish("j0", at=5.0)
    it.submit("j1", at=20.0)
    it.submit("j2")
    assert it.scheduler.next_wake(20.0) == 29.0
    assert started(it.submit("j3", at=30.0)) == ["j2"]


def test_scheduler_does_not_doubt_its_pace_for_an_account_that_rests() -> None:
    """Deadlines that end before any account serves again tell nothing of the length of answers."""
    it = world({"a": {"initial_concurrency": 1}})
    for n in range(12):
        it.submit(f"p{n}", 100)
        it.finish(f"p{n}", 100, at=it.now + 10.0)
    it.submit("x", 100)
    it.fail("x", Verdict.RATE_LIMITED, retry_after_s=60.0, retryable=False)
    pace = it.scheduler.pools["m"].pace
    before_s = pace.hopeful_token_s
    for n in range(8):
        (refused,) = it.submit(f"d{n}", 100, deadline_s=it.now + 30.0)
        assert isinstance(refused, Refuse)
    assert pace.hopeful_token_s == before_s
    it.feed(Woke(), at=it.now + 60.0)
    it.submit("hopeless", 10_000, deadline_s=it.now + 30.0)
    assert pace.hopeful_token_s != before_s


@pytest.mark.parametrize("reloaded", [False, True])
def test_scheduler_knows_after_a_reload_when_a_turn_was_served(reloaded: bool) -> None:
    """Deferred work has not waited since the clock's zero: the interactive go first."""
    given = settings(
        {"a": {"initial_concurrency": 1}},
        schedule={"clear_s": 30.0, "reject_above": 40.0, "max_overtake_s": 20.0,
                  "max_wait_s": 86_400.0},
    )  # fmt: skip
    it = World(given)
    for n in range(20):
        it.submit(f"p{n}", 100)
        it.finish(f"p{n}", 100, at=it.now + 10.0)
    it.submit("run", 100)
    for n in range(6):
        it.submit(f"i{n}", 60)
    it.submit("huge", 5000)
    if reloaded:
        it.feed(SettingsChanged(given))
    assert started(it.finish("run", 100, at=it.now + 1.0)) == ["i0"]


def test_scheduler_wakes_sooner_where_a_header_shortens_a_wait() -> None:
    """A job starts after a second if a header shortens its hold to that."""
    it = world({"a": {"initial_concurrency": 50}})
    for n in range(20):
        it.submit(f"j{n}", 100)
    for n in range(4):
        it.feed(Answered(f"j{n}", RateLimits(remaining_requests=50 - n)), at=0.1)
    it.feed(Answered("j5", RateLimits(remaining_requests=0, reset_requests_s=12.0)), at=0.2)
    assert it.submit("x", 100, at=0.3) == []
    late_s = it.scheduler.next_wake(0.3)
    it.feed(Answered("j6", RateLimits(60, 1, 1.0)), at=0.4)
    soon_s = it.scheduler.next_wake(0.4)
    assert soon_s is not None
    assert late_s is not None
    assert soon_s < 2.0 < late_s
    assert started(it.feed(Woke(), at=soon_s)) == ["x"]


@pytest.mark.parametrize("overtake_s", [120.0, 5.0])
def test_scheduler_deferred_of_a_class_with_room_are_not_hidden_by_one_without(
    overtake_s: float,
) -> None:
    """Under hard budgets the deferred turn has jobs of both classes and one has room: it goes, and
    no old job of the other goes in its place."""
    it = world(
        {"a": {"initial_concurrency": 50}},
        policy="dual_budget", borrow=False, ordering="fcfs", defer_above=0.001,
        reject_above=90.0, heavy_inflight_tokens=2000, interactive_inflight_tokens=2000,
        max_wait_s=3600.0, max_overtake_s=overtake_s,
    )  # fmt: skip
    quick = JobClass.INTERACTIVE
    for n in range(20):
        it.submit(f"p{n}", 300, at=float(n), class_override=quick)
        it.finish(f"p{n}", 3000, at=n + 0.9)
    it.submit("h0", 2000, at=30.0)
    it.submit("i0", 2000, at=30.0, class_override=quick)
    for name in ("h1", "h2"):
        it.submit(name, 1500, at=31.0)
    it.submit("i1", 1500, at=60.0, class_override=quick)
    assert started(it.finish("i0", 2000, at=70.0)) == ["i1"]


@pytest.mark.parametrize(("overtake_s", "first"), [(20.0, "old"), (3600.0, "small")])
def test_scheduler_deferred_wait_in_one_order_whatever_their_class(
    overtake_s: float, first: str
) -> None:
    """The bound on overtaking is the deferred turn's own: a smaller job of another class does not
    pass one of its tenant that came so long before; within the bound it does."""
    it = world(
        {"a": {"initial_concurrency": 1}},
        ordering="sjf", defer_above=0.001, reject_above=90.0, clear_s=30.0,
        max_wait_s=86_400.0, max_overtake_s=overtake_s,
    )  # fmt: skip
    for n in range(20):
        it.submit(f"p{n}", 100)
        it.finish(f"p{n}", 100, at=it.now + 10.0)
    it.submit("run", 100)
    it.submit("old", 6000)
    it.submit("small", 5000, at=it.now + 60.0, class_override=JobClass.INTERACTIVE)
    assert it.scheduler.pools["m"].deferred <= Grade.HUGE
    assert started(it.finish("run", 100)) == [first]


def test_scheduler_forgets_which_class_had_no_room_when_room_is_lent_again() -> None:
    """A class that had no room while borrowing had ended is seen again as soon as room is lent."""
    it = world(
        {"a": {"initial_concurrency": 50}},
        policy="dual_budget", borrow=True, ordering="fcfs", shed=False,
        heavy_inflight_tokens=2000, interactive_inflight_tokens=2000,
    )  # fmt: skip
    quick = JobClass.INTERACTIVE
    it.submit("i0", 2000, class_override=quick)
    it.submit("i1", 100, class_override=quick)
    it.submit("h0", 2500)
    assert it.submit("h1", 300) == []
    assert it.submit("i2", 300, class_override=quick) == []
    it.feed(Reforecast("h1", workload(310, rung=Rung.GLOBAL_NEIGHBORS)))
    assert started(it.finish("i1", 100)) == []
    assert sorted(started(it.finish("i0", 2000))) == ["h1", "i2"]


def test_scheduler_pool_and_job_show_themselves_in_a_debugger() -> None:
    """Their repr names the object and gives its counts, not an address."""
    it = world({"a": {"initial_concurrency": 1}})
    it.submit("run", 300)
    it.submit("waits", 200)
    assert repr(it.scheduler) == (
        "<Scheduler pools=1 tenants=1 jobs=2 waiting=1 submitted=2 dispatched=1 ended=0>"
    )
    it.feed(DrainStarted())
    assert repr(it.scheduler).endswith(" draining>")
    pool = repr(it.scheduler.pools["m"])
    assert pool.startswith("<Pool 'm' ")
    assert " waiting=1 retrying=0 running=1 tokens=300/" in pool
    live = repr(it.scheduler.jobs["run"])
    assert live.startswith("<LiveJob run RUNNING heavy of 't' in 'm' reserve=300 ")
    assert live.endswith(" account='a' attempts=1>")
