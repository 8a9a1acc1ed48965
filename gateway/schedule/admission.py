"""The admission of a job to a pool's queue: a job that cannot end well is refused at once.

Checked in this order; the first check that fails gives the error:

1. Nothing new is taken while draining.
2. A wait is useless: the job is late already, or no account will be back in service in time.
3. It could not start at once, and the queue is full: of its pool or its tenant, in items, bytes
   or tokens.
4. It could not start at once, and its deadline is hopeless: now + predicted wait + the median
   time of its answer is past it.
5. It could not start at once, and the ladder turns its grade away (overload.py).

A job that could start at once is never refused for a full queue, whose jobs may wait for something
else. arrivals.py checks 1 and 2. `queue_position` is a waiting job's place, for display.
"""

from __future__ import annotations

from gateway.errors import GatewayError
from gateway.schedule import overload
from gateway.schedule.live_job import LiveJob, Stage
from gateway.schedule.model_pool import Pool
from gateway.schedule.overload import Jitter
from gateway.schedule.queue import TenantQueue
from gateway.schedule.rounds import TURN_OF
from gateway.schedule.scheduler_state import SchedulerState
from gateway.settings.schema import Schedule
from gateway.snapshots import QueuePosition
from gateway.types import JobClass, SizeBucket


def service_s(pool: Pool, live: LiveJob) -> float:
    """Seconds of the job's answer by its median forecast, which is to end before its deadline; 0
    where there is none, it bounds only the first byte, or the pace is not known."""
    if live.deadline_s is None or live.job.deadline_first_byte or not pool.pace.sure:
        return 0.0
    token_s = pool.pace.hopeful_token_s
    if token_s is None:
        return 0.0
    tokens, limit = live.workload.p50, live.job.max_tokens
    return token_s * (tokens if limit is None else min(tokens, limit))


def wait_s(pool: Pool, cls: JobClass, ahead: float, others: float) -> float:
    """The predicted time until a job of this class starts; 0 where the pace is not known.

    Args:
        ahead: tokens of its class before it, served at the class's share of the pool.
        others: tokens of all other jobs that wait, the most that can delay this one besides.
    """
    if any(n for other, n in pool.waiting_of.items() if other is not cls):
        ahead = min(ahead / pool.rounds.share(TURN_OF[cls]), others)
    clear_s = pool.pace.clear_s(ahead, pool.budget.total_jobs)
    return 0.0 if clear_s is None or not pool.pace.sure else clear_s


def _predicted_wait_s(pool: Pool, live: LiveJob) -> float:
    """The predicted wait of a job that has just joined, as if it were the last of its class."""
    ahead = pool.waiting_tokens_of[live.cls] - live.reserve
    others = pool.waiting_tokens - live.reserve
    return wait_s(pool, live.cls, min(ahead, _ahead(pool, live)), others)


def _ahead(pool: Pool, live: LiveJob) -> float:
    """Tokens before a job that has just joined, by its tenant's share: the jobs of a tenant that
    floods the queue delay that tenant's own, not the others'."""
    share = pool.share(live)
    mine = live.tenant.waiting_tokens - live.reserve
    return mine * pool.shares[live.cls].weight / share.weight


def refusal(
    pool: Pool, live: LiveJob, settings: Schedule, jitter: Jitter | None, now: float
) -> GatewayError | None:
    """The error of a job that has joined the queue and may not stay (3 to 5); None if it may."""
    if pool.overfull(settings, live):
        error = overload.tenant_queue_full if live.tenant.overfull else overload.queue_full
        return error(retry_s(pool, jitter))
    if live.deadline_s is not None:
        end_s = now + _predicted_wait_s(pool, live) + service_s(pool, live)
        if end_s > live.deadline_s:
            return overload.hopeless(retry_s(pool, jitter))
    if live.bucket is not SizeBucket.SHORT and live.cls is not JobClass.BACKGROUND:
        ahead = min(pool.pressing_tokens - live.reserve, _ahead(pool, live))
        ahead_s = pool.clear_s * ahead / pool.pressing_tokens
        backlog = overload.backlog_severity(ahead_s, settings)
        if live.grade >= overload.rejected_from(pool.rejected, backlog, settings):
            return overload.overloaded(retry_s(pool, jitter))
    return None


def too_late(pool: Pool, live: LiveJob, jitter: Jitter | None, now: float) -> GatewayError:
    """The error of a job whose wait has ended (`expire_s`), before or after it began."""
    if live.deadline_s is not None and now < live.deadline_s:
        return overload.hopeless(retry_s(pool, jitter))
    return overload.queue_timeout(retry_s(pool, jitter))


def retry_s(pool: Pool, jitter: Jitter | None) -> float:
    """Seconds for Retry-After: by then the jobs that wait now will have been served."""
    clear_s = pool.pace.clear_s(pool.pressing_tokens, pool.budget.total_jobs)
    return overload.retry_after_s(clear_s, jitter)


def queue_position(state: SchedulerState, job_id: str, now: float) -> QueuePosition | None:
    """A job's position among those of its class in its pool, by the present order, and its
    expected wait: the tokens ahead at the pace of late and the class's share of it, 0 before that
    is known. None for a job that does not wait. For people: it looks at every waiting job."""
    live = state.jobs.get(job_id)
    if live is None or live.stage is not Stage.WAITING:
        return None
    pool = state.pools[live.pool]
    mine = _rank(live, pool.queued[live])
    ahead = [e for e, q in pool.queued.items() if e.cls is live.cls and _rank(e, q) < mine]
    tokens = sum(other.reserve for other in ahead)
    others = pool.waiting_tokens - live.reserve
    return QueuePosition(
        position=len(ahead) + 1,
        waiting=pool.waiting,
        waited_s=now - live.job.arrived_s,
        expected_wait_s=wait_s(pool, live.cls, tokens, others),
    )


def _rank(live: LiveJob, queue: TenantQueue) -> tuple[int, float, int]:
    return queue.share.rank, live.key, live.seq
