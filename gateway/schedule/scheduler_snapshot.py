"""The scheduler's state for display and metrics: linear in pools, queues and accounts, not jobs."""

from __future__ import annotations

from gateway.schedule import overload
from gateway.schedule.live_job import Stage
from gateway.schedule.model_pool import Pool
from gateway.schedule.placement_cache import Ask, PlacementCache
from gateway.schedule.pressure import load, saturation
from gateway.schedule.queue import AccountsQueue
from gateway.schedule.scheduler_state import SchedulerState
from gateway.snapshots import ClassSnapshot, PoolSnapshot, SchedulerSnapshot
from gateway.types import Blocked, Fit, JobClass, Reason


def snapshot(state: SchedulerState, now: float) -> SchedulerSnapshot:
    """The state of all pools and accounts at `now`."""
    oldest = _oldest(state, now)
    return SchedulerSnapshot(
        pools=tuple(_pool_snapshot(state, pool, oldest, now) for pool in state.pools.values()),
        accounts=state.accounts.snapshot(now),
        submitted=state.submitted,
        dispatched=state.dispatched,
        ended=dict(state.ended),
        draining=state.draining,
    )


def _pool_snapshot(
    state: SchedulerState, pool: Pool, oldest: dict[tuple[str, JobClass], float], now: float
) -> PoolSnapshot:
    # The pool's own are of its last assessment.
    full = saturation(pool, state.accounts)
    clear_s, _, severity = load(pool, state.settings.schedule)
    return PoolSnapshot(
        name=pool.name,
        models=pool.models,
        mode=overload.next_mode(pool.mode, full),
        saturation=full,
        classes={
            cls: _class_snapshot(state, pool, cls, oldest.get((pool.name, cls)), now)
            for cls in JobClass
        },
        retrying=pool.retrying,
        waiting_bytes=pool.waiting_bytes,
        severity=severity,
        clear_s=clear_s,
    )


def _oldest(state: SchedulerState, now: float) -> dict[tuple[str, JobClass], float]:
    """Seconds that the first submitted job of each pool and class has waited; looks no further
    than the last of these."""
    found: dict[tuple[str, JobClass], float] = {}
    missing = {
        (pool.name, cls)
        for pool in state.pools.values()
        for cls in JobClass
        if pool.waiting_tokens_of[cls]
    }
    for live in state.jobs.values():
        if not missing:
            break
        key = (live.pool, live.cls)
        if live.stage is Stage.WAITING and key in missing:
            missing.discard(key)
            found[key] = now - live.since_s
    return found


def _class_snapshot(
    state: SchedulerState, pool: Pool, cls: JobClass, oldest_s: float | None, now: float
) -> ClassSnapshot:
    budget = pool.budget
    waiting = 0
    blocked: dict[Reason, int] = {}
    may_start, ask = state.chooser.may_start, _asking_once(state.chooser.placements)
    for queue in pool.queues.values():
        for class_queue in queue.class_queues.values():
            if class_queue.cls is not cls or not class_queue.size:
                continue
            for tenant_queue in class_queue.tenant_queues.values():
                if not (here := len(tenant_queue.jobs)):
                    continue
                waiting += here
                key, tenant = class_queue.key, tenant_queue.tenant
                answer = may_start(pool, queue, key, tenant, now, ask=ask)
                if isinstance(answer, Blocked):
                    blocked[answer.reason] = blocked.get(answer.reason, 0) + here
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


def _asking_once(placements: PlacementCache) -> Ask:
    """`ask_anew`, asked once for all tenants of a queue."""
    answers: dict[tuple[AccountsQueue, bool], Fit | Blocked] = {}

    def ask(pool: Pool, queue: AccountsQueue, express: bool, now: float) -> Fit | Blocked:
        answer = answers.get((queue, express))
        if answer is None:
            answer = answers[queue, express] = placements.ask_anew(pool, queue, express, now)
        return answer

    return ask
