from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.schedule import ends
from gateway.schedule.check import check_start
from gateway.schedule.rounds import Turn
from gateway.types import Blocked, JobClass, Outcome, Reason, Verdict
from tests.unit.schedule.build import World, settings


def busy() -> World:
    it = World(settings({"a": {"initial_concurrency": 1}}, {"t": {"max_inflight": 5}}))
    for n in range(4):
        it.submit(f"j{n}", body_bytes=10)
    return it


def lose_the_queue(it: World) -> None:
    (queue,) = it.scheduler.pools["m"].queues.values()
    for class_queue in queue.class_queues.values():
        class_queue.heap = type(class_queue.heap)(lambda key, seq, lost: False)
        class_queue.best_is_known = False


def free_without_drain(it: World) -> None:
    live = it.scheduler.jobs["j0"]
    ends.end_attempt(it.scheduler, live, Verdict.IGNORED, it.now)
    ends.end(it.scheduler, live, Outcome.CANCELLED)


def break_tokens(it: World) -> None:
    it.scheduler.pools["m"].budget.tokens[JobClass.HEAVY] += 1


def break_outcome(it: World) -> None:
    it.scheduler.ended[Outcome.OK] += 1


def break_tenant(it: World) -> None:
    it.scheduler.tenants["t"].running += 1


def break_bytes(it: World) -> None:
    it.scheduler.pools["m"].waiting_bytes -= 1


def break_lease(it: World) -> None:
    it.scheduler.accounts.give_back(it.scheduler.jobs["j0"].lease, Verdict.IGNORED, now=it.now)


@pytest.mark.parametrize(
    "damage",
    [
        break_tokens,
        break_outcome,
        break_tenant,
        break_bytes,
        break_lease,
        lose_the_queue,
        free_without_drain,
    ],
)
def test_check_sees_damage(damage: Callable[[World], None]) -> None:
    """The twin of every check that passes: each broken sum, lost lane, idle room is seen."""
    it = busy()
    it.scheduler.check(it.now)
    damage(it)
    with pytest.raises(AssertionError):
        it.scheduler.check(it.now)


def start(it: World, job_id: str, turn: Turn | None = Turn.HEAVY, account: str = "a") -> None:
    """Judges a start of this job, as if the scheduler had chosen it now."""
    live = it.scheduler.jobs[job_id]
    check_start(it.scheduler, it.scheduler.pools[live.pool], live, account, turn, it.now)


def hard(policy: str, borrow: bool | None = False, **more: object) -> World:
    """Room for 100 tokens of each class, and on the account for more."""
    given = {"interactive_inflight_tokens": 100, "heavy_inflight_tokens": 100, **more}
    return World(settings(schedule={"policy": policy, "borrow": borrow, "shed": False, **given}))


@pytest.mark.parametrize(
    ("policy", "borrow"), [("dual_budget", None), ("dual_budget", False), ("adaptive", False)]
)
def test_check_start_holds_a_class_to_its_budget(policy: str, borrow: bool | None) -> None:
    """To the token: at 100 of 100 nothing starts, a giant that runs alone included; at 99 a
    job of any size may. A correction may carry a class over; the next start waits for it."""
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


def test_check_start_holds_background_work_to_the_heavy_budget() -> None:
    """Where there are two: together."""
    it = hard("dual_budget")
    it.submit("j0", 60)
    it.submit("b", 60, class_override=JobClass.BACKGROUND)
    it.submit("h0", 60, short=False)
    it.submit("h1", 60, short=False)
    it.submit("b1", 60, class_override=JobClass.BACKGROUND)
    for job_id, turn in (("h1", Turn.HEAVY), ("b1", Turn.BACKGROUND)):
        with pytest.raises(AssertionError, match="has no room"):
            start(it, job_id, turn)


def test_check_start_holds_borrowing_to_the_sum() -> None:
    """Fixed budgets that lend: below both together, not beyond."""
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


def test_check_start_sees_an_account_that_is_full() -> None:
    """By its limit; the twin has a slot."""
    it = waits_for_a_slot()
    it.submit("j1")
    with pytest.raises(AssertionError, match="is full"):
        start(it, "j1")
    free(it)
    start(it, "j1")


def test_check_start_sees_a_window_that_is_full() -> None:
    """Below the account's limit."""
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


def test_check_start_sees_caps_of_tenants_and_sizes() -> None:
    """At the tenant's, at the size's."""
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


def test_check_start_sees_a_turn_that_starves() -> None:
    """Interactive work goes while heavy work had no start for max_overtake_s; before that it
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


def test_check_start_sees_who_came_too_late_to_pass() -> None:
    """Of one class and tenant: later by more than max_overtake_s."""
    it = waits_for_a_slot()
    it.submit("old", 5000, at=1.0)
    it.submit("near", 100, at=11.0)
    it.submit("late", 100, at=11.5)
    free(it)
    start(it, "near")
    with pytest.raises(AssertionError, match="came long before"):
        start(it, "late")


def test_check_start_sees_room_borrowed_before_its_owner() -> None:
    """A class beyond its budget goes only where none below its own could."""
    it = waits_for_a_slot(interactive_inflight_tokens=100, heavy_inflight_tokens=100)
    it.submit("heavy", 5000)
    it.submit("short", 10)
    free(it)
    it.scheduler.pools["m"].budget.limits[JobClass.HEAVY] = 0.0
    with pytest.raises(AssertionError, match="borrows before"):
        start(it, "heavy")
    start(it, "short", Turn.INTERACTIVE)


def test_check_start_sees_a_newcomer_that_passes_who_could_start() -> None:
    """One that is asked alone goes only where nothing else could."""
    it = waits_for_a_slot()
    it.submit("j1")
    it.submit("j2")
    with pytest.raises(AssertionError):
        start(it, "j2", None)
    free(it)
    with pytest.raises(AssertionError, match="starts unasked before j1"):
        start(it, "j2", None)
