"""How a job ends, or one attempt of it: what it held goes back, what it showed is learned.

A job ends exactly once. Its attempts may end more often: the account's lease goes back with each,
the reserve and the places under the caps with the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import GatewayError
from gateway.schedule import admission, overload, retry
from gateway.schedule.entry import PROMPT_RATIO, Entry, Stage, Tenant
from gateway.schedule.events import AttemptFailed, Finished, Refuse, Withdrawn
from gateway.schedule.pool import Pool
from gateway.types import JobClass, Outcome, Verdict

if TYPE_CHECKING:
    from gateway.schedule.scheduler import Scheduler

LONGEST_TOKENS = 200_000  # of one answer without a max_tokens
SLACK_TOKENS = 1000
DROPPED = frozenset({Verdict.RATE_LIMITED, Verdict.OVERLOADED})


def finished(scheduler: Scheduler, event: Finished, now: float) -> None:
    entry = scheduler.jobs.get(event.job_id)
    if entry is None:
        return
    output = _believable(entry, event.output_tokens)
    pool = scheduler.pools[entry.pool]
    left = event.outcome is Outcome.CANCELLED and event.prompt_tokens is None
    if entry.job.generates and not left and (output or event.outcome is Outcome.OK):
        tokens = entry.reserve if output is None else output
        waited_s = 0.0 if entry.cls is JobClass.BACKGROUND else entry.waited_s
        pool.pace.finished(tokens, now - entry.since_s, waited_s, pool.budget.total_jobs)
    made = _made_by_now(pool, entry, output, now) if left else output
    if made is not None and entry.turn is not None:
        prompt = event.prompt_tokens or entry.workload.prompt_tokens
        pool.correct(entry, made + PROMPT_RATIO * prompt)
    if entry.stage is Stage.RUNNING:
        used = None if output is None or made is None else (made, event.prompt_tokens)
        unserved = event.outcome is Outcome.CLIENT_ERROR
        end_attempt(scheduler, entry, event.verdict, now, used=used, unserved=unserved)
    end(scheduler, entry, event.outcome)


def withdrawn(scheduler: Scheduler, event: Withdrawn, now: float) -> None:
    finished(scheduler, Finished(event.job_id, event.outcome, Verdict.IGNORED), now)


def attempt_failed(scheduler: Scheduler, event: AttemptFailed, now: float) -> None:
    entry = scheduler.jobs.get(event.job_id)
    if entry is None or entry.stage is not Stage.RUNNING:
        return
    account, verdict = entry.account, event.verdict
    end_attempt(scheduler, entry, verdict, now, retry_after_s=event.retry_after_s)
    entry.error, entry.outcome = event.error, retry.outcome_of(verdict)
    entry.spent += retry.attempt_cost(verdict)
    if verdict is Verdict.DEAD_KEY:
        entry.accounts = tuple(name for name in entry.accounts if name != account)
    else:
        entry.failed |= {account}
    pool = scheduler.pools[entry.pool]
    if event.retryable and retry.grant(scheduler.settings.retry, pool, entry, verdict):
        entry.stage = Stage.RETRYING
        entry.start_wait(scheduler.settings.schedule, now)
        pool.add_retrying(entry)
    else:
        refuse(scheduler, entry, event.error, entry.outcome)


def end_attempt(
    scheduler: Scheduler,
    entry: Entry,
    verdict: Verdict,
    now: float,
    *,
    retry_after_s: float | None = None,
    used: tuple[float, float | None] | None = None,
    unserved: bool = False,
) -> None:
    """The lease back. `used`: output and prompt tokens, where anybody counted; `unserved`: the
    provider turned the request down, and counts no tokens of it."""
    output_tokens, tokens = None, 0.0 if unserved else None
    if used is not None:
        output_tokens = used[0]
        tokens = output_tokens + (used[1] or entry.workload.prompt_tokens)
    wide = scheduler.accounts.give_back(
        entry.lease,
        verdict,
        retry_after_s=retry_after_s,
        tokens=tokens,
        output_tokens=output_tokens,
        now=now,
    )
    pool = scheduler.pools[entry.pool]
    pool.pace.attempted(verdict in DROPPED)
    if verdict is not Verdict.SUCCESS:  # it may have taken an account out of service
        pool.due = True
    pool.news(entry.account, None if wide else entry.job.model)
    scheduler.touch(entry.pool)
    home = scheduler.directory.pool_of.get(entry.account, entry.pool)
    if home != entry.pool:  # after a reload
        scheduler.touch(home)
        scheduler.pools[home].news(entry.account, None)
        scheduler.pools[home].due = True


def end(scheduler: Scheduler, entry: Entry, outcome: Outcome) -> None:
    """Takes a job out of everything, once."""
    pool = scheduler.pools[entry.pool]
    if entry.stage is Stage.WAITING:
        pool.remove_waiting(entry)
    else:
        if entry.stage is Stage.RETRYING and entry.line is not None:
            pool.remove_retrying(entry)
        pool.retried -= entry.holds_retry
        pool.budget.give_back(entry.cls, entry.bucket, entry.reserve)
        _free_tenant(scheduler, entry.tenant)
    entry.stage = Stage.ENDED
    del scheduler.jobs[entry.job.id]
    scheduler.ended[outcome] += 1
    scheduler.touch(pool.name)


def _free_tenant(scheduler: Scheduler, tenant: Tenant) -> None:
    """Its cap has room again: the lanes that waited for it are shown, in whatever pool."""
    tenant.running -= 1
    assert tenant.running >= 0
    if tenant.parked:
        parked, tenant.parked = tenant.parked, []
        for lane in parked:
            lane.unpark()
            if lane.first is not None:
                scheduler.touch(lane.tier.line.pool, lane.first.key)


def refuse(scheduler: Scheduler, entry: Entry, error: GatewayError, outcome: Outcome) -> None:
    end(scheduler, entry, outcome)
    scheduler.out.append(Refuse(entry.job.id, error, outcome))


def refuse_new(scheduler: Scheduler, entry: Entry, error: GatewayError) -> None:
    """Refuses what never entered a queue."""
    scheduler.ended[Outcome.REJECTED] += 1
    scheduler.out.append(Refuse(entry.job.id, error, Outcome.REJECTED))


def expire(scheduler: Scheduler, pool: Pool, now: float) -> None:
    """Refuses jobs whose time is over, or will be before an account can serve them."""
    for line in tuple(pool.lines.values()):
        if not line.size:
            continue
        horizon_s = scheduler.allocation.openings.horizon_s(pool, line, now)
        while (entry := line.expiry.top()) is not None and entry.expire_s <= horizon_s:
            if entry.error is not None:
                refuse(scheduler, entry, entry.error, entry.outcome)
            else:
                refuse(scheduler, entry, expired(scheduler, pool, entry, now), Outcome.EVICTED)


def expired(scheduler: Scheduler, pool: Pool, entry: Entry, now: float) -> GatewayError:
    if not entry.accounts:
        return overload.no_account(float("inf"))
    if entry.expire_s <= now:
        return admission.too_late(pool, entry, scheduler.chance, now)
    return overload.no_account(scheduler.accounts.heals_s(entry.accounts, now) - now)


def _made_by_now(pool: Pool, entry: Entry, counted: float | None, now: float) -> float | None:
    """What a job can have made until its client left, where the provider told no usage: what
    its time gives at the pool's pace, no more than its forecast; or what was `counted`, if that
    is more. Less it may be: an event carries any number of tokens, and a hidden thought comes in
    none. None where nothing was counted and no pace is known."""
    token_s = pool.pace.token_s
    if token_s is None or not entry.job.generates:
        return counted
    if entry.stage is not Stage.RUNNING:  # between two attempts: none is left to answer
        return 0.0
    by_time = min(entry.job.n * (now - entry.since_s) / token_s, float(entry.reserve))
    return by_time if counted is None else max(counted, by_time)


def _believable(entry: Entry, output_tokens: float | None) -> float | None:
    """What a job may have made: nothing that it did not generate (a stored answer that is read
    again tells its old usage), and no number that would hold an account for days."""
    job = entry.job
    if output_tokens is None or not job.generates:
        return None
    most = job.n * (job.max_tokens or LONGEST_TOKENS) + SLACK_TOKENS
    return output_tokens if output_tokens < most else most
