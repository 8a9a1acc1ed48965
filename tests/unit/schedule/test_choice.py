from __future__ import annotations

import re
from typing import Any

import pytest

from gateway.schedule import choice
from gateway.schedule.events import Finished, Reforecast, Submitted, Woke
from gateway.schedule.live_job import LiveJob
from gateway.schedule.model_pool import Pool
from gateway.schedule.overload import Grade
from gateway.schedule.queue import AccountsQueue
from gateway.types import Blocked, Fit, JobClass, Outcome, Reason, Rung, SizeBucket, Verdict
from tests.unit.schedule.build import World, job, reason, settings, started, workload


def world(accounts: dict[str, dict[str, Any]] | None = None, **schedule: Any) -> World:
    return World(settings(accounts, {"t": {}, "small": {"max_inflight": 1}}, schedule=schedule))


def blocked_by_all() -> tuple[World, LiveJob]:
    """A job of a tenant at its cap, a class beyond its budget and a size at its cap."""
    it = world(heavy_inflight_tokens=100, borrow=False, tier_caps={"long": 1})
    it.submit("run", 300, tenant="small")
    it.submit("waits", 300, tenant="small")
    return it, it.scheduler.jobs["waits"]


def lift_tenant_cap(it: World) -> None:
    it.scheduler.tenants["small"].configure()


def lift_class_budget(it: World) -> None:
    it.scheduler.pools["m"].budget.limits[JobClass.HEAVY] = 1e9


def lift_tier_cap(it: World) -> None:
    it.scheduler.pools["m"].budget.buckets[SizeBucket.LONG] = 0


def answers(it: World, live: LiveJob, of_accounts: Fit | Blocked) -> tuple[Fit | Blocked, int]:
    """The predicate's answer, and how often it asked the accounts."""
    asked = []

    def ask(pool: Pool, queue: AccountsQueue, express: bool, now: float) -> Fit | Blocked:
        asked.append(express)
        return of_accounts

    pool = it.scheduler.pools[live.pool]
    queue = pool.queue_of(live)
    chooser = it.scheduler.chooser
    return chooser.may_start(pool, queue, live.queue_key, live.tenant, 0.0, ask=ask), len(asked)


def test_may_start_asks_in_the_order_that_the_module_states() -> None:
    """The first check that fails gives the reason; when it is lifted the next one of the module's
    head does, and the accounts are asked once all others pass."""
    it, live = blocked_by_all()
    no = Blocked(Reason.PACER, 7.0)
    found = [answers(it, live, no)]
    for lift in (lift_tenant_cap, lift_class_budget, lift_tier_cap):
        lift(it)
        found.append(answers(it, live, no))
    stated = re.findall(r"^\d\. `(\w+)`", choice.__doc__ or "", re.MULTILINE)
    assert [(a.reason.value, asked) for a, asked in found if isinstance(a, Blocked)] == [
        *((reason, 0) for reason in stated),
        ("pacer", 1),
    ]
    assert found[-1][0] is no, "with the accounts' own time"
    assert answers(it, live, Fit("a")) == (Fit("a"), 1)


def test_may_start_calls_any_refusal_of_a_deferred_job_overload() -> None:
    """A deferred job is refused with `overload` in place of the reason, and the same time; a Fit
    stands."""
    it, live = blocked_by_all()
    it.scheduler.pools["m"].deferred = Grade.LONG
    for lift in (lift_tenant_cap, lift_class_budget, lift_tier_cap):
        assert answers(it, live, Fit("a"))[0] == Blocked(Reason.OVERLOAD)
        lift(it)
    assert answers(it, live, Blocked(Reason.PACER, 7.0))[0] == Blocked(Reason.OVERLOAD, 7.0)
    assert answers(it, live, Fit("a"))[0] == Fit("a")
    it.scheduler.pools["m"].deferred = Grade.HUGE
    assert answers(it, live, Blocked(Reason.PACER, 7.0))[0] == Blocked(Reason.PACER, 7.0)


def test_fits_names_one_reason_for_each_job_that_waits() -> None:
    """Each job of a pool has the reason that keeps it."""
    it = world(
        {"a": {"initial_concurrency": 3}},
        interactive_inflight_tokens=50,
        heavy_inflight_tokens=5000,
        borrow=False,
        tier_caps={"long": 1},
    )
    it.submit("i1", 60)
    it.submit("h1", 300, tenant="small")
    it.submit("m1", 100)
    for name, tokens, tenant in (
        ("capped", 50, "small"),
        ("over", 50, "t"),
        ("long", 300, "t"),
        ("medium", 100, "t"),
    ):
        assert started(it.submit(name, tokens, tenant=tenant)) == []
    assert {name: reason(it, name) for name in it.waiting} == {
        "capped": Reason.TENANT_CAP,
        "over": Reason.CLASS_BUDGET,
        "long": Reason.TIER_CAP,
        "medium": Reason.ACCOUNT_LIMIT,
    }


