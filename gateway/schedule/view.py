"""The scheduler as people and scrapes see it: linear in pools, lanes, accounts, not in jobs."""

from __future__ import annotations

from gateway.schedule.assess import saturation
from gateway.schedule.entry import Stage
from gateway.schedule.pool import Pool
from gateway.schedule.scheduler_state import SchedulerState
from gateway.snapshots import ClassSnapshot, PoolSnapshot, SchedulerSnapshot
from gateway.types import Blocked, JobClass, Reason


def snapshot(state: SchedulerState, now: float) -> SchedulerSnapshot:
    oldest = _oldest(state, now)
    return SchedulerSnapshot(
        pools=tuple(
            PoolSnapshot(
                name=pool.name,
                models=pool.models,
                mode=pool.mode,
                saturation=saturation(pool, state.accounts),
                classes={
                    cls: _class_snapshot(state, pool, cls, oldest.get((pool.name, cls)), now)
                    for cls in JobClass
                },
                retrying=pool.retrying,
                waiting_bytes=pool.waiting_bytes,
                severity=pool.severity,
                clear_s=pool.clear_s,
            )
            for pool in state.pools.values()
        ),
        accounts=state.accounts.snapshot(now),
        submitted=state.submitted,
        dispatched=state.dispatched,
        ended=dict(state.ended),
        draining=state.draining,
    )


def _oldest(state: SchedulerState, now: float) -> dict[tuple[str, JobClass], float]:
    """How long the first submitted of each pool and class has waited; looks no further than
    the last of these."""
    found: dict[tuple[str, JobClass], float] = {}
    missing = {
        (pool.name, cls)
        for pool in state.pools.values()
        for cls in JobClass
        if pool.waiting_tokens_of[cls]
    }
    for entry in state.jobs.values():
        if not missing:
            break
        key = (entry.pool, entry.cls)
        if entry.stage is Stage.WAITING and key in missing:
            missing.discard(key)
            found[key] = now - entry.since_s
    return found


def _class_snapshot(
    state: SchedulerState, pool: Pool, cls: JobClass, oldest_s: float | None, now: float
) -> ClassSnapshot:
    budget = pool.budget
    waiting = 0
    blocked: dict[Reason, int] = {}
    allocation = state.allocation
    is_open = allocation.is_open(pool, cls, now)
    for line in pool.lines.values():
        for tier in line.tiers.values():
            if tier.cls is not cls or not tier.size:
                continue
            of_tier = allocation.tier_fits(pool, tier, is_open, now)
            for lane in tier.lanes.values():
                if not lane.size:
                    continue
                waiting += lane.size
                answer = allocation.lane_fits(pool, lane, of_tier)
                if isinstance(answer, Blocked):
                    blocked[answer.reason] = blocked.get(answer.reason, 0) + lane.size
    return ClassSnapshot(
        budget_tokens=round(budget.limits[cls]),
        inflight_tokens=float(budget.tokens[cls]),
        borrowed_tokens=budget.borrowed(cls),
        running=budget.jobs[cls],
        waiting=waiting,
        waiting_tokens=float(pool.waiting_tokens_of[cls]),
        oldest_wait_s=oldest_s or 0.0,
        blocked=blocked,
    )
