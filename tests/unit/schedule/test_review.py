"""Faults that an attack on the scheduling rooms found: a test for each."""

from __future__ import annotations

from gateway.balance.accounts import Accounts
from gateway.schedule.events import Answered, Finished, SettingsChanged, Submitted
from gateway.schedule.scheduler import Scheduler
from gateway.settings.effective import wide_open
from gateway.types import Fit, JobClass, Outcome, RateLimits, Reason, Verdict
from tests.unit.schedule.build import World, job, refused, settings, started


def test_deadline_refused_during_an_incident_is_accepted_after_it() -> None:
    """A deadline of 20 s is refused while answers take 25 s; once they take 5 s again the door
    opens by itself, although no refused job can show it."""
    it = World(settings({"a": {"initial_concurrency": 8}}))
    for n in range(40):
        it.submit(f"slow{n}", 100)
        it.finish(f"slow{n}", 100, at=it.now + 25.0)
    served = 0
    for n in range(100):
        it.now += 30.0
        if started(it.submit(f"j{n}", 100, deadline_s=it.now + 20.0)):
            served += 1
            it.finish(f"j{n}", 100, at=it.now + 5.0)
    assert served > 50


def test_header_of_one_model_does_not_hold_the_account_of_another() -> None:
    """A limit learned from the small model's headers does not hold the large one's, which report
    that nearly all is left."""
    it = World(settings({"a": {"initial_concurrency": 50}}))
    small, large = (
        RateLimits(limit_tokens=limit, remaining_tokens=round(0.95 * limit), reset_tokens_s=3.0)
        for limit in (30_000, 2_000_000)
    )
    for n in range(400):
        it.now += 0.1
        assert started(it.submit(f"j{n}", 1000)) == [f"j{n}"], n
        it.feed(Answered(f"j{n}", large if n % 4 else small))
        it.finish(f"j{n}", 1000)


def test_wrong_usage_holds_an_account_for_minutes_not_for_days() -> None:
    """A usage of a billion tokens of one answer is not believed."""
    it = World(settings({"a": {"initial_concurrency": 4, "tpm": 100_000}}))
    it.submit("mad", 100)
    it.finish("mad", 1e9)
    assert isinstance(it.accounts.choose("m", ("a",), it.now + 180.0), Fit)


def test_request_that_was_turned_down_is_no_spent_token() -> None:
    """A 400 gives back what was charged: others are not paced for it."""
    it = World(settings({"a": {"initial_concurrency": 4, "tpm": 60_000}}))
    for n in range(200):
        it.now += 0.1
        assert started(it.submit(f"bad{n}", 2500)) == [f"bad{n}"], n
        it.feed(Finished(f"bad{n}", Outcome.CLIENT_ERROR, Verdict.IGNORED))


def test_request_that_generates_nothing_teaches_no_pace() -> None:
    """An image of 30 s is not one token of 30 s."""
    it = World(settings({"a": {"initial_concurrency": 4}}))
    for n in range(30):
        it.submit(f"chat{n}", 100)
        it.finish(f"chat{n}", 100, at=it.now + 2.0)
        it.feed(Submitted(job(f"image{n}", 1, at=it.now, generates=False)))
        it.feed(Finished(f"image{n}", Outcome.OK, Verdict.SUCCESS, 5000), at=it.now + 30.0)
    assert abs((it.scheduler.pools["m"].pace.token_s or 0.0) - 0.02) < 0.001


def test_background_job_ends_when_its_model_is_removed() -> None:
    """A background job of a removed model ends, for its wait has no other end; one that waits for a
    key stays."""
    it = World(settings({"a": {"initial_concurrency": 1}, "b": {"models": ["k"]}}))
    it.submit("runs", 100)
    for name in ("w1", "w2"):
        it.submit(name, 100, class_override=JobClass.BACKGROUND)
    gone = it.feed(SettingsChanged(settings({"b": {"models": ["k"]}})))
    assert refused(gone) == dict.fromkeys(("w1", "w2"), ("no_account", Outcome.EVICTED))


def test_watching_learns_limits_and_limits_nothing() -> None:
    """In watch mode all jobs start and a 429 rests nothing; learned limits hold when scheduling
    begins."""
    given = settings({"a": {"initial_concurrency": 4, "max_concurrency": 256}})
    it = World(wide_open(given))
    for n in range(40):
        assert started(it.submit(f"j{n}", 100)) == [f"j{n}"]
    it.feed(Answered("j0", RateLimits(remaining_requests=0, limit_requests=100)))
    it.fail("j0", Verdict.RATE_LIMITED, retry_after_s=3600.0, retryable=False)
    assert started(it.submit("after", 100)) == ["after"]
    it.feed(SettingsChanged(given))
    assert it.accounts.snapshot(it.now)[0].limit < 10
    assert started(it.submit("late", 100)) == []


def test_accounts_of_a_failed_core_keep_their_health() -> None:
    """After a fault a refused key stays refused, a rest goes on, debts stay."""
    given = settings({"a": {}, "b": {}, "c": {"tpm": 600}})
    old = Accounts(given.accounts, given.balance)
    for name, verdict in (("a", Verdict.DEAD_KEY), ("b", Verdict.RATE_LIMITED)):
        old.give_back(old.take(name, "m", 1.0, 0.0), verdict, retry_after_s=60.0, now=0.0)
    old.take("c", "m", 60_000, 0.0)
    fresh = Accounts(given.accounts, given.balance)
    fresh.restore(old.to_save(), 0.0)
    fresh.inherit(old)
    reasons = [fresh.choose("m", (name,), 1.0) for name in ("a", "b", "c")]
    assert [getattr(answer, "reason", None) for answer in reasons] == [
        Reason.HEALTH,
        Reason.ACCOUNT_BACKOFF,
        Reason.PACER,
    ]
    fresh.check()


def test_tenants_cap_freed_in_one_pool_starts_its_job_in_another() -> None:
    """A job parked for its tenant's cap is found although no event touches its pool."""
    given = settings({"a": {}, "b": {"models": ["k"]}}, {"t": {"max_inflight": 1}})
    scheduler = Scheduler(given, Accounts(given.accounts, given.balance))
    scheduler.handle(Submitted(job("runs")), 0.0)
    other = job("waits", model="k", accounts=("b",))
    assert started(scheduler.handle(Submitted(other), 0.0)) == []
    freed = scheduler.handle(Finished("runs", Outcome.OK, Verdict.SUCCESS, 10), 1.0)
    assert started(freed) == ["waits"]
