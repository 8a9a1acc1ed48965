"""Whether a failed attempt may be followed by another.

Before the first byte has gone to the client another attempt is invisible; it is also one more
request to providers that may be in trouble. So:

1. A job has `retry.attempts` attempts. A failure costs one. A 429 costs a quarter: the provider
   did no work, and the account's backoff and limit pace the next one. That is the promise of a
   queue instead of a 429, still with an end.
2. A client that retries by itself (`client_retries > 0`) has its attempts halved,
   rounded up: three tries here times three there is nine.
3. A pool's retried jobs are at most `budget_ratio` of its jobs in flight, at least
   `budget_min` (Envoy's retry budget). 429s stand outside it for the reason in 1.
4. Where: accounts it has not failed on first. Those it failed on come back into question when
   no other is in service (`AccountPool.choose`), never where its key was refused.
"""

from __future__ import annotations

from gateway.schedule.entry import Entry
from gateway.schedule.pool import Pool
from gateway.settings.schema import Retry
from gateway.types import Outcome, Verdict

RATE_LIMITED_COST = 0.25

OUTCOMES = {
    Verdict.IGNORED: Outcome.CLIENT_ERROR,
    Verdict.RATE_LIMITED: Outcome.RATE_LIMITED,
    Verdict.TIMEOUT: Outcome.UPSTREAM_TIMEOUT,
}


def attempt_cost(verdict: Verdict) -> float:
    return RATE_LIMITED_COST if verdict is Verdict.RATE_LIMITED else 1.0


def attempts_allowed(settings: Retry, client_retries: int) -> int:
    return settings.attempts if client_retries <= 0 else (settings.attempts + 1) // 2


def grant(settings: Retry, pool: Pool, entry: Entry, verdict: Verdict) -> bool:
    """May this job, whose attempt ended with `verdict`, try again? Charges the pool's budget,
    once a job."""
    if not entry.accounts or entry.spent >= attempts_allowed(settings, entry.job.client_retries):
        return False
    if entry.holds_retry or verdict is Verdict.RATE_LIMITED:
        return True
    if pool.retried >= max(settings.budget_min, settings.budget_ratio * pool.budget.total_jobs):
        return False
    entry.holds_retry = True
    pool.retried += 1
    return True


def outcome_of(verdict: Verdict) -> Outcome:
    """How a job ends whose last attempt ended so."""
    return OUTCOMES.get(verdict, Outcome.UPSTREAM_ERROR)
