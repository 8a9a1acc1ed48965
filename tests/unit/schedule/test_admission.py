from __future__ import annotations

from typing import Any

import pytest

from gateway.schedule.events import Refuse, Woke
from gateway.schedule.pace import SURE
from gateway.schedule.rounds import Turn
from gateway.types import JobClass, Outcome, Reason
from tests.unit.schedule.build import World, refused, settings, started


def paced(token_s: float = 0.1, **schedule: Any) -> World:
    """One slot, whose pace is known: `token_s` seconds per token; rejecting from twice the
    backlog that is no overload."""
    it = World(
        settings(
            {"a": {"initial_concurrency": 1}},
            {"t": {}, "u": {"max_queued_tokens": 300}, "v": {}},
            schedule={"max_wait_s": 86_400.0, "reject_above": 2.0, **schedule},
        )
    )
    for n in range(12):
        it.submit(f"p{n}", 100)
        it.finish(f"p{n}", 100, at=it.now + 100 * token_s)
    return it


def test_deadline_that_the_queue_cannot_meet_is_refused_at_once() -> None:
    """A job is refused where now + predicted wait + median service is past its deadline; one that
    can be met is taken."""
    it = paced()
    it.submit("run", 100)
    it.submit("ahead", 300)
    (refusal,) = it.submit("hopeless", 100, deadline_s=it.now + 39.0)
    assert isinstance(refusal, Refuse)
    assert (refusal.error.status, refusal.error.code) == (429, "deadline_unreachable")
    assert refusal.error.retry_after_s is not None
    assert refusal.outcome is Outcome.REJECTED
    assert refused(it.submit("possible", 100, deadline_s=it.now + 45.0)) == {}


def test_deadline_of_the_first_byte_leaves_out_the_answers_time() -> None:
    """A deadline of the first byte is met when the stream starts."""
    it = paced()
    it.submit("run", 100)
    it.submit("ahead", 300)
    fields = {"deadline_s": it.now + 35.0, "deadline_first_byte": True}
    assert refused(it.submit("stream", 100, **fields)) == {}


def test_deadline_nearer_than_its_own_answer_is_refused_though_a_slot_is_free() -> None:
    """A job that would be late if it started now is refused."""
    it = paced()
    gone = it.submit("late", 1000, deadline_s=it.now + 50.0)
    assert refused(gone) == {"late": ("deadline_unreachable", Outcome.REJECTED)}
    assert started(it.submit("well", 1000, deadline_s=it.now + 200.0)) == ["well"]


def test_deadline_refuses_nobody_while_the_pace_is_not_known() -> None:
    """The first requests of a gateway's life are not refused by a guess."""
    it = World(settings({"a": {"initial_concurrency": 1}}))
    it.submit("run", 100)
    it.submit("ahead", 100_000, class_override=JobClass.BACKGROUND)
    assert refused(it.submit("j", 5000, deadline_s=1.0)) == {}


def test_waiting_job_leaves_when_its_answer_can_no_longer_be_in_time() -> None:
    """A wait ends at deadline − service, not at the deadline: the slot is another's."""
    it = paced()
    it.submit("run", 100)
    it.submit("j", 100, deadline_s=it.now + 25.0)
    at = it.now + 15.0
    assert it.scheduler.next_wake(it.now) == pytest.approx(at)
    gone = it.feed(Woke(), at=at + 0.001)
    assert refused(gone) == {"j": ("deadline_unreachable", Outcome.EVICTED)}


def test_ladder_rejects_the_dearest_that_would_wait_too_long() -> None:
    """The backlog before a job rejects huge ones first, then long, then medium; shorts never."""
    it = paced(clear_s=10.0)
    it.submit("run", 100)
    it.submit("w", 250)
    codes = [refused(it.submit(f"{tokens}", tokens)) for tokens in (30, 200, 500, 2000)]
    assert codes == [{}, {}, {"500": ("overloaded", Outcome.REJECTED)}, {
        "2000": ("overloaded", Outcome.REJECTED)
    }]  # fmt: skip
    assert refused(it.submit("medium", 250)) == {"medium": ("overloaded", Outcome.REJECTED)}
    assert refused(it.submit("short", 60)) == {}


def test_ladder_does_not_count_a_job_as_its_own_backlog() -> None:
    """A huge job that waits behind nothing but running jobs is no overload."""
    it = paced(clear_s=10.0)
    it.submit("run", 100)
    assert refused(it.submit("huge", 5000)) == {}