def test_next_takes_the_interactive_class_first_within_its_credit() -> None:
    """The interactive job goes first, then the smaller of the heavy ones."""
    it = world({"a": {"initial_concurrency": 1}})
    it.submit("first", 100)
    it.submit("long", 3000, at=0.0)
    it.submit("short", 10, at=0.2)
    it.submit("middle", 200, at=0.1)
    order = []
    running = "first"
    while it.scheduler.jobs:
        (running,) = started(it.finish(running)) or [""]
        order.append(running)
    assert order == ["short", "middle", "long", ""]


def test_class_at_its_budget_waits_while_the_other_has_jobs_that_fit() -> None:
    """Without borrowing the rest of the pool stays the other class's."""
    it = world(interactive_inflight_tokens=100, heavy_inflight_tokens=1000, borrow=False)
    assert started(it.submit("i1", 60) + it.submit("i2", 60)) == ["i1", "i2"]
    assert started(it.submit("i3", 60)) == []
    assert reason(it, "i3") is Reason.CLASS_BUDGET
    assert started(it.submit("h1", 900)) == ["h1"]
    assert started(it.finish("i1")) == ["i3"]


def test_class_at_its_budget_borrows_what_the_other_leaves_idle() -> None:
    """A class borrows up to the sum of both budgets and the one job that crosses it."""
    it = world(
        policy="dual_budget",
        interactive_inflight_tokens=100,
        heavy_inflight_tokens=200,
        borrow=True,
    )
    names = [f"i{n}" for n in range(10)]
    running = [name for name in names if started(it.submit(name, 60))]
    assert running == names[:5]
    assert reason(it, "i5") is Reason.CLASS_BUDGET


def test_class_borrows_up_to_the_accounts_in_the_adaptive_policy() -> None:
    """Adaptive budgets say which class comes first, the accounts how many jobs there are."""
    it = world(
        {"a": {"initial_concurrency": 20}},
        interactive_inflight_tokens=100,
        heavy_inflight_tokens=200,
    )
    names = [f"i{n}" for n in range(25)]
    running = [name for name in names if started(it.submit(name, 60))]
    assert running == names[:20]
    assert reason(it, "i20") is Reason.ACCOUNT_LIMIT


def test_class_does_not_borrow_from_one_that_could_start() -> None:
    """The owner of a share comes first to it, in whatever order the jobs came."""
    it = world(
        {"a": {"initial_concurrency": 3}},
        interactive_inflight_tokens=100,
        heavy_inflight_tokens=1000,
    )
    for name in ("i1", "i2", "i3"):
        it.submit(name, 60)
    it.submit("i4", 60)
    it.submit("h1", 900)
    assert started(it.finish("i1")) == ["h1"], "i4 has the smaller key, but would borrow"
    assert started(it.finish("i2")) == ["i4"]


def test_class_borrows_past_one_that_is_blocked_for_its_own_reasons() -> None:
    """A capped size of the owner does not keep the room idle."""
    it = world(interactive_inflight_tokens=100, heavy_inflight_tokens=1000, tier_caps={"long": 1})
    it.submit("h1", 300)
    it.submit("h2", 300)
    assert reason(it, "h2") is Reason.TIER_CAP
    for name in ("i1", "i2", "i3"):
        assert started(it.submit(name, 60)) == [name]


def test_large_job_is_not_starved_by_small_ones() -> None:
    """A job larger than its budget goes as soon as the class is below it."""
    it = world(heavy_inflight_tokens=200, interactive_inflight_tokens=1, borrow=False)
    it.submit("h1", 150)
    assert started(it.submit("huge", 50_000)) == ["huge"]
    it.submit("h2", 150)
    assert started(it.finish("h1")) == []
    assert started(it.finish("huge")) == ["h2"]


def test_queue_of_other_accounts_is_not_hidden() -> None:
    """A job that waits for a full account lets those pass whose account has room."""
    it = world({"a": {"models": ["m", "k"], "initial_concurrency": 1}, "b": {"models": ["k"]}})
    it.submit("m1", 100)
    assert started(it.submit("m2", 100)) == []
    assert started(it.submit("k1", 4000, model="k", accounts=("a", "b"))) == ["k1"]


def test_fits_is_none_for_a_job_that_does_not_wait() -> None:
    """`fits` is None for a job that runs, has ended or was never known."""
    it = world()
    it.submit("j1")
    assert it.scheduler.fits("j1", 0.0) is None
    assert it.scheduler.fits("?", 0.0) is None
    it.feed(Reforecast("j1", workload(5, rung=Rung.GLOBAL_NEIGHBORS)))
    assert not isinstance(it.scheduler.fits("j1", 0.0), Fit)


