"""How a job comes in: to its pool, and there to an account at once, to the queue, or away.

What can start is never refused for what waits; only what would have to wait is asked whether
its wait could end well, and whether there is room for it.

After a fault the engine builds a fresh core from its own ledger (engine/failsafe.py). Jobs that
wait are submitted again; a job that runs is adopted: it enters the queue and leaves it in one
step, so that every count comes from the same two functions as in a normal life.
"""

from __future__ import annotations

from math import inf

from gateway.schedule import admission, drain, ends, overload
from gateway.schedule.assess import assess
from gateway.schedule.entry import Entry, Stage
from gateway.schedule.events import Adopted, Submitted
from gateway.schedule.pool import Pool
from gateway.schedule.queue import Line
from gateway.schedule.scheduler_state import SchedulerState
from gateway.types import Fit, Outcome


def submitted(state: SchedulerState, event: Submitted, now: float) -> None:
    job = event.job
    if job.id in state.jobs:
        return
    state.submitted += 1
    entry = Entry(job, event.body_bytes, state.submitted, state.tenant(job.tenant))
    home = state.directory.home(job.model, job.accounts)
    if home is None:
        ends.refuse_new(state, entry, overload.no_account(inf))
        return
    entry.pool, entry.accounts = home
    route = state.directory.routes.get(job.model)
    entry.routed = route is not None
    entry.bound = route is None or route.accounts != entry.accounts
    pool = state.pools[entry.pool]
    if state.draining:
        ends.refuse_new(state, entry, overload.draining(admission.retry_s(pool, state.chance)))
        return
    settings = state.settings.schedule
    entry.weigh(settings, pool.order)
    entry.start_wait(settings, now, admission.service_s(pool, entry))
    line = pool.line(job.model, entry.accounts)
    if entry.expire_s <= state.allocation.openings.horizon_s(pool, line, now):
        if entry.deadline_s is not None and entry.expire_s <= now < entry.deadline_s:
            pool.pace.doubted()
        ends.refuse_new(state, entry, ends.expired(state, pool, entry, now))
        return
    state.jobs[job.id] = entry
    _enter(state, pool, line, entry, now)  # what can start is never refused for what waits
    if entry.stage is Stage.WAITING:
        error = admission.refusal(pool, entry, settings, state.chance, now)
        if error is not None:
            ends.refuse(state, entry, error, Outcome.REJECTED)


def _enter(state: SchedulerState, pool: Pool, line: Line, entry: Entry, now: float) -> None:
    """Starts a new job, or lets it wait. Nothing else that waits fits, or would have been
    started before: so if no time has run out since, the newcomer alone is to be asked."""
    if pool.wake_s <= now or pool.due or not pool.budget.steady:
        pool.add_waiting(entry)
        state.touch(pool.name)
        drain.drain_touched(state, now)
        return
    answer = state.allocation.alone(pool, line, entry, now)
    if isinstance(answer, Fit):
        state.dispatch(pool, entry, answer.account, None, now)
    else:
        pool.add_waiting(entry)
        if entry.tenant.capped and entry.lane is not None and not entry.lane.parked:
            entry.lane.park()  # so that the cap's end, in whatever pool, finds it
        wake_s = min(pool.wake_s, entry.expire_s)
        if answer.until_s is not None:
            wake_s = min(wake_s, answer.until_s)
        state.wakes.set(pool, wake_s)
    mode = pool.mode
    assess(pool, state.accounts, state.settings.schedule, state.trust, now)
    if pool.mode is not mode:  # and with it the tier caps
        state.touch(pool.name)


def adopted(state: SchedulerState, event: Adopted, now: float) -> None:
    """Takes the job in. One whose account the settings no longer name stays outside: its end
    is then an event about an unknown job, which changes nothing."""
    job = event.job
    pool_name = state.directory.pool_of.get(event.account)
    if job.id in state.jobs or pool_name is None:
        return
    state.submitted += 1
    entry = Entry(job, event.body_bytes, state.submitted, state.tenant(job.tenant))
    home = state.directory.home(job.model, job.accounts)
    entry.pool, entry.accounts = home or (pool_name, (event.account,))
    entry.routed = job.model in state.directory.routes
    entry.workload = event.workload
    pool = state.pools[entry.pool]
    entry.weigh(state.settings.schedule, pool.order)
    entry.start_wait(state.settings.schedule, now)
    entry.attempts = event.attempts - 1
    state.jobs[job.id] = entry
    pool.add_waiting(entry)
    state.start(pool, entry, event.account, now)