def test_ladder_does_not_reject_background_work() -> None:
    """Background work is not rejected: nobody holds a connection open for it."""
    it = paced(clear_s=10.0)
    it.submit("run", 100)
    it.submit("w", 250)
    it.submit("w2", 250)
    assert refused(it.submit("b", 2000, class_override=JobClass.BACKGROUND)) == {}
    assert refused(it.submit("h", 2000)) != {}


def test_background_work_is_no_backlog_to_others() -> None:
    """A thousand background jobs neither defer nor reject work that somebody waits for."""
    it = paced(clear_s=10.0)
    it.submit("run", 100)
    for n in range(20):
        assert refused(it.submit(f"b{n}", 2000, class_override=JobClass.BACKGROUND)) == {}
    assert refused(it.submit("h", 2000)) == {}
    (pool,) = it.scheduler.snapshot(it.now).pools
    assert pool.classes[JobClass.HEAVY].blocked == {Reason.OVERLOAD: 1}, "by its own size"
    assert pool.clear_s == pytest.approx(200.0)


def test_queue_gives_background_jobs_half_of_its_room_at_most() -> None:
    """Background jobs fill one half; others may fill all of it."""
    it = paced(max_queue_items=4, shed=False)
    it.submit("run", 100)
    codes = [refused(it.submit(f"b{n}", 50, class_override=JobClass.BACKGROUND)) for n in range(3)]
    assert codes == [{}, {}, {"b2": ("queue_full", Outcome.REJECTED)}]
    assert [refused(it.submit(f"h{n}", 100)) for n in range(2)] == [{}, {}]
    assert refused(it.submit("h2", 100)) == {"h2": ("queue_full", Outcome.REJECTED)}


def test_ladder_rejects_the_flooding_tenant_alone() -> None:
    """A job's backlog is its own tenant's share of the queue; the flooding tenant is sent away."""
    it = paced(clear_s=30.0)
    it.submit("run", 100)
    for n in range(12):
        it.submit(f"f{n}", 250)
    assert refused(it.submit("more", 2000)) == {"more": ("overloaded", Outcome.REJECTED)}
    assert refused(it.submit("hurried", 100, tenant="v", deadline_s=it.now + 100.0)) == {}
    assert refused(it.submit("calm", 2000, tenant="v")) == {}


def test_ladder_is_off_without_shed() -> None:
    """Without `shed` only the queue's own bounds refuse."""
    it = paced(clear_s=1.0, shed=False)
    it.submit("run", 100)
    for n in range(5):
        assert refused(it.submit(f"j{n}", 5000)) == {}
    assert Reason.OVERLOAD not in _reasons(it)


def test_ladder_defers_the_dear_and_starts_them_when_nothing_else_waits() -> None:
    """Deferred jobs go after the others, but for the background's share, and are not lost."""
    it = paced(clear_s=30.0, reject_above=100.0, max_overtake_s=3600.0)
    it.submit("run", 100)
    it.submit("huge", 2000)
    for n in range(8):
        it.submit(f"m{n}", 200)
    assert _reasons(it) == {Reason.OVERLOAD, Reason.ACCOUNT_LIMIT}
    order = []
    running = "run"
    while running:
        (running,) = started(it.finish(running, 100, at=it.now + 1.0)) or [""]
        order.append(running)
    assert set(order) == {"huge", *(f"m{n}" for n in range(8)), ""}
    assert order.index("huge") >= 5


def test_ladder_starts_a_deferred_job_that_waits_alone() -> None:
    """A deferred job starts as soon as a slot is free that nobody else wants."""
    it = paced(clear_s=10.0, reject_above=100.0)
    it.submit("run", 100)
    it.submit("huge", 5000)
    assert _reasons(it) == {Reason.OVERLOAD}
    assert started(it.finish("run", 100)) == ["huge"]


def test_queue_is_bounded_in_tokens() -> None:
    """The queue's tokens are bounded, of the pool and of one tenant."""
    it = paced(max_queue_tokens=1000, shed=False)
    it.submit("run", 100)
    assert refused(it.submit("w1", 600)) == {}
    assert refused(it.submit("w2", 600)) == {"w2": ("queue_full", Outcome.REJECTED)}
    assert refused(it.submit("u1", 200, tenant="u")) == {}
    (refusal,) = it.submit("u2", 200, tenant="u")
    assert isinstance(refusal, Refuse)
    assert str(refusal.error) == "too many of your requests are waiting"


