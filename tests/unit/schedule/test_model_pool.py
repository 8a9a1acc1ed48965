from __future__ import annotations

from math import inf

import pytest

from gateway.schedule.events import Withdrawn, Woke
from gateway.schedule.model_pool import Pool
from gateway.schedule.overload import Grade
from gateway.schedule.rounds import Turn
from gateway.schedule.shares import LEFT_TOKENS, SLACK_TOKENS
from gateway.types import JobClass, Mode, Reason, Verdict
from tests.unit.schedule.build import World, refused, settings, started


def test_pool_keeps_the_others_that_failed_on_the_same_account() -> None:
    """Retries that are left still wait in their queue; the last one to leave takes the queue
    along."""
    it = World(settings({"a": {}}))
    for name in ("j1", "j2", "j3"):
        it.submit(name)
    for name in ("j1", "j2", "j3"):
        it.fail(name, Verdict.RATE_LIMITED, retry_after_s=9.0)
    pool = it.scheduler.pools["m"]
    assert len(pool.queues) == 2, "one for the new, one for those that avoid a"
    it.feed(Withdrawn("j2"))
    assert it.waiting == {"j1", "j3"}
    assert started(it.feed(Woke(), at=9.0)) == ["j1", "j3"]
    assert [queue.avoid for queue in pool.queues.values()] == [frozenset()]


def test_pool_asks_the_window_of_a_retrys_own_model() -> None:
    """A job that failed for one model waits for a slot of that model."""
    wide = {"initial_concurrency": 1, "max_concurrency": 9}
    it = World(settings({"a": wide, "b": wide}, balance={"window": "auto"}))
    for account in it.accounts._accounts.values():
        account.limit.restore(9.0, float("inf"))
    for name in ("full", "full2"):
        assert started(it.submit(name, accounts=("b",))) == [name]
    it.submit("j", accounts=("a", "b"))
    assert it.fail("j") == []
    blocked = it.scheduler.fits("j", it.now)
    assert getattr(blocked, "reason", None) is Reason.WINDOW
    assert started(it.finish("full")) == ["j"]


def test_pool_charges_a_start_to_its_turn_only_while_its_class_waits() -> None:
    """A class that waits for nothing owes nothing, at the start and at the end."""
    it = World(settings({"a": {"initial_concurrency": 1}}))
    it.submit("alone", 300)
    credit = it.scheduler.pools["m"].rounds.credit
    assert credit[Turn.HEAVY] == 0.0
    it.submit("w1", 100)
    it.submit("w2", 100)
    it.submit("w3", 100)
    it.finish("alone", 300)
    owed = credit[Turn.HEAVY]
    assert it.scheduler.pools["m"].waiting_of[JobClass.HEAVY] == 2
    it.finish("w1", 150)
    assert credit[Turn.HEAVY] < owed, "a start, and more than was forecast"
    it.finish("w2", 100)
    it.finish("w3", 100)
    assert credit[Turn.HEAVY] == 0.0


def test_pool_corrects_what_a_tenant_was_charged() -> None:
    """The correction counts output and a quarter of the prompt, as the charge did."""
    it = World(settings({"a": {}}))
    it.submit("j", 100)
    share = it.scheduler.pools["m"].shares[JobClass.HEAVY].of("t", 1.0)
    assert share.counter == pytest.approx(102.0)
    it.finish("j", 400)
    assert share.counter == pytest.approx(402.5)


def test_pool_is_full_at_its_bounds_and_not_before() -> None:
    """Items, bytes and tokens may be filled; one more is too much. 0 tokens bounds nothing."""
    for bound, body, tokens in (
        ({"max_queue_items": 2}, 0, 100),
        ({"max_queue_bytes": 2000}, 1000, 100),
        ({"max_queue_tokens": 200}, 0, 100),
    ):
        it = World(settings({"a": {"initial_concurrency": 1}}, schedule={"shed": False, **bound}))
        it.submit("run")
        answers = [refused(it.submit(f"w{n}", tokens, body_bytes=body)) for n in range(3)]
        assert answers[:2] == [{}, {}], bound
        assert answers[2] != {}, bound
    it = World(settings({"a": {"initial_concurrency": 1}}, schedule={"max_queue_tokens": 0}))
    it.submit("run")
    assert refused(it.submit("w", 5000)) == {}


def test_pool_gives_background_jobs_half_of_its_tokens_at_most() -> None:
    """Background work may fill one half of the tokens only."""
    it = World(
        settings(
            {"a": {"initial_concurrency": 1}}, schedule={"max_queue_tokens": 1000, "shed": False}
        )
    )
    it.submit("run")
    back = {"class_override": JobClass.BACKGROUND}
    assert refused(it.submit("b1", 500, **back)) == {}
    assert refused(it.submit("b2", 20, **back)) != {}
    assert refused(it.submit("h1", 500)) == {}


def test_pool_charges_nothing_for_a_job_that_ends_before_it_starts() -> None:
    """A job that never ran is charged nothing, whatever its end reports of tokens."""
    it = World(settings({"a": {"initial_concurrency": 1}}, {"t": {}, "u": {}}))
    it.submit("run")
    it.submit("w", tenant="u")
    it.finish("w", 5000)
    pool = it.scheduler.pools["m"]
    assert pool.shares[JobClass.HEAVY].of("u", 1.0).counter == 0.0
    assert not any(pool.rounds.credit.values())


def test_pool_saves_up_nothing_for_a_tenant_whose_job_starts_at_once() -> None:
    """After a pause a tenant is a step below the others, and what it then starts counts; a tenant
    that has jobs waiting comes from no pause, and is owed more."""
    one = {"initial_concurrency": 1}
    it = World(settings({"a": one, "b": one}, {"t": {}, "u": {}, "v": {}}))
    it.submit("runs", 100, accounts=("a",), tenant="v")
    it.submit("waits", 100, accounts=("a",), tenant="v")
    for n in range(10):
        it.submit(f"u{n}", 1000, accounts=("b",), tenant="u")
        it.finish(f"u{n}", 1000)
    shares = it.scheduler.pools["m"].shares[JobClass.HEAVY]
    charge = 1000 + 10 // 4
    assert shares.floor == pytest.approx(9 * charge, abs=30)
    it.submit("back", 1000, accounts=("b",), tenant="t")
    assert shares.of("t", 1.0).counter == shares.floor - SLACK_TOKENS + charge
    it.finish("back", 1000)
    it.submit("second", 1000, accounts=("b",), tenant="v")
    assert shares.of("v", 1.0).counter == shares.floor - LEFT_TOKENS + charge


def test_pool_is_empty_and_open_at_first() -> None:
    """A new pool holds nothing, is closed at no time, and is looked through at its first drain."""
    pool = Pool("p", settings().schedule)
    assert (pool.models, pool.accounts, pool.upstream) == ((), (), {})
    assert (pool.queues, pool.queues_on, pool.queued, pool.stale) == ({}, {}, {}, [])
    assert (pool.waiting, pool.waiting_tokens, pool.waiting_bytes) == (0, 0, 0)
    assert (pool.retrying, pool.retried) == (0, 0)
    assert (pool.mode, pool.saturation, pool.severity, pool.clear_s) == (Mode.FREE, 0.0, 0.0, 0.0)
    assert (pool.deferred, pool.rejected) == (Grade.NONE, Grade.NONE)
    assert (pool.closed_s, pool.wake_s, pool.armed_s) == (-inf, inf, inf)
    assert pool.due is True
