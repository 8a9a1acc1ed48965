"""The end of a job or of one attempt: its reserve and lease are returned, its result is learned.

A job ends exactly once. Its attempts may end more often: the account's lease goes back with each,
the reserve and the places under the caps with the last.

A failed attempt may be followed by another. Before the first byte has gone to the client another
attempt is invisible; it is also one more request to providers that may be in trouble. So:

1. A job has `retry.attempts` attempts. A failure costs one. A 429 costs a quarter: the provider
   did no work, and the account's backoff and limit pace the next one.
2. A client that retries by itself (`client_retries > 0`) has its attempts halved, rounded up:
   three tries here times three there is nine.
3. A pool's retried jobs are at most `budget_ratio` of its jobs in flight, at least
   `budget_min` (Envoy's retry budget). 429s do not count, for the reason in 1.
4. Accounts on which the job has not failed come first. Those it failed on come back into
   question when no other is in service, never where its key was refused.
"""

from __future__ import annotations

from math import inf

from gateway.errors import GatewayError
from gateway.schedule import admission, overload
from gateway.schedule.events import AttemptFailed, Finished, Refuse, Withdrawn
from gateway.schedule.live_job import PROMPT_RATIO, LiveJob, Stage, Tenant
from gateway.schedule.model_pool import Pool
from gateway.schedule.scheduler_state import SchedulerState
from gateway.settings.schema import Retry
from gateway.types import JobClass, Outcome, Verdict

LONGEST_TOKENS = 200_000  # believed of one answer without a max_tokens
SLACK_TOKENS = 1000  # believed beyond max_tokens
DROPPED = frozenset({Verdict.RATE_LIMITED, Verdict.OVERLOADED})
RATE_LIMITED_COST = 0.25  # of an attempt

OUTCOMES = {
    Verdict.IGNORED: Outcome.CLIENT_ERROR,
    Verdict.RATE_LIMITED: Outcome.RATE_LIMITED,
    Verdict.TIMEOUT: Outcome.UPSTREAM_TIMEOUT,
}


def finished(state: SchedulerState, event: Finished, now: float) -> None:
    """End a job: give back what it holds, and learn from what it used."""
    live = state.jobs.get(event.job_id)
    if live is None:
        return
    output = _believable(live, event.output_tokens)
    pool = state.pools[live.pool]
    left = event.outcome is Outcome.CANCELLED and event.prompt_tokens is None
    if live.job.generates and not left and (output or event.outcome is Outcome.OK):
        tokens = live.reserve if output is None else output
        waited_s = 0.0 if live.cls is JobClass.BACKGROUND else live.waited_s
        pool.pace.finished(tokens, now - live.since_s, waited_s, pool.budget.total_jobs)
    made = _made_by_now(pool, live, output, now) if left else output
    if made is not None and live.turn is not None:
        prompt = event.prompt_tokens or live.workload.prompt_tokens
        pool.correct(live, made + PROMPT_RATIO * prompt)
    if live.stage is Stage.RUNNING:
        used = None if output is None or made is None else (made, event.prompt_tokens)
        unserved = event.outcome is Outcome.CLIENT_ERROR
        end_attempt(
            state, live, event.verdict, now, used=used, unserved=unserved, own_s=event.own_s
        )
    end(state, live, event.outcome)


def withdrawn(state: SchedulerState, event: Withdrawn, now: float) -> None:
    """End a job that its client or an operator gave up, at whatever stage."""
    finished(state, Finished(event.job_id, event.outcome, Verdict.IGNORED), now)


def attempt_failed(state: SchedulerState, event: AttemptFailed, now: float) -> None:
    """End an attempt; let the job wait for another one, or refuse it with the attempt's error."""
    live = state.jobs.get(event.job_id)
    if live is None or live.stage is not Stage.RUNNING:
        return
    account, verdict = live.account, event.verdict
    end_attempt(state, live, verdict, now, retry_after_s=event.retry_after_s)
    live.error, live.outcome = event.error, outcome_of(event)
    live.spent += attempt_cost(verdict)
    if verdict is Verdict.DEAD_KEY:
        live.accounts = tuple(name for name in live.accounts if name != account)
    else:
        live.failed |= {account}
    pool = state.pools[live.pool]
    if event.retryable and grant_retry(state.settings.retry, pool, live, verdict):
        live.stage = Stage.RETRYING
        live.start_wait(state.settings.schedule, now)
        pool.add_retrying(live)
    else:
        refuse(state, live, event.error, live.outcome)


def end_attempt(
    state: SchedulerState,
    live: LiveJob,
    verdict: Verdict,
    now: float,
    *,
    retry_after_s: float | None = None,
    used: tuple[float, float | None] | None = None,
    unserved: bool = False,
    own_s: float = 0.0,
) -> None:
    """Give the account's lease back.

    Args:
        retry_after_s: the provider's Retry-After.
        used: output and prompt tokens; None where not counted.
        unserved: the provider turned the request down, and counts no tokens of it.
        own_s: seconds of the attempt that were not the provider's, at most.
    """
    output_tokens, tokens = None, 0.0 if unserved else None
    if used is not None:
        output_tokens = used[0]
        tokens = output_tokens + (used[1] or live.workload.prompt_tokens)
    wide = state.accounts.give_back(
        live.lease,
        verdict,
        retry_after_s=retry_after_s,
        tokens=tokens,
        output_tokens=output_tokens,
        own_s=own_s,
        now=now,
    )
    state.pools[live.pool].pace.attempted(verdict in DROPPED)
    _look_again(state, live, verdict, None if wide else live.job.model)


