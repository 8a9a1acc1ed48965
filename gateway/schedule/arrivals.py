"""How a job comes in: to its pool, and there to an account at once, to the queue, or away.

What can start is never refused for what waits; only what would have to wait is asked whether
its wait could end well, and whether there is room for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.schedule import admission, ends, overload
from gateway.schedule.assess import assess
from gateway.schedule.entry import Entry, Stage
from gateway.schedule.events import Submitted
from gateway.schedule.pool import Pool
from gateway.schedule.queue import Line
from gateway.types import Fit, Outcome

if TYPE_CHECKING:
    from gateway.schedule.scheduler import Scheduler

INF = float("inf")


def submitted(scheduler: Scheduler, event: Submitted, now: float) -> None:
    job = event.job
    if job.id in scheduler.jobs:
        return
    scheduler.submitted += 1
    entry = Entry(job, event.body_bytes, scheduler.submitted, scheduler.tenant(job.tenant))
    home = scheduler.directory.home(job.model, job.accounts)
    if home is None:
        ends.refuse_new(scheduler, entry, overload.no_account(INF))
        return
    entry.pool, entry.accounts = home
    route = scheduler.directory.routes.get(job.model)
    entry.routed = route is not None
    entry.bound = route is None or route.accounts != entry.accounts
    pool = scheduler.pools[entry.pool]
    if scheduler.draining:
        ends.refuse_new(
            scheduler, entry, overload.draining(admission.retry_s(pool, scheduler.chance))
        )
        return
    settings = scheduler.settings.schedule
    entry.weigh(settings, pool.order)
    entry.start_wait(settings, now, admission.service_s(pool, entry))
    line = pool.line(job.model, entry.accounts)
    if entry.expire_s <= scheduler.allocation.openings.horizon_s(pool, line, now):
        if entry.deadline_s is not None and entry.expire_s <= now < entry.deadline_s:
            pool.pace.doubted()
        ends.refuse_new(scheduler, entry, ends.expired(scheduler, pool, entry, now))
        return
    scheduler.jobs[job.id] = entry
    pool.last_arrival_s = now
    _enter(scheduler, pool, line, entry, now)  # what can start is never refused for what waits
    if entry.stage is Stage.WAITING:
        error = admission.refusal(pool, entry, settings, scheduler.chance, now)
        if error is not None:
            ends.refuse(scheduler, entry, error, Outcome.REJECTED)


def _enter(scheduler: Scheduler, pool: Pool, line: Line, entry: Entry, now: float) -> None:
    """Starts a new job, or lets it wait. Nothing else that waits fits, or would have been
    started before: so if no time has run out since, the newcomer alone is to be asked."""
    if pool.wake_s <= now or pool.due or not pool.budget.steady:
        pool.add_waiting(entry)
        scheduler.touch(pool.name)
        scheduler.drain_touched(now)
        return
    answer = scheduler.allocation.alone(pool, line, entry, now)
    if isinstance(answer, Fit):
        scheduler.dispatch(pool, entry, answer.account, None, now)
    else:
        pool.add_waiting(entry)
        if entry.tenant.capped and entry.lane is not None and not entry.lane.parked:
            entry.lane.park()  # so that the cap's end, in whatever pool, finds it
        wake_s = min(pool.wake_s, entry.expire_s)
        if answer.until_s is not None:
            wake_s = min(wake_s, answer.until_s)
        scheduler.wakes.set(pool, wake_s)
    mode = pool.mode
    assess(pool, scheduler.accounts, scheduler.settings.schedule, scheduler.trust, now)
    if pool.mode is not mode:  # and with it the tier caps
        scheduler.touch(pool.name)
