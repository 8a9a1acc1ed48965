"""The scheduler as people and scrapes see it; linear in the live jobs, at their leisure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.schedule.entry import Stage
from gateway.schedule.pool import Pool
from gateway.types import Blocked, ClassSnapshot, JobClass, PoolSnapshot, Reason, SchedulerSnapshot

if TYPE_CHECKING:
    from gateway.schedule.scheduler import Scheduler


def snapshot(scheduler: Scheduler, now: float) -> SchedulerSnapshot:
    oldest = {(name, cls): 0.0 for name in scheduler.pools for cls in JobClass}
    for entry in scheduler.jobs.values():
        if entry.stage is Stage.WAITING:
            key = (entry.pool, entry.cls)
            oldest[key] = max(oldest[key], now - entry.since_s)
    return SchedulerSnapshot(
        pools=tuple(
            PoolSnapshot(
                name=pool.name,
                models=pool.models,
                mode=pool.mode,
                saturation=pool.saturation,
                classes={
                    cls: _class_snapshot(scheduler, pool, cls, oldest[pool.name, cls], now)
                    for cls in JobClass
                },
                retrying=pool.retrying,
                waiting_bytes=pool.waiting_bytes,
            )
            for pool in scheduler.pools.values()
        ),
        accounts=scheduler.accounts.snapshot(now),
        submitted=scheduler.submitted,
        dispatched=scheduler.dispatched,
        ended=dict(scheduler.ended),
        draining=scheduler.draining,
    )


def _class_snapshot(
    scheduler: Scheduler, pool: Pool, cls: JobClass, oldest_s: float, now: float
) -> ClassSnapshot:
    budget = pool.budget
    waiting = 0
    blocked: dict[Reason, int] = {}
    is_open = scheduler.allocation.is_open(pool, cls, now)
    for line in pool.lines.values():
        for tier in line.tiers.values():
            if tier.cls is not cls:
                continue
            for lane in tier.lanes.values():
                if not lane.size:
                    continue
                waiting += lane.size
                answer = scheduler.allocation.lane_fits(pool, lane, is_open, now)
                if isinstance(answer, Blocked):
                    blocked[answer.reason] = blocked.get(answer.reason, 0) + lane.size
    return ClassSnapshot(
        budget_tokens=budget.limits[cls],
        inflight_tokens=float(budget.tokens[cls]),
        borrowed_tokens=float(budget.borrowed(cls)),
        running=budget.jobs[cls],
        waiting=waiting,
        waiting_tokens=float(pool.waiting_tokens_of[cls]),
        oldest_wait_s=oldest_s,
        blocked=blocked,
    )
