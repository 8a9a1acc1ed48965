from __future__ import annotations

from math import inf
from typing import Any

from gateway.balance.accounts import Accounts
from gateway.schedule.events import Event, Finished, Submitted
from gateway.schedule.live_job import LiveJob, Tenant
from gateway.schedule.model_pool import Pool
from gateway.schedule.placement_cache import PlacementCache
from gateway.schedule.scheduler import Scheduler
from gateway.types import Blocked, Fit, JobClass, Outcome, Reason, Verdict
from tests.unit.schedule.build import World, job, reason, settings, started


def world(**schedule: Any) -> World:
    return World(settings(schedule=schedule))


class Windowed(Accounts):
    """Accounts with one window for all: `window` slots, `above` of them for the express;
    what they were asked."""

    window, slots_above = 1, 1
    questions: list[bool]

    def choose(
        self,
        model: str,
        accounts: tuple[str, ...],
        now: float,
        avoid: frozenset[str] = frozenset(),
        *,
        express: bool = False,
    ) -> Fit | Blocked:
        self.questions.append(express)
        inflight = sum(account.inflight for account in self.snapshot(now))
        if inflight >= self.window + self.slots_above * express:
            return Blocked(Reason.WINDOW)
        return super().choose(model, accounts, now, avoid)


def windowed(**schedule: Any) -> World:
    it = world(**schedule)
    it.accounts = Windowed(it.settings.accounts, it.settings.balance)
    it.accounts.questions = []
    it.scheduler = Scheduler(it.settings, it.accounts)
    return it


def test_express_jobs_start_above_the_window() -> None:
    """A job is express by its forecast, not by a class that was asked for; and no more start than
    there are slots."""
    it = windowed()
    assert started(it.submit("h1", 300)) == ["h1"]
    assert started(it.submit("h2", 300)) == []
    actions = it.submit("asked", 300, class_override=JobClass.INTERACTIVE)
    assert started(actions) == []
    assert started(it.submit("s1", 20)) == ["s1"]
    assert started(it.submit("s2", 20)) == []
    assert {reason(it, name) for name in it.waiting} == {Reason.WINDOW}
    assert started(it.finish("s1", 20)) == ["s2"]


def test_express_is_of_the_adaptive_policy() -> None:
    """`dual_budget` has no slots above the window."""
    it = windowed(policy="dual_budget")
    it.submit("h1", 300)
    assert started(it.submit("s1", 20)) == []


def ask(it: World, event: Event) -> tuple[list[str], list[bool]]:
    """The jobs that start at the event, and `express` of each question to the accounts. (Not by
    `feed`, whose check asks too.)"""
    assert isinstance(it.accounts, Windowed)
    it.accounts.questions.clear()
    names = started(it.scheduler.handle(event, it.now))
    return names, list(it.accounts.questions)


def test_refusals_of_accounts_are_cached_until_an_account_changes() -> None:
    """However many jobs come, a refusal is cached; an end asks once for the next job, and once more
    for one that finds no place."""
    it = windowed()
    it.submit("run", 300)
    assert ask(it, Submitted(job("h0", 300))) == ([], [False])
    for n in range(1, 20):
        assert ask(it, Submitted(job(f"h{n}", 300))) == ([], [])
    end = Finished("run", Outcome.OK, Verdict.SUCCESS, 300.0)
    assert ask(it, end) == (["h0"], [False, False])


def test_slots_above_the_window_are_for_express_jobs_alone() -> None:
    """Only express jobs ask for the slots above, once the window is full; a refusal is cached."""
    it = windowed()
    assert ask(it, Submitted(job("h1", 300))) == (["h1"], [False])
    assert ask(it, Submitted(job("h2", 300))) == ([], [False])
    assert ask(it, Submitted(job("s1", 20))) == (["s1"], [True])
    assert ask(it, Submitted(job("s2", 20))) == ([], [True])
    assert ask(it, Submitted(job("s3", 20))) == ([], [])


def test_wake_is_when_an_account_has_rested_or_a_wait_ends() -> None:
    """The wake is the earliest moment at which time alone changes something."""
    it = world(max_wait_s=50.0)
    assert it.scheduler.next_wake(0.0) is None
    it.submit("j1")
    assert it.scheduler.next_wake(0.0) is None, "running jobs have no timer here"
    it.fail("j1", Verdict.RATE_LIMITED, retry_after_s=7.0)
    it.submit("j2", at=1.0)
    assert it.scheduler.next_wake(1.0) == 7.0
    it.fail("j1", at=2.0)
    assert it.scheduler.next_wake(2.0) == 7.0


