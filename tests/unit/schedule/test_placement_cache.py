from __future__ import annotations

from typing import Any

from gateway.balance.account_pool import Accounts
from gateway.schedule.events import Event, Finished, Submitted
from gateway.schedule.scheduler import Scheduler
from gateway.types import Blocked, Fit, JobClass, Outcome, Reason, Verdict
from tests.unit.schedule.build import World, job, reason, settings, started


def world(**schedule: Any) -> World:
    return World(settings(schedule=schedule))


class Windowed(Accounts):
    """Accounts with one window for all: `window` slots, `above` of them for the express;
    what they were asked."""

    window, cached_above = 1, 1
    asked: list[bool]

    def choose(
        self,
        model: str,
        accounts: tuple[str, ...],
        now: float,
        avoid: frozenset[str] = frozenset(),
        *,
        express: bool = False,
    ) -> Fit | Blocked:
        self.asked.append(express)
        inflight = sum(account.inflight for account in self.snapshot(now))
        if inflight >= self.window + self.cached_above * express:
            return Blocked(Reason.WINDOW)
        return super().choose(model, accounts, now, avoid)


def windowed(**schedule: Any) -> World:
    it = world(**schedule)
    it.accounts = Windowed(it.settings.accounts, it.settings.balance)
    it.accounts.asked = []
    it.scheduler = Scheduler(it.settings, it.accounts)
    return it


def test_express_lets_what_may_be_short_start_above_the_window() -> None:
    """By its forecast, not by a class that was asked for; and no more than there are slots."""
    it = windowed()
    assert started(it.submit("h1", 300)) == ["h1"]
    assert started(it.submit("h2", 300)) == []
    asked = it.submit("asked", 300, class_override=JobClass.INTERACTIVE)
    assert started(asked) == []
    assert started(it.submit("s1", 20)) == ["s1"]
    assert started(it.submit("s2", 20)) == []
    assert {reason(it, name) for name in it.waiting} == {Reason.WINDOW}
    assert started(it.finish("s1", 20)) == ["s2"]


def test_express_is_of_the_adaptive_policy() -> None:
    """The seed's policy has none."""
    it = windowed(policy="dual_budget")
    it.submit("h1", 300)
    assert started(it.submit("s1", 20)) == []


def asked(it: World, event: Event) -> tuple[list[str], list[bool]]:
    """What starts at the event, and whether express, of each question to the accounts. (Not by
    `tell`, whose check asks too.)"""
    assert isinstance(it.accounts, Windowed)
    it.accounts.asked.clear()
    names = started(it.scheduler.handle(event, it.now))
    return names, list(it.accounts.asked)


def test_accounts_that_said_no_are_not_asked_again_until_they_have_news() -> None:
    """However many come; the end of a job is news: one question finds the next its place,
    another that there is none for more."""
    it = windowed()
    it.submit("run", 300)
    assert asked(it, Submitted(job("h0", 300))) == ([], [False])
    for n in range(1, 20):
        assert asked(it, Submitted(job(f"h{n}", 300))) == ([], [])
    end = Finished("run", Outcome.OK, Verdict.SUCCESS, 300.0)
    assert asked(it, end) == (["h0"], [False, False])


def test_accounts_are_asked_for_slots_above_the_window_by_the_express_alone() -> None:
    """And only once the window is full; what it said is not asked again."""
    it = windowed()
    assert asked(it, Submitted(job("h1", 300))) == (["h1"], [False])
    assert asked(it, Submitted(job("h2", 300))) == ([], [False])
    assert asked(it, Submitted(job("s1", 20))) == (["s1"], [True])
    assert asked(it, Submitted(job("s2", 20))) == ([], [True])
    assert asked(it, Submitted(job("s3", 20))) == ([], [])


def test_wake_is_when_an_account_has_rested_or_a_wait_ends() -> None:
    """The earliest moment at which time alone changes something."""
    it = world(max_wait_s=50.0)
    assert it.scheduler.next_wake(0.0) is None
    it.submit("j1")
    assert it.scheduler.next_wake(0.0) is None, "running jobs have no timer here"
    it.fail("j1", Verdict.RATE_LIMITED, retry_after_s=7.0)
    it.submit("j2", at=1.0)
    assert it.scheduler.next_wake(1.0) == 7.0
    it.fail("j1", at=2.0)
    assert it.scheduler.next_wake(2.0) == 7.0