def test_deadline_is_predicted_by_the_share_of_ones_tenant() -> None:
    """A tenant of four times the weight has four fifths of the pace: a job waits behind its own."""
    it = World(
        settings(
            {"a": {"initial_concurrency": 1}},
            {"t": {}, "big": {"weight": 4.0}},
            schedule={"max_wait_s": 86_400.0, "shed": False},
        )
    )
    for n in range(12):
        it.submit(f"p{n}", 100)
        it.finish(f"p{n}", 100, at=it.now + 10.0)
    it.submit("run", 100)
    for n in range(8):
        it.submit(f"t{n}", 250)
    it.submit("b1", 400, tenant="big")
    late = it.submit("late", 100, tenant="big", deadline_s=it.now + 58.0)
    assert refused(late) == {"late": ("deadline_unreachable", Outcome.REJECTED)}
    assert refused(it.submit("well", 100, tenant="big", deadline_s=it.now + 62.0)) == {}


def test_deadline_is_predicted_by_the_share_of_ones_class() -> None:
    """A class gets its part of the pace where other classes wait, and all of it alone."""
    it = paced(shed=False)
    it.submit("run", 100)
    it.submit("ahead", 300)
    it.submit("other", 3000, class_override=JobClass.INTERACTIVE)
    share = it.scheduler.pools["m"].rounds.share(Turn.HEAVY)
    assert share < 0.8
    wait_s = 30.0 / share
    late = it.submit("late", 100, deadline_s=it.now + wait_s + 9.0)
    assert refused(late) == {"late": ("deadline_unreachable", Outcome.REJECTED)}
    assert refused(it.submit("well", 100, deadline_s=it.now + wait_s + 11.0)) == {}


def test_retry_after_of_jobs_whose_wait_is_over_is_jittered() -> None:
    """The Retry-After of each refused job is jittered, before the queue and in it."""
    it = paced(shed=False)
    it.submit("run", 100)
    for n in range(20):
        it.submit(f"w{n}", 20, deadline_s=it.now + 60.0)
    evicted = it.feed(Woke(), at=it.now + 61.0)
    waits_s = {a.error.retry_after_s for a in evicted if isinstance(a, Refuse)}
    assert len(waits_s) == 20
    for deadline_s in (it.now, it.now + 1.0):  # it is past; it cannot be met
        late = [it.submit(f"l{n}", 900, deadline_s=deadline_s) for n in range(5)]
        assert len({a.error.retry_after_s for (a,) in late if isinstance(a, Refuse)}) == 5


def test_deadline_that_is_just_met_is_met() -> None:
    """The last moment before a deadline is in time."""
    it = paced(token_s=0.125, shed=False)
    it.submit("run", 100)
    it.submit("ahead", 300)
    assert refused(it.submit("met", 100, deadline_s=it.now + 37.5 + 12.5)) == {}
    late = it.submit("late", 100, deadline_s=it.now + 50.0 + 12.4)
    assert refused(late) == {"late": ("deadline_unreachable", Outcome.REJECTED)}


def test_deadline_is_predicted_by_an_answer_cut_at_max_tokens() -> None:
    """An answer is predicted no longer than max_tokens, and no longer than its forecast."""
    it = paced()
    it.submit("run", 100)
    for name, tokens, limit in (("cut", 5000, 100), ("short", 100, 5000)):
        taken = it.submit(name, tokens, max_tokens=limit, deadline_s=it.now + 25.0)
        assert refused(taken) == {}, name
        assert it.scheduler.jobs[name].expire_s == pytest.approx(it.now + 15.0)


def _reasons(it: World) -> set[Reason]:
    (pool,) = it.scheduler.snapshot(it.now).pools
    return {reason for shot in pool.classes.values() for reason in shot.blocked}


def test_deadline_is_not_hopeless_by_a_pace_that_is_not_sure() -> None:
    """A few slow answers refuse nobody by the length of its own; as many as make it sure do."""
    for answers, hopeless in ((SURE - 1, False), (SURE, True)):
        it = World(settings({"a": {"initial_concurrency": 1}}))
        for n in range(answers):
            it.submit(f"p{n}", 100)
            it.finish(f"p{n}", 100, at=it.now + 10.0)
        assert bool(refused(it.submit("j", 100, deadline_s=it.now + 5.0))) is hopeless
