"""Assertions on every invariant of the scheduler, recomputed from the live jobs; for tests.

Linear in the jobs. What the scheduler remembers of its queues and sums is counted anew, for that is
what may be wrong. A class may be over its budget: a forecast was corrected, a job taken over, the
settings changed. Nothing may start in it then, which a state cannot show: tests judge each start
(tests/unit/schedule/judge.py).
"""

from __future__ import annotations

from collections import Counter

from gateway.schedule.live_job import LiveJob, Stage
from gateway.schedule.model_pool import Pool
from gateway.schedule.queue import TenantQueue
from gateway.schedule.rounds import TURN_OF
from gateway.schedule.scheduler_state import SchedulerState
from gateway.types import Fit, JobClass, SizeBucket

INTERACTIVE, HEAVY, BACKGROUND = JobClass.INTERACTIVE, JobClass.HEAVY, JobClass.BACKGROUND


def check(state: SchedulerState, now: float | None) -> None:
    """Raises AssertionError. With `now` (that of the last event) also work conservation."""
    ended = sum(state.ended.values())
    assert state.submitted == len(state.jobs) + ended, "one outcome per job"
    for name, pool in state.pools.items():
        _check_pool(pool, [e for e in state.jobs.values() if e.pool == name])
    assert {e.pool for e in state.jobs.values()} <= set(state.pools)
    _check_tenants(state)
    _check_leases(state, now)
    state.accounts.check()
    if now is not None:
        for job_id, live in state.jobs.items():
            if live.stage is not Stage.RUNNING:
                fit = state.chooser.fits(state.pools[live.pool], live, now)
                assert not isinstance(fit, Fit), f"{job_id} waits although it fits"
            assert live.stage is Stage.RUNNING or now < live.expire_s, f"{job_id} is overdue"


def _check_pool(pool: Pool, entries: list[LiveJob]) -> None:
    waiting = [e for e in entries if e.stage is Stage.WAITING]
    inflight = [e for e in entries if e.stage is not Stage.WAITING]
    budget = pool.budget
    for cls in JobClass:
        mine = [e for e in inflight if e.cls is cls]
        assert budget.tokens[cls] == sum(e.reserve for e in mine), (pool.name, cls)
        assert budget.jobs[cls] == len(mine), (pool.name, cls)
        tokens = sum(e.reserve for e in waiting if e.cls is cls)
        assert pool.waiting_tokens_of[cls] == tokens, (pool.name, cls)
        assert pool.waiting_of[cls] == sum(e.cls is cls for e in waiting), (pool.name, cls)
    sizes = Counter(e.bucket for e in inflight)
    assert budget.buckets == {bucket: sizes[bucket] for bucket in SizeBucket}, pool.name
    assert set(pool.queued) == set(waiting), pool.name
    assert pool.waiting_tokens == sum(e.reserve for e in waiting), pool.name
    assert pool.waiting_bytes == sum(e.body_bytes for e in waiting), pool.name
    assert pool.retrying == sum(e.stage is Stage.RETRYING for e in inflight), pool.name
    assert pool.retried == sum(e.holds_retry for e in inflight), pool.name
    _check_queues(pool, waiting, inflight)


def _check_queues(pool: Pool, waiting: list[LiveJob], inflight: list[LiveJob]) -> None:
    retrying = [e for e in inflight if e.stage is Stage.RETRYING]
    standing: dict[int, list[LiveJob]] = {}  # by tenant queue
    for e in waiting:
        queue = pool.queued[e]
        of_class = queue.class_queue
        assert e in queue.jobs
        assert (queue.tenant, of_class.key) == (e.tenant, e.queue_key)
        assert of_class.accounts_queue is pool.queues[e.job.model, e.accounts, frozenset()]
        assert e.queue_key.cls is e.cls
        standing.setdefault(id(queue), []).append(e)
    sizes = Counter(id(pool.queue_of(e)) for e in waiting + retrying)
    assert sum(sizes.values()) == sum(len(queue.jobs) for queue in pool.queues.values())
    for accounts_queue in pool.queues.values():
        class_queues = accounts_queue.class_queues.values()
        assert len(accounts_queue.jobs) == sizes[id(accounts_queue)]
        assert accounts_queue.waiting == sum(of_class.size for of_class in class_queues)
        for of_class in class_queues:
            queues = list(of_class.tenant_queues.values())
            assert of_class.size == sum(len(of_tenant.jobs) for of_tenant in queues)
            for of_tenant in queues:
                _check_tenant_queue(of_tenant, standing.get(id(of_tenant), []))
            best = of_class.best()  # parks what is to be parked
            shown = [of_tenant for of_tenant in queues if of_tenant.first and not of_tenant.parked]
            assert best is min(shown, key=_rank, default=None), "a queue is lost to its class"
    assert all(e in pool.queue_of(e).jobs for e in waiting + retrying)
    for cls in JobClass:
        held = Counter(e.tenant.name for e in waiting if e.cls is cls)
        pool.shares[cls].check(held)
    assert not any(pool.rounds.credit[TURN_OF[c]] for c in JobClass if not pool.waiting_of[c])


def _check_tenant_queue(queue: TenantQueue, jobs: list[LiveJob]) -> None:
    assert queue.jobs == set(jobs)
    assert queue.first is min(jobs, key=lambda e: (e.key, e.seq), default=None)
    assert queue.oldest is min(jobs, key=lambda e: e.arrival, default=None)
    assert queue.parked == (queue in queue.tenant.parked)
    assert (queue in queue.share.queues) == bool(jobs)


def _rank(queue: TenantQueue) -> tuple[int, float, int]:
    assert queue.first is not None
    return queue.share.rank, queue.first.key, queue.first.seq


def _check_tenants(state: SchedulerState) -> None:
    waiting = Counter(e.tenant.name for e in state.jobs.values() if e.stage is Stage.WAITING)
    running = Counter(e.tenant.name for e in state.jobs.values() if e.stage is not Stage.WAITING)
    for name, tenant in state.tenants.items():
        assert tenant.waiting == waiting[name], name
        assert tenant.running == running[name], name
        tokens = sum(
            e.reserve
            for e in state.jobs.values()
            if e.tenant is tenant and e.stage is Stage.WAITING
        )
        assert tenant.waiting_tokens == tokens, name
        assert tenant.capped or not tenant.parked, f"{name} is parked without need"


def _check_leases(state: SchedulerState, now: float | None) -> None:
    running = [e for e in state.jobs.values() if e.stage is Stage.RUNNING]
    assert len({e.lease for e in running}) == len(running), "one lease per attempt"
    held = {a.name: a.inflight for a in state.accounts.snapshot(0.0 if now is None else now)}
    used = Counter(e.account for e in running)
    assert {name: n for name, n in held.items() if n} == dict(used), "leases = running jobs"
