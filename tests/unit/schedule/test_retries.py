from __future__ import annotations

from typing import Any

import pytest

from gateway.schedule.ends import attempts_allowed
from gateway.schedule.events import Dispatch, Refuse, Woke
from gateway.types import JobClass, Outcome, Verdict
from tests.unit.schedule.build import World, places, refused, settings, started

AB = ("a", "b")


def world(accounts: dict[str, dict[str, Any]] | None = None, **sections: Any) -> World:
    return World(settings(accounts or {"a": {}, "b": {}}, **sections))


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict.RATE_LIMITED,
        Verdict.OVERLOADED,
        Verdict.TIMEOUT,
        Verdict.SERVER_ERROR,
        Verdict.UNREACHABLE,
        Verdict.DEAD_KEY,
    ],
)
def test_retry_goes_to_another_account_at_once(verdict: Verdict) -> None:
    """Before the first byte a failed job goes to an account it has not failed on."""
    it = world()
    it.submit("j1", accounts=AB)
    assert it.fail("j1", verdict) == [Dispatch("j1", "b", 2, 100)]


def test_retry_keeps_its_reserve_and_its_place() -> None:
    """The reserve is the job's, not the attempt's."""
    it = world()
    it.submit("j1", 100, accounts=AB)
    it.fail("j1")
    heavy = it.scheduler.snapshot(0.0).pools[0].classes[JobClass.HEAVY]
    assert (heavy.inflight_tokens, heavy.running) == (100, 1)


def test_retry_ends_with_its_attempts() -> None:
    """A job has three attempts in all; then the last error goes to the client."""
    it = world()
    it.submit("j1", accounts=AB)
    assert places(it.fail("j1")) == {"j1": "b"}
    assert places(it.fail("j1")) == {"j1": "a"}, "no other is left, a third attempt is"
    (refusal,) = it.fail("j1")
    assert isinstance(refusal, Refuse)
    assert (str(refusal.error), refusal.outcome) == (
        "the attempt of j1 failed",
        Outcome.UPSTREAM_ERROR,
    )


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (Verdict.TIMEOUT, Outcome.UPSTREAM_TIMEOUT),
        (Verdict.RATE_LIMITED, Outcome.RATE_LIMITED),
        (Verdict.IGNORED, Outcome.CLIENT_ERROR),
        (Verdict.DEAD_KEY, Outcome.UPSTREAM_ERROR),
    ],
)
def test_retry_that_must_not_be_made_ends_the_job(verdict: Verdict, outcome: Outcome) -> None:
    """With retryable = False the error goes out, and the outcome follows the verdict."""
    it = world()
    it.submit("j1", accounts=AB)
    gone = refused(it.fail("j1", verdict, retryable=False))
    assert gone == {"j1": ("upstream_failed", outcome)}


def test_retry_of_a_429_waits_for_the_account_instead_of_failing() -> None:
    """While all accounts rest the job queues, and goes before others when one is back."""
    it = world({"a": {"initial_concurrency": 1}})
    it.submit("j1")
    it.submit("j2", 1)
    assert it.fail("j1", Verdict.RATE_LIMITED, retry_after_s=5.0) == []
    assert it.scheduler.next_wake(0.0) == 5.0
    assert started(it.feed(Woke(), at=5.0)) == ["j1"]


def test_retry_of_a_429_costs_a_quarter_of_an_attempt() -> None:
    """A job has twelve attempts that end in 429, not three; and then an end."""
    it = world({"a": {}})
    it.submit("j1")
    answers = []
    for n in range(12):
        answers.append(refused(it.fail("j1", Verdict.RATE_LIMITED, retry_after_s=1.0)))
        it.feed(Woke(), at=float(n + 1))
    assert answers == [{}] * 11 + [{"j1": ("upstream_failed", Outcome.RATE_LIMITED)}]


