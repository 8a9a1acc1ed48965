"""Forecasts that were wrong: a waiting job gets a new place, a running one a new reserve.

A job that waits is moved once per rung at most, so that a stream of forecasts cannot keep it
moving; its arrival stays, and with it the bound on overtaking. A job in flight is never recalled
and keeps the class and size it was charged to: only what it is thought to use changes, as often
as there is news, from better forecasts and from an answer that goes on past its own.
"""

from __future__ import annotations

from gateway.schedule import admission
from gateway.schedule.entry import Entry, Stage
from gateway.schedule.events import Outgrown, Reforecast
from gateway.schedule.ordering import reserve_beyond
from gateway.schedule.scheduler_state import SchedulerState


def reforecast(state: SchedulerState, event: Reforecast, now: float) -> None:
    entry = state.jobs.get(event.job_id)
    if entry is None:
        return
    settings = state.settings.schedule
    if entry.stage is not Stage.WAITING:
        entry.workload = event.workload
        _reserve(state, entry, entry.reserve_now(settings))
    elif event.workload.rung not in entry.rungs:
        pool = state.pools[entry.pool]
        entry.rungs.add(event.workload.rung)
        pool.remove_waiting(entry)
        entry.workload = event.workload
        entry.weigh(settings, pool.order)
        entry.bound_wait(settings, admission.service_s(pool, entry))
        pool.add_waiting(entry)
        assert entry.line is not None
        horizon_s = state.allocation.openings.horizon_s(pool, entry.line, now)
        pool.due |= entry.expire_s <= horizon_s  # its time may be over
        state.touch(pool.name)


def outgrown(state: SchedulerState, event: Outgrown, now: float) -> None:
    entry = state.jobs.get(event.job_id)
    if entry is not None and entry.stage is Stage.RUNNING:
        quantile = state.settings.schedule.reserve_quantile
        tokens = reserve_beyond(entry.job, entry.workload, event.output_tokens, quantile)
        _reserve(state, entry, max(entry.reserve, tokens))


def _reserve(state: SchedulerState, entry: Entry, tokens: int) -> None:
    budget = state.pools[entry.pool].budget
    budget.correct(entry.cls, tokens - entry.reserve)
    entry.reserve = tokens
    if not budget.nominal:
        state.touch(entry.pool)
