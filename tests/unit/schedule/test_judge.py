from __future__ import annotations

import pytest

from gateway.schedule import ends
from gateway.schedule.rounds import Turn
from gateway.types import Blocked, JobClass, Outcome, Reason, Verdict
from tests.unit.schedule.build import World, settings
from tests.unit.schedule.judge import judge_rest, judge_start


def start(it: World, job_id: str, turn: Turn | None = Turn.HEAVY, account: str = "a") -> None:
    """Judges a start of this job, as if the scheduler had chosen it now."""
    live = it.scheduler.jobs[job_id]
    judge_start(it.scheduler, it.scheduler.pools[live.pool], live, account, turn, it.now)


def hard(policy: str, borrow: bool | None = False, **more: object) -> World:
    """Room for 100 tokens of each class, and on the account for more."""
    given = {"interactive_inflight_tokens": 100, "heavy_inflight_tokens": 100, **more}
    return World(settings(schedule={"policy": policy, "borrow": borrow, "shed": False, **given}))


@pytest.mark.parametrize(
    ("policy", "borrow"), [("dual_budget", None), ("dual_budget", False), ("adaptive", False)]
)
def test_judge_holds_a_class_to_its_budget(policy: str, borrow: bool | None) -> None:
    """At 100 of 100 tokens nothing starts, a giant that runs alone included; at 99 a job of any
    size may. A correction may carry a class over; the next start waits for it."""
    it = hard(policy, borrow)
    it.submit("j0", 100)
    it.submit("j1", 9000)
    assert it.waiting == {"j1"}
    with pytest.raises(AssertionError, match="has no room"):
        start(it, "j1")
    live, budget = it.scheduler.jobs["j0"], it.scheduler.pools["m"].budget
    live.reserve -= 1
    budget.correct(live.cls, -1)
    start(it, "j1")
    budget.correct(live.cls, 1)
    budget.limits[JobClass.HEAVY] = 1e9  # the twin: what is counted elsewhere is not believed
    live.reserve += 1
    if policy == "dual_budget":
        with pytest.raises(AssertionError, match="has no room"):
            start(it, "j1")


def test_judge_holds_background_work_to_the_heavy_budget() -> None:
    """With two budgets, background and heavy work fill the heavy one together."""
    it = hard("dual_budget")
    it.submit("j0", 60)
    it.submit("b", 60, class_override=JobClass.BACKGROUND)
    it.submit("h0", 60, short=False)
    it.submit("h1", 60, short=False)
    it.submit("b1", 60, class_override=JobClass.BACKGROUND)
    for job_id, turn in (("h1", Turn.HEAVY), ("b1", Turn.BACKGROUND)):
        with pytest.raises(AssertionError, match="has no room"):
            start(it, job_id, turn)


def test_judge_holds_borrowing_to_the_sum() -> None:
    """Fixed budgets lend below their sum, not beyond."""
    it = hard("dual_budget", True)
    it.submit("j0", 200)
    it.submit("j1", 100)
    with pytest.raises(AssertionError, match="has no room"):
        start(it, "j1")


def waits_for_a_slot(tenant: str = "t", **schedule: object) -> World:
    """j0 runs on the only slot; it is free the moment it is given back, and nothing drained."""
    it = World(
        settings(
            {"a": {"initial_concurrency": 1}},
            {"t": {}, "capped": {"max_inflight": 1}},
            schedule={"max_overtake_s": 10.0, "max_wait_s": 600.0, "shed": False, **schedule},
        )
    )
    it.submit("j0", tenant=tenant)
    return it


def free(it: World) -> None:
    ends.end_attempt(it.scheduler, it.scheduler.jobs["j0"], Verdict.IGNORED, it.now)
    ends.end(it.scheduler, it.scheduler.jobs["j0"], Outcome.CANCELLED)


def test_judge_sees_an_account_that_is_full() -> None:
    """A start beyond the account's limit is seen; the twin has a slot."""
    it = waits_for_a_slot()
    it.submit("j1")
    with pytest.raises(AssertionError, match="is full"):
        start(it, "j1")
    free(it)
    start(it, "j1")


def test_judge_sees_a_window_that_is_full() -> None:
    """A start beyond the window is seen, although the account's limit has room."""
    it = World(
        settings(
            {"a": {"initial_concurrency": 2, "max_concurrency": 50}}, balance={"window": "auto"}
        )
    )
    for n in range(4):
        it.submit(f"j{n}")
    account = it.accounts._accounts["a"]
    account.limit.value = 50.0
    assert it.scheduler.fits("j3", it.now) == Blocked(Reason.WINDOW)
    with pytest.raises(AssertionError, match="window is full"):
        start(it, "j3")


def test_judge_sees_caps_of_tenants_and_sizes() -> None:
    """A start beyond the tenant's or the size's cap is seen."""
    it = World(settings({"a": {}}, {"t": {"max_inflight": 1}}))
    it.submit("j0")
    it.submit("j1")
    with pytest.raises(AssertionError, match="beyond a cap"):
        start(it, "j1")
    it = World(settings(schedule={"tier_caps": {"long": 1}}))
    it.submit("j0", 1000)
    it.submit("j1", 1000)
    with pytest.raises(AssertionError, match="beyond a cap"):
        start(it, "j1")


def test_judge_sees_a_turn_that_starves() -> None:
    """Interactive work must not go once heavy work had no start for max_overtake_s; before that it
    may, and the starved turn itself may at any time."""
    it = waits_for_a_slot()
    it.submit("heavy", 5000, at=1.0)
    it.submit("short", 10, at=2.0)
    free(it)
    it.now = 10.0
    start(it, "short", Turn.INTERACTIVE)
    it.now = 11.5
    with pytest.raises(AssertionError, match="starves while"):
        start(it, "short", Turn.INTERACTIVE)
    start(it, "heavy")


def test_judge_sees_who_came_too_late_to_pass() -> None:
    """A job must not pass one of its class and tenant that came more than max_overtake_s before."""
    it = waits_for_a_slot()
    it.submit("old", 5000, at=1.0)
    it.submit("near", 100, at=11.0)
    it.submit("late", 100, at=11.5)
    free(it)
    start(it, "near")
    with pytest.raises(AssertionError, match="came long before"):
        start(it, "late")


def test_judge_sees_room_borrowed_before_its_owner() -> None:
    """A class beyond its budget goes only where none below its own could."""
    it = waits_for_a_slot(interactive_inflight_tokens=100, heavy_inflight_tokens=100)
    it.submit("heavy", 5000)
    it.submit("short", 10)
    free(it)
    it.scheduler.pools["m"].budget.limits[JobClass.HEAVY] = 0.0
    with pytest.raises(AssertionError, match="borrows before"):
        start(it, "heavy")
    start(it, "short", Turn.INTERACTIVE)


def test_judge_sees_a_newcomer_that_passes_who_could_start() -> None:
    """A newcomer that is asked alone goes only where nothing else could."""
    it = waits_for_a_slot()
    it.submit("j1")
    it.submit("j2")
    with pytest.raises(AssertionError):
        start(it, "j2", None)
    free(it)
    with pytest.raises(AssertionError, match="starts unasked before j1"):
        start(it, "j2", None)


def test_judge_sees_a_job_that_waits_although_it_could_start() -> None:
    """At rest nothing waits that could start; a slot that is given back undrained is seen."""
    it = waits_for_a_slot()
    it.submit("j1")
    judge_rest(it.scheduler, it.now)
    free(it)
    with pytest.raises(AssertionError, match="j1 waits in m although it could start"):
        judge_rest(it.scheduler, it.now)