def test_retry_does_not_wait_for_an_account_that_rests_too_long() -> None:
    """If the backoff ends after the job's deadline, the error goes out at once."""
    it = world({"a": {}})
    it.submit("j1", deadline_s=20.0)
    gone = refused(it.fail("j1", Verdict.RATE_LIMITED, retry_after_s=60.0))
    assert gone == {"j1": ("upstream_failed", Outcome.RATE_LIMITED)}


def test_retry_waits_no_longer_than_what_is_left_of_max_wait() -> None:
    """max_wait_s bounds the waits of a job in all; running does not count."""
    it = world({"a": {"initial_concurrency": 1}}, schedule={"max_wait_s": 10.0})
    it.submit("j0")
    it.submit("j1")
    assert started(it.finish("j0", at=4.0)) == ["j1"]
    it.fail("j1", Verdict.RATE_LIMITED, retry_after_s=5.0, at=100.0)
    assert started(it.feed(Woke(), at=105.0)) == ["j1"]
    gone = refused(it.fail("j1", Verdict.RATE_LIMITED, retry_after_s=5.0, at=200.0))
    assert gone == {"j1": ("upstream_failed", Outcome.RATE_LIMITED)}


def test_retry_waits_for_another_account_that_is_full() -> None:
    """A full account has room soon; the one that failed is not tried again before."""
    it = world({"a": {}, "b": {"initial_concurrency": 1}})
    it.submit("j1", accounts=AB)
    it.submit("j2", accounts=("b",))
    assert it.fail("j1") == []
    assert places(it.finish("j2")) == {"j1": "b"}


def test_retry_never_goes_back_where_the_key_was_refused() -> None:
    """An account that refused its key is out even when it is the only one left."""
    it = world({"a": {}, "b": {}})
    it.submit("j1", accounts=AB)
    assert places(it.fail("j1", Verdict.DEAD_KEY)) == {"j1": "b"}
    assert places(it.fail("j1", Verdict.SERVER_ERROR)) == {"j1": "b"}


def test_retry_budget_bounds_how_many_try_again() -> None:
    """Retried jobs are at most 20 % of the jobs in flight, at least budget_min; the others fail."""
    it = world(
        {"a": {"initial_concurrency": 64}, "b": {"initial_concurrency": 64}},
        retry={"budget_min": 1, "budget_ratio": 0.2},
        balance={"eject_after": 1000},
        schedule={"heavy_inflight_tokens": 100_000},
    )
    for n in range(20):
        it.submit(f"j{n}", accounts=AB)
    retried = [n for n in range(20) if started(it.fail(f"j{n}"))]
    assert retried == [0, 1, 2, 3]
    assert it.scheduler.pools["m"].retried == 4
    it.finish("j0")
    assert it.scheduler.pools["m"].retried == 3


def test_retry_budget_does_not_count_429s() -> None:
    """A 429's account is paced by its backoff and limit already."""
    it = world({"a": {}}, retry={"budget_min": 0, "budget_ratio": 0.0})
    it.submit("j1")
    it.submit("j2")
    assert refused(it.fail("j1", Verdict.RATE_LIMITED)) == {}
    assert refused(it.fail("j2")) == {"j2": ("upstream_failed", Outcome.UPSTREAM_ERROR)}


def test_attempts_are_halved_for_clients_that_retry_themselves() -> None:
    """Half of the attempts are rounded up, so there is at least one."""
    given = settings(retry={"attempts": 3}).retry
    assert [attempts_allowed(given, n) for n in (0, 1, 2)] == [3, 2, 2]
    halves = [attempts_allowed(settings(retry={"attempts": n}).retry, 1) for n in (1, 2, 3, 4, 5)]
    assert halves == [1, 1, 2, 2, 3]
    it = world()
    it.submit("j1", accounts=AB, client_retries=1)
    assert places(it.fail("j1")) == {"j1": "b"}
    assert refused(it.fail("j1")) == {"j1": ("upstream_failed", Outcome.UPSTREAM_ERROR)}
