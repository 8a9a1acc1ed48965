"""The drain: after every event, start what can start, until nothing that waits fits.

Only pools that the event touched are drained, so a full pool costs the others nothing.
"""

from __future__ import annotations

from math import inf

from gateway.schedule import ends
from gateway.schedule.model_pool import Pool
from gateway.schedule.pressure import assess
from gateway.schedule.scheduler_state import SchedulerState


def drain_touched(state: SchedulerState, now: float) -> None:
    """Drain until no pool is touched: a job that ends in one may free its tenant's cap in another.
    Where a freed cap is wanted in several pools, the best key decides."""
    touched = state.touched
    while touched:
        name = next(iter(touched)) if len(touched) == 1 else min(touched, key=touched.__getitem__)
        del touched[name]
        _drain(state, state.pools[name], now)


def _drain(state: SchedulerState, pool: Pool, now: float) -> None:
    if pool.due or pool.wake_s <= now:
        pool.due = False
        ends.expire(state, pool, now)
    assess(pool, state.accounts, state.settings.schedule, state.trust, now)
    while found := state.chooser.next(pool, now):
        state.dispatch(pool, *found, now)
    busy = pool.queued or pool.retrying
    state.timers.set(pool, state.chooser.placements.wake_s(pool, now) if busy else inf)
