"""A job that runs already, taken in by a core that did not start it.

After a fault the engine builds a fresh core from its own ledger (engine/failsafe.py). What
waits is submitted again; what runs must be counted where it runs, or budgets and limits would
think its place free. It enters the queue and leaves it in one step, so that every count comes
from the same two functions as in a normal life; the start is not told, it has happened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.schedule.entry import Entry
from gateway.schedule.events import Adopted

if TYPE_CHECKING:
    from gateway.schedule.scheduler import Scheduler


def adopt(scheduler: Scheduler, event: Adopted, now: float) -> None:
    """Takes the job in. One whose account the settings no longer name stays outside: its end
    is then an event about an unknown job, which changes nothing."""
    job = event.job
    pool_name = scheduler.directory.pool_of.get(event.account)
    if job.id in scheduler.jobs or pool_name is None:
        return
    scheduler.submitted += 1
    entry = Entry(job, event.body_bytes, scheduler.submitted, scheduler.tenant(job.tenant))
    home = scheduler.directory.home(job.model, job.accounts)
    entry.pool, entry.accounts = home or (pool_name, (event.account,))
    entry.routed = job.model in scheduler.directory.routes
    entry.workload = event.workload
    pool = scheduler.pools[entry.pool]
    entry.weigh(scheduler.settings.schedule, pool.order)
    entry.start_wait(scheduler.settings.schedule, now)
    entry.attempts = event.attempts - 1
    scheduler.jobs[job.id] = entry
    pool.add_waiting(entry)
    scheduler.start(pool, entry, event.account, now)