def _look_again(state: SchedulerState, live: LiveJob, verdict: Verdict, model: str | None) -> None:
    """Have jobs of `model` (None: of any) ask the account again on which an attempt ended."""
    pool = state.pools[live.pool]
    if verdict is not Verdict.SUCCESS:  # it may have taken an account out of service
        pool.due = True
    pool.account_changed(live.account, model)
    state.touch(live.pool)
    home = state.route_table.pool_of.get(live.account, live.pool)
    if home != live.pool:  # after a reload
        state.touch(home)
        state.pools[home].account_changed(live.account, None)
        state.pools[home].due = True


def end(state: SchedulerState, live: LiveJob, outcome: Outcome) -> None:
    """Take a job out of every count, once."""
    pool = state.pools[live.pool]
    if live.stage is Stage.WAITING:
        pool.remove_waiting(live)
    else:
        if live.stage is Stage.RETRYING:
            pool.remove_retrying(live)
        pool.retried -= live.holds_retry
        pool.budget.give_back(live.cls, live.bucket, live.reserve)
        _free_tenant(state, live.tenant)
    live.stage = Stage.ENDED
    del state.jobs[live.job.id]
    state.ended[outcome] += 1
    state.touch(pool.name)


def _free_tenant(state: SchedulerState, tenant: Tenant) -> None:
    """Make room under a tenant's cap: its parked queues compete again, in whatever pool."""
    tenant.running -= 1
    assert tenant.running >= 0
    if tenant.parked:
        parked, tenant.parked = tenant.parked, []
        for queue in parked:
            if (first := queue.unpark()) is not None:
                state.touch(*first)


def refuse(state: SchedulerState, live: LiveJob, error: GatewayError, outcome: Outcome) -> None:
    """End a job without an answer: the shell sends `error`."""
    end(state, live, outcome)
    state.out.append(Refuse(live.job.id, error, outcome))


def refuse_new(state: SchedulerState, live: LiveJob, error: GatewayError) -> None:
    """Refuse a job that never entered a queue."""
    state.ended[Outcome.REJECTED] += 1
    state.out.append(Refuse(live.job.id, error, Outcome.REJECTED))


def expire(state: SchedulerState, pool: Pool, now: float) -> None:
    """Refuse jobs whose wait is over, or will be before an account can serve them."""
    for queue in tuple(pool.queues.values()):
        if not queue.jobs:
            continue
        horizon_s = state.chooser.placements.horizon_s(pool, queue, now)
        while (live := queue.expiry.top()) is not None and live.expire_s <= horizon_s:
            if live.error is not None:
                refuse(state, live, live.error, live.outcome)
            else:
                refuse(state, live, expired(state, pool, live, now), Outcome.EVICTED)


def expired(state: SchedulerState, pool: Pool, live: LiveJob, now: float) -> GatewayError:
    """The error of a job whose wait is over or vain."""
    if not live.accounts:
        return overload.no_account(inf)
    if live.expire_s <= now:
        return admission.too_late(pool, live, state.jitter, now)
    return overload.no_account(state.accounts.heals_s(live.accounts, now) - now)


def _made_by_now(pool: Pool, live: LiveJob, counted: float | None, now: float) -> float | None:
    """Output tokens of a job whose client left, where the provider sent no usage.

    The tokens of its time at the pool's pace, at most its forecast; or those `counted`, if that
    is more. (The count may be too low: an event carries any number of tokens, and hidden thoughts
    come without events.) None where nothing was counted and no pace is known.
    """
    token_s = pool.pace.token_s
    if token_s is None or not live.job.generates:
        return counted
    if live.stage is not Stage.RUNNING:  # between two attempts: none is left to answer
        return 0.0
    by_time = min(live.job.n * (now - live.since_s) / token_s, float(live.reserve))
    return by_time if counted is None else max(counted, by_time)


def _believable(live: LiveJob, output_tokens: float | None) -> float | None:
    """`output_tokens` as far as they can be true: None of a job that generates nothing (a stored
    answer that is read again repeats its old usage), and no number that would block an account
    for days."""
    job = live.job
    if output_tokens is None or not job.generates:
        return None
    most = job.n * (job.max_tokens or LONGEST_TOKENS) + SLACK_TOKENS
    return output_tokens if output_tokens < most else most


def attempt_cost(verdict: Verdict) -> float:
    """The part of one attempt that a failure with this verdict costs."""
    return RATE_LIMITED_COST if verdict is Verdict.RATE_LIMITED else 1.0


def attempts_allowed(settings: Retry, client_retries: int) -> int:
    """Attempts of a job whose client has retried it so often by itself."""
    return settings.attempts if client_retries <= 0 else (settings.attempts + 1) // 2


def grant_retry(settings: Retry, pool: Pool, live: LiveJob, verdict: Verdict) -> bool:
    """True where a job whose attempt ended with `verdict` may try again; the pool's retry budget
    is then charged, once a job."""
    if not live.accounts or live.spent >= attempts_allowed(settings, live.job.client_retries):
        return False
    if live.holds_retry or verdict is Verdict.RATE_LIMITED:
        return True
    if pool.retried >= max(settings.budget_min, settings.budget_ratio * pool.budget.total_jobs):
        return False
    live.holds_retry = True
    pool.retried += 1
    return True


def outcome_of(event: AttemptFailed) -> Outcome:
    """The outcome of a job whose last attempt this was."""
    return event.outcome or OUTCOMES.get(event.verdict, Outcome.UPSTREAM_ERROR)
