"""Corrections of forecasts: a waiting job gets a new place, a running job a new reserve.

A waiting job is moved once per rung at most, so that a stream of forecasts cannot keep it moving;
its arrival stays, and with it the bound on overtaking. A job in flight is never recalled and keeps
the class and size it was charged to. Only its reserve changes, as often as there is news: a better
forecast, or an answer that goes on past its own.
"""

from __future__ import annotations

from gateway.schedule import admission
from gateway.schedule.events import Outgrown, Reforecast
from gateway.schedule.live_job import LiveJob, Stage
from gateway.schedule.ordering import reserve_beyond
from gateway.schedule.scheduler_state import SchedulerState


def reforecast(state: SchedulerState, event: Reforecast, now: float) -> None:
    """Take a better forecast for a job that waits, runs or is between two attempts."""
    live = state.jobs.get(event.job_id)
    if live is None:
        return
    settings = state.settings.schedule
    if live.stage is not Stage.WAITING:
        live.workload = event.workload
        _reserve(state, live, live.reserve_now(settings))
    elif event.workload.rung not in live.rungs:
        pool = state.pools[live.pool]
        live.rungs.add(event.workload.rung)
        pool.remove_waiting(live)
        live.workload = event.workload
        live.weigh(settings)
        live.bound_wait(settings, admission.service_s(pool, live))
        pool.add_waiting(live)
        horizon_s = state.chooser.placements.horizon_s(pool, pool.queue_of(live), now)
        if live.expire_s <= horizon_s:  # the new wait is over
            pool.due = True
        state.touch(pool.name)


def outgrown(state: SchedulerState, event: Outgrown, now: float) -> None:
    """Raise the reserve of a running job whose answer is longer than was forecast."""
    live = state.jobs.get(event.job_id)
    if live is not None and live.stage is Stage.RUNNING:
        quantile = state.settings.schedule.reserve_quantile
        tokens = reserve_beyond(live.job, live.workload, event.output_tokens, quantile)
        _reserve(state, live, max(live.reserve, tokens))


def _reserve(state: SchedulerState, live: LiveJob, tokens: int) -> None:
    budget = state.pools[live.pool].budget
    budget.correct(live.cls, tokens - live.reserve)
    live.reserve = tokens
    if not budget.nominal:
        state.touch(live.pool)
