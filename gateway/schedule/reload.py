"""A change of settings while jobs live: all of them are sorted anew, none is lost.

A reload is rare and may cut pools in two or join them, so the pools are rebuilt from the live
jobs: linear in them, simple, and right for every change. Learned state is kept by name: a pool's
mode and pace, its tenants' counters, a tenant's jobs in flight, and (by the accounts themselves)
limits.
"""

from __future__ import annotations

from gateway.schedule.events import SettingsChanged
from gateway.schedule.live_job import LiveJob, Stage
from gateway.schedule.rounds import TURN_OF
from gateway.schedule.routes import RouteTable
from gateway.schedule.scheduler_state import SchedulerState


def settings_changed(state: SchedulerState, event: SettingsChanged, now: float) -> None:
    """Swap the settings and move every live job to the pool that is its home now."""
    settings, old_pools = event.settings, state.pools
    state.accounts.reconfigure(settings.accounts, settings.balance, now)
    state.configure(settings)
    for name, pool in state.pools.items():
        if name in old_pools:
            pool.inherit(old_pools[name])
    for tenant in state.tenants.values():
        tenant.running = tenant.waiting = tenant.waiting_tokens = 0
        tenant.parked = []
    for live in state.jobs.values():
        live.pool, live.accounts = _home(live, state.route_table)
        _settle(state, live, now)
    for name, pool in state.pools.items():
        for cls, waiting in pool.waiting_of.items():
            if not waiting:  # its jobs moved to another pool, or changed their class
                pool.rounds.reset(TURN_OF[cls])
        state.touch(name)


def _home(live: LiveJob, route_table: RouteTable) -> tuple[str, tuple[str, ...]]:
    """The job's pool and accounts by the new settings.

    A job that could go wherever its model was served still can; a job that was bound to some
    accounts stays bound to those that are left. A job whose model is gone keeps a pool of the old
    name without accounts: if it runs, it finishes there; if it waits, the drain finds that
    nothing will ever serve it.
    """
    route = route_table.routes.get(live.job.model)
    if route is not None and not live.bound:
        return route.pool, route.accounts
    if route is None and live.routed:
        return live.pool, ()
    return route_table.home(live.job.model, live.job.accounts) or (live.pool, ())


def _settle(state: SchedulerState, live: LiveJob, now: float) -> None:
    """Count a job where it now belongs. Where nothing will ever serve it, its wait ends now, also
    that of background work."""
    settings = state.settings.schedule
    pool = state.pool(live.pool)
    if live.stage is Stage.WAITING:
        live.weigh(settings)
        live.bound_wait(settings)
        if not live.accounts:
            live.expire_s = now
        pool.add_waiting(live)
        return
    pool.budget.take(live.cls, live.bucket, live.reserve)
    pool.retried += live.holds_retry
    live.tenant.running += 1
    if live.stage is Stage.RETRYING:
        live.bound_wait(settings)
        if not live.accounts:
            live.expire_s = now
        pool.add_retrying(live)
