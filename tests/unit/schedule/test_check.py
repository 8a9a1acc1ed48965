from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.schedule import ends
from gateway.types import JobClass, Outcome, Verdict
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
        class_queue.best_is_current = False


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
    """Each broken sum, lost queue or idle slot is seen: the twin of every check that passes."""
    it = busy()
    it.scheduler.check(it.now)
    damage(it)
    with pytest.raises(AssertionError):
        it.scheduler.check(it.now)


def test_check_needs_no_time_where_an_account_rests() -> None:
    """Without a time all but work conservation is checked, also while an account rests."""
    it = World(settings({"a": {}, "b": {}}))
    it.submit("j")
    it.submit("rests")
    it.fail("rests", Verdict.RATE_LIMITED, retry_after_s=9.0)
    it.scheduler.check()
    it.scheduler.accounts.give_back(it.scheduler.jobs["j"].lease, Verdict.IGNORED, now=it.now)
    with pytest.raises(AssertionError):
        it.scheduler.check()


def test_check_sees_a_wait_that_is_over() -> None:
    """A job waits no longer than to its last moment, at which it is refused."""
    it = busy()
    over_s = it.scheduler.jobs["j1"].expire_s
    it.scheduler.check(over_s - 0.1)
    with pytest.raises(AssertionError, match="overdue"):
        it.scheduler.check(over_s)