def test_class_of_the_background_gets_what_the_others_leave() -> None:
    """Background work gets the rest, and its turn comes late but comes."""
    it = world({"a": {"initial_concurrency": 1}}, max_overtake_s=3600.0)
    it.submit("run", 100)
    for n in range(12):
        it.submit(f"b{n}", 100, class_override=JobClass.BACKGROUND)
        it.submit(f"h{n}", 100)
    order = []
    running = "run"
    for _ in range(10):
        (running,) = started(it.finish(running, 100))
        order.append(running[0])
    assert order.count("b") in (1, 2)
    it = world({"a": {"initial_concurrency": 1}})
    assert started(it.submit("alone", 100, class_override=JobClass.BACKGROUND)) == ["alone"]


def test_class_over_its_budget_is_not_starved_by_one_below_it() -> None:
    """While a giant runs far beyond the heavy budget and short jobs come for ever, the next heavy
    job still starts within max_overtake_s. Where budgets are hard, it waits for its class's own
    giant."""
    for borrow, bound_s in ((True, 10.0), (False, 100.0)):
        it = world({"a": {"initial_concurrency": 2}}, max_overtake_s=10.0, borrow=borrow)
        running = started(it.submit("giant", 30_000) + it.submit("s0", 50))[1:]
        it.submit("heavy", 300)
        while "heavy" not in running and it.now < 100.0:
            it.submit(f"s{it.now + 1:g}", 50, at=it.now + 1.0)
            running = started(it.finish(running[0], 50))
        assert it.now == bound_s


def test_turns_share_what_was_used_not_what_was_forecast() -> None:
    """If heavy answers are three times as long as forecast, their class gets a third of the
    starts."""
    it = world({"a": {"initial_concurrency": 1}}, max_overtake_s=3600.0, shed=False)
    work = {"h": 0, "b": 0}
    for n in range(900):
        it.scheduler.handle(Submitted(job(f"h{n}", 100)), 0.0)
        background = job(f"b{n}", 100, class_override=JobClass.BACKGROUND)
        it.scheduler.handle(Submitted(background), 0.0)
    running = "h0"
    for n in range(700):
        used = 300 if running[0] == "h" else 100
        work[running[0]] += used
        end = Finished(running, Outcome.OK, Verdict.SUCCESS, float(used))
        (running,) = started(it.scheduler.handle(end, n / 10))
    it.scheduler.check(70.0)
    assert work["h"] / work["b"] == pytest.approx(4.0, rel=0.1)


def test_job_passes_others_only_within_the_bound() -> None:
    """A job that came max_overtake_s later than the oldest of its tenant and class lets that one
    go."""
    for later, expected in ((4.0, "young"), (5.0, "old")):
        it = world({"a": {"initial_concurrency": 1}}, ordering="sjf", max_overtake_s=5.0)
        it.submit("run", 100)
        it.submit("old", 3000)
        it.submit("young", 200, at=later)
        assert started(it.finish("run", 100, at=later)) == [expected]


def test_job_is_not_passed_whatever_else_waits() -> None:
    """The oldest is found behind queues and sizes that hold nothing, or others' work."""
    it = world(
        {"a": {"models": ["k", "m"], "initial_concurrency": 1}}, ordering="sjf", max_overtake_s=5.0
    )
    it.submit("k1", 200, model="k")
    it.submit("k2", 200, model="k")
    it.submit("i1", 30)
    it.submit("small1", 2000, tenant="small")
    it.submit("middle", 200)
    it.submit("old", 3000, at=1.0)
    it.submit("i2", 30, at=1.0)
    order, running = [], "k1"
    it.submit("young", 150, at=20.0)
    while running:
        (running,) = started(it.finish(running, 100)) or [""]
        order.append(running)
    assert order.index("old") < order.index("young")


def test_oldest_goes_first_of_those_that_would_be_passed() -> None:
    """Of all sizes of a class the job that arrived first goes first."""
    it = world({"a": {"initial_concurrency": 1}}, ordering="sjf", max_overtake_s=5.0)
    it.submit("run", 100)
    for name, tokens, at in (("long", 500, 1.0), ("huge", 3000, 0.5), ("medium", 250, 2.0)):
        it.submit(name, tokens, at=at)
    it.submit("young", 150, at=20.0)
    order, running = [], "run"
    for _ in range(4):
        (running,) = started(it.finish(running, 100))
        order.append(running)
    assert order == ["huge", "long", "medium", "young"]


def test_oldest_that_cannot_start_holds_nobody_back() -> None:
    """A job whose size is capped is passed, however long it has waited."""
    it = world(
        {"a": {"initial_concurrency": 2}}, ordering="sjf", max_overtake_s=5.0, tier_caps={"long": 1}
    )
    it.submit("long1", 300)
    it.submit("run", 100)
    it.submit("long2", 300)
    it.submit("young", 150, at=20.0)
    assert started(it.finish("run", 100)) == ["young"]


