"""The ends of jobs and attempts, beside those that test_scheduler.py covers by events."""

from __future__ import annotations

import pytest

from gateway.balance.accounts import Accounts
from gateway.schedule.events import Answered, Finished, Reforecast, Withdrawn
from gateway.schedule.live_job import PROMPT_RATIO
from gateway.schedule.scheduler import Scheduler
from gateway.types import Blocked, Fit, Outcome, RateLimits, Rung, Verdict
from tests.unit.schedule.build import World, settings, started, workload

MODELS = [f"m{n}" for n in range(10)]


class Counting(Accounts):
    """Accounts that count how often they are asked for a place."""

    questions: list[str]

    def choose(
        self,
        model: str,
        accounts: tuple[str, ...],
        now: float,
        avoid: frozenset[str] = frozenset(),
        *,
        express: bool = False,
    ) -> Fit | Blocked:
        self.questions.append(model)
        return super().choose(model, accounts, now, avoid, express=express)


def crowded(window: str, limit: float) -> tuple[World, Counting]:
    """Ten models on one account, six jobs of each: a window holds four, the account `limit`."""
    given = settings(
        {"a": {"models": MODELS, "initial_concurrency": 4, "max_concurrency": 256}},
        balance={"window": window},
    )
    accounts = Counting(given.accounts, given.balance)
    accounts._accounts["a"].limit.value = limit
    accounts.questions = []
    it = World(given)
    it.accounts, it.scheduler = accounts, Scheduler(given, accounts)
    for n in range(60):
        it.submit(f"j{n}", 300, model=MODELS[n % 10])
    accounts.questions.clear()
    return it, accounts


def end(it: World, job_id: str) -> list[str]:
    """Without `check`, which asks for every job; the jobs that started."""
    it.now += 1.0
    done = Finished(job_id, Outcome.OK, Verdict.SUCCESS, 300.0)
    return started(it.scheduler.handle(done, it.now))


def test_end_asks_for_its_own_model_alone_where_windows_are_full() -> None:
    """While all ten models wait for windows, the accounts are asked for the model that ended
    alone."""
    it, accounts = crowded("auto", limit=256.0)
    assert len(it.waiting) == 20
    end(it, "j1")
    accounts.questions.clear()
    (again,) = end(it, "j3")
    assert it.scheduler.jobs[again].job.model == "m3"
    assert set(accounts.questions) <= {"m3", ""}
    it.scheduler.check(it.now)


def test_end_on_a_full_account_starts_the_next_job_of_any_model() -> None:
    """A full account's freed slot goes to the next job of whatever model; no model is asked for in
    vain."""
    it, accounts = crowded("off", limit=4.0)
    assert len(it.waiting) == 56
    accounts.questions.clear()
    assert end(it, "j0") == ["j4", "j5", "j6"], "and the limit has grown by two"
    assert set(accounts.questions) == {"", "m0", "m4", "m5", "m6"}
    accounts.questions.clear()
    it.scheduler.handle(Reforecast("j30", workload(400, rung=Rung.GLOBAL_NEIGHBORS)), it.now)
    assert set(accounts.questions) <= {"m0"}
    it.scheduler.check(it.now)


@pytest.mark.parametrize(("remaining", "opens"), [(1, False), (50, True)])
def test_first_byte_starts_what_waits_only_where_headers_open_the_account(
    remaining: int, opens: bool
) -> None:
    """Headers open an account that was paced by what an earlier answer left of its limit."""
    it = World(settings({"a": {"initial_concurrency": 8}}))
    for name in ("r1", "r2"):
        it.submit(name)
    it.feed(Answered("r1", RateLimits(limit_requests=60, remaining_requests=3)))
    names = [f"j{n}" for n in range(5)]
    waiting = [name for name in names if not started(it.submit(name))]
    assert 0 < len(waiting) < 5
    limits = RateLimits(limit_requests=60, remaining_requests=remaining)
    assert started(it.feed(Answered("r2", limits))) == (waiting if opens else [])


def owed(it: World) -> float:
    return sum(
        share.counter for share in it.scheduler.pools["m"].shares_of(it.scheduler.tenant("t"))
    )


def measured() -> World:
    """A pool that knows its pace: a tenth of a second a token."""
    it = World(settings({"a": {"initial_concurrency": 8}}))
    it.submit("known", 100)
    it.finish("known", 100.0, at=10.0)
    return it


@pytest.mark.parametrize(
    ("left_after_s", "made"), [(0.0, 0.0), (2.0, 4 * 20.0), (1000.0, 4 * 100.0)]
)
def test_uncounted_job_that_is_withdrawn_is_charged_for_its_time(
    left_after_s: float, made: float
) -> None:
    """A job is charged what its choices can have made at the pool's pace, at most the forecast, and
    the prompt."""
    it = measured()
    before = owed(it)
    it.submit("batch", 100, n=4)
    it.feed(Withdrawn("batch"), at=it.now + left_after_s)
    assert owed(it) - before == pytest.approx(made + PROMPT_RATIO * 10)


def test_uncounted_job_is_charged_its_forecast_where_nothing_tells_better() -> None:
    """The forecast is charged before any measurement, for work that makes no text, and for an
    answer without usage."""
    it = World(settings({"a": {"initial_concurrency": 8}}))
    it.submit("first", 100)
    it.feed(Withdrawn("first"))
    assert owed(it) == 102
    it = measured()
    before = owed(it)
    it.submit("embeddings", 1, generates=False)
    it.feed(Withdrawn("embeddings"))
    it.submit("uncounted", 100)
    it.finish("uncounted")
    assert owed(it) - before == 3 + 102


@pytest.mark.parametrize(
    ("counted", "prompt", "made"),
    [
        (2.0, None, 50.0),  # events of 25 tokens each, or thoughts that came in none
        (70.0, None, 70.0),  # a stream faster than the pool
        (2.0, 10.0, 2.0),  # the twin: the provider's own word stands
    ],
)
def test_stream_that_is_left_is_charged_no_less_than_its_time(
    counted: float, prompt: float | None, made: float
) -> None:
    """Events are a lower bound of tokens: leaving just before the end is not free."""
    it = measured()
    before = owed(it)
    it.submit("stream", 100)
    end = Finished("stream", Outcome.CANCELLED, Verdict.IGNORED, counted, prompt)
    it.feed(end, at=it.now + 5.0)
    assert owed(it) - before == pytest.approx(made + PROMPT_RATIO * 10)


@pytest.mark.parametrize(("outcome", "token_s"), [(Outcome.CANCELLED, 0.1), (Outcome.OK, 0.198)])
def test_stream_that_is_left_teaches_no_pace(outcome: Outcome, token_s: float) -> None:
    """A client that leaves at the first event does not make the pool look slow; the twin ends."""
    it = measured()
    it.submit("stream", 100)
    it.feed(Finished("stream", outcome, Verdict.IGNORED, 1.0), at=it.now + 10.0)
    assert it.scheduler.pools["m"].pace.token_s == pytest.approx(token_s, rel=0.02)
