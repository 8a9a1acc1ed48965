"""The arrival of a job: to its pool, and there to an account at once, to the queue, or away.

A job that can start is never refused for a full queue. Only a job that would have to wait passes
the checks of admission.py: can its wait end well, and is there room for it?

After a fault the engine builds a fresh core from its own ledger (engine/failsafe.py). Jobs that
wait are submitted again; a job that runs is adopted: it enters the queue and leaves it in one
step, so that the same two functions keep every count.
"""

from __future__ import annotations

from math import inf

from gateway.schedule import admission, drain, ends, overload
from gateway.schedule.events import Adopted, Submitted
from gateway.schedule.live_job import LiveJob, Stage
from gateway.schedule.model_pool import Pool
from gateway.schedule.pressure import assess
from gateway.schedule.queue import AccountsQueue
from gateway.schedule.scheduler_state import SchedulerState
from gateway.types import Fit, Outcome


def submitted(state: SchedulerState, event: Submitted, now: float) -> None:
    """Start a new job, queue it or refuse it. A job that is known already changes nothing."""
    job = event.job
    if job.id in state.jobs:
        return
    state.submitted += 1
    live = LiveJob(job, event.body_bytes, state.submitted, state.tenant(job.tenant))
    home = state.route_table.home(job.model, job.accounts)
    if home is None:
        ends.refuse_new(state, live, overload.no_account(inf))
        return
    live.pool, live.accounts = home
    route = state.route_table.routes.get(job.model)
    live.routed = route is not None
    live.bound = route is None or route.accounts != live.accounts
    pool = state.pools[live.pool]
    if state.draining:
        ends.refuse_new(state, live, overload.draining(admission.retry_s(pool, state.jitter)))
        return
    settings = state.settings.schedule
    live.weigh(settings)
    live.start_wait(settings, now, admission.service_s(pool, live))
    queue = pool.queue(job.model, live.accounts)
    if live.expire_s <= state.chooser.placements.horizon_s(pool, queue, now):
        if live.deadline_s is not None and live.expire_s <= now < live.deadline_s:
            pool.pace.doubted()
        ends.refuse_new(state, live, ends.expired(state, pool, live, now))
        return
    state.jobs[job.id] = live
    _enter(state, pool, queue, live, now)
    if live.stage is Stage.WAITING:
        error = admission.refusal(pool, live, settings, state.jitter, now)
        if error is not None:
            ends.refuse(state, live, error, Outcome.REJECTED)


def _enter(
    state: SchedulerState, pool: Pool, queue: AccountsQueue, live: LiveJob, now: float
) -> None:
    """Start a new job, or let it wait. Nothing else that waits fits, or it would have started
    before; so if no time has run out since, the newcomer is asked alone."""
    if pool.wake_s <= now or pool.due or not pool.budget.steady:
        pool.add_waiting(live)
        state.touch(pool.name)
        drain.drain_touched(state, now)
        return
    chooser = state.chooser
    answer = chooser.may_start(
        pool, queue, live.queue_key, live.tenant, now, ask=chooser.placements.ask
    )
    if isinstance(answer, Fit):
        state.dispatch(pool, live, answer.account, None, now)
    else:
        tenant_queue = pool.add_waiting(live)
        if live.tenant.capped and not tenant_queue.parked:
            tenant_queue.park()  # so that the cap's end, in whatever pool, finds it
        wake_s = min(pool.wake_s, live.expire_s)
        if answer.until_s is not None:
            wake_s = min(wake_s, answer.until_s)
        state.timers.set(pool, wake_s)
    mode = pool.mode
    assess(pool, state.accounts, state.settings.schedule, state.trust, now)
    if pool.mode is not mode:  # and with it the tier caps
        state.touch(pool.name)


def adopted(state: SchedulerState, event: Adopted, now: float) -> None:
    """Take in a job that runs already. A job whose account the settings no longer name stays
    outside: its end is then an event about an unknown job, which changes nothing."""
    job = event.job
    pool_name = state.route_table.pool_of.get(event.account)
    if job.id in state.jobs or pool_name is None:
        return
    state.submitted += 1
    live = LiveJob(job, event.body_bytes, state.submitted, state.tenant(job.tenant))
    home = state.route_table.home(job.model, job.accounts)
    live.pool, live.accounts = home or (pool_name, (event.account,))
    live.routed = job.model in state.route_table.routes
    live.workload = event.workload
    pool = state.pools[live.pool]
    live.weigh(state.settings.schedule)
    live.start_wait(state.settings.schedule, now)
    live.attempts = event.attempts - 1
    state.jobs[job.id] = live
    pool.add_waiting(live)
    state.start(pool, live, event.account, now)