def test_capped_tenants_size_hides_no_other() -> None:
    """Neither a capped tenant nor an account that rests hides another that could go."""
    it = world({"a": {"initial_concurrency": 2}})
    it.submit("r1", 100, tenant="small")
    it.submit("r2", 100)
    it.submit("s1", 300, tenant="small")
    it.submit("h1", 200)
    assert started(it.finish("r2", 100)) == ["h1"]
    it = world({"a": {}, "b": {"initial_concurrency": 1}})
    it.submit("a1", accounts=("a",))
    it.submit("b1", accounts=("b",))
    it.fail("a1", Verdict.RATE_LIMITED, retry_after_s=9.0)
    it.submit("a2", accounts=("a",))
    it.submit("b2", accounts=("b",))
    assert started(it.finish("b1", 100)) == ["b2"]


def test_retries_go_by_arrival_over_all_accounts() -> None:
    """The oldest retry that an account takes goes first; one whose account rests is passed."""
    it = world({"a": {"initial_concurrency": 3}, "b": {}})
    for name, at in (("r1", 0.0), ("r2", 1.0), ("r3", 2.0)):
        it.submit(name, at=at, accounts=("a",))
    for name in ("r3", "r1", "r2"):
        it.fail(name, Verdict.RATE_LIMITED, retry_after_s=9.0)
    it.submit("b1", accounts=("b",))
    assert it.waiting == {"r1", "r2", "r3"}
    limit = it.accounts.snapshot(it.now)[0].limit
    assert started(it.feed(Woke(), at=12.0)) == ["r1", "r2", "r3"][: int(limit)]


def test_turn_that_started_nothing_for_long_is_next() -> None:
    """A turn goes after max_overtake_s whatever its head costs; before that, and where the bound is
    0, it saves up for it."""
    for bound, expected in ((3600.0, False), (0.0, False), (20.0, True)):
        it = world({"a": {"initial_concurrency": 1}}, max_overtake_s=bound, shed=False)
        it.submit("i0", 30)
        it.submit("heavy", 50_000)
        order, running = [], "i0"
        for n in range(1, 30):
            it.submit(f"i{n}", 30)
            (running,) = started(it.finish(running, 30, at=it.now + 1.0))
            order.append(running)
            if running == "heavy":
                break
        assert ("heavy" in order) is expected, bound
        assert len(order) == (20 if expected else 29)


def test_turn_counts_its_wait_from_when_it_had_a_job() -> None:
    """A turn's time runs from when it began to wait, not from its last start long ago, and runs on
    while others of its class join."""
    it = world({"a": {"initial_concurrency": 1}}, max_overtake_s=20.0, shed=False)
    it.submit("i0", 30)
    it.submit("h0", 50_000, at=1000.0)
    it.submit("i1", 30, at=1010.0)
    assert started(it.finish("i0", 30, at=1011.0)) == ["i1"]
    for n in range(2, 6):
        it.submit(f"i{n}", 30)
        it.submit(f"h{n}", 50_000, at=1011.0 + n)
    assert started(it.finish("i1", 30, at=1019.0)) == ["i2"]
    assert started(it.finish("i2", 30, at=1021.0)) == ["h0"]


def test_best_that_is_remembered_is_dropped_when_its_tenant_is_capped() -> None:
    """The cap may fill in another pool, which moves nothing in this one."""
    it = world({"a": {"initial_concurrency": 1}, "b": {"models": ["k"]}}, ordering="fcfs")
    it.submit("run")
    it.submit("first")
    it.submit("capped", tenant="small")
    it.submit("last")
    handle = it.scheduler.handle  # `feed` also checks, which looks at every queue anew
    assert started(handle(Finished("run", Outcome.OK, Verdict.SUCCESS), 0.0)) == ["first"]
    other = job("other", model="k", accounts=("b",), tenant="small")
    assert started(handle(Submitted(other), 0.0)) == ["other"]
    assert started(handle(Finished("first", Outcome.OK, Verdict.SUCCESS), 0.0)) == ["last"]
    assert started(it.finish("other") + it.finish("last")) == ["capped"]


def test_turn_does_not_starve_where_there_is_no_bound() -> None:
    """With max_overtake_s = 0 the rounds alone decide; any other bound, a second too, makes the
    turn next that waited so long."""
    for bound, expected in ((0.0, "i1"), (1.0, "heavy"), (1.5, "i1")):
        it = world({"a": {"initial_concurrency": 1}}, max_overtake_s=bound, shed=False)
        it.submit("run", 100, class_override=JobClass.BACKGROUND)
        it.submit("heavy", 50_000)
        it.submit("i1", 30, at=0.5)
        assert started(it.finish("run", 100, at=1.0)) == [expected], bound