def test_retry_is_not_offered_the_slots_above_the_window() -> None:
    """A retry of an express job waits for the window like any other, and `fits` agrees."""
    it = windowed()
    assert isinstance(it.accounts, Windowed)
    it.accounts.window = 2
    assert started(it.submit("s1", 20) + it.submit("h1", 300)) == ["s1", "h1"]
    it.accounts.window = 1
    assert started(it.fail("s1")) == []
    assert reason(it, "s1") is Reason.WINDOW
    assert started(it.finish("h1", 300)) == ["s1"]


class Recorder(Accounts):
    """Accounts whose window is full; what they were asked, word for word."""

    def __init__(self) -> None:
        super().__init__(settings().accounts, settings().balance)
        self.questions: list[tuple[Any, ...]] = []

    def choose(
        self,
        model: str,
        accounts: tuple[str, ...],
        now: float,
        avoid: frozenset[str] = frozenset(),
        *,
        express: bool = False,
    ) -> Fit | Blocked:
        self.questions.append((model, accounts, now, avoid, express))
        return Blocked(Reason.WINDOW, 9.0)


def test_questions_to_the_accounts_are_of_the_queue_that_is_asked_for() -> None:
    """Asked through the cache or past it, the accounts hear the queue's model, accounts and those
    to avoid, first for the window and then for the slots above it."""
    accounts = Recorder()
    cache = PlacementCache(accounts, express=True)
    pool = Pool("p", settings().schedule)
    queue = pool.queue("m", ("a", "b"), frozenset({"b"}))
    expected = [("m", ("a", "b"), 2.0, frozenset({"b"}), express) for express in (False, True)]
    for ask in (cache.ask_anew, cache.ask):
        accounts.questions.clear()
        assert ask(pool, queue, True, 2.0) == Blocked(Reason.WINDOW, 9.0)
        assert accounts.questions == expected
    accounts.questions.clear()
    assert cache.ask(pool, queue, True, 8.5) == Blocked(Reason.WINDOW, 9.0)
    assert accounts.questions == [], "a refusal is kept until its time"
    assert cache.ask(pool, queue, False, 9.0) == Blocked(Reason.WINDOW, 9.0)
    assert [asked[2] for asked in accounts.questions] == [9.0], "and not at it"


def test_pool_is_closed_until_the_time_that_its_accounts_named() -> None:
    """All of a pool's accounts are asked for no model at all, once until the answer runs out."""
    accounts = Recorder()
    cache = PlacementCache(accounts, express=True)
    pool = Pool("p", settings().schedule)
    pool.accounts = ("a", "b")
    assert [cache.is_closed(pool, now) for now in (2.0, 8.5)] == [True, True]
    assert accounts.questions == [("", ("a", "b"), 2.0, frozenset(), False)]
    assert cache.is_closed(pool, 9.0) is False


def test_wake_is_the_earliest_of_closed_pool_refusals_and_waits() -> None:
    """A closed pool wakes when it opens; a queue that holds jobs when a refusal of either kind or
    a wait runs out; times that are past wake nobody."""
    pool = Pool("p", settings().schedule)
    assert PlacementCache.wake_s(pool, 0.0) == inf
    pool.closed_s = 9.0
    assert [PlacementCache.wake_s(pool, now) for now in (8.0, 9.0, 10.0)] == [9.0, inf, inf]
    queue = pool.queue("m", ("a",))
    queue.cached.shut_s = 5.0
    assert PlacementCache.wake_s(pool, 0.0) == 9.0, "nothing waits there"
    live = LiveJob(job("j"), 0, 1, Tenant("t"))
    live.expire_s = 8.0
    queue.add_retrying(live)
    queue.cached_express.shut_s = 3.0
    found = [PlacementCache.wake_s(pool, now) for now in (0.0, 2.9, 3.0, 4.9, 5.0, 7.0)]
    assert found == [3.0, 3.0, 5.0, 5.0, 8.0, 8.0]
    queue.cached.shut_s = queue.cached_express.shut_s = 8.5
    assert PlacementCache.wake_s(pool, 6.0) == 8.0
