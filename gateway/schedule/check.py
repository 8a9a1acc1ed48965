"""Every invariant of the scheduler, recomputed from the live jobs. For tests: linear in them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gateway.schedule.entry import Entry, Stage
from gateway.schedule.pool import Pool
from gateway.schedule.queue import Lane
from gateway.schedule.rounds import TURN_OF
from gateway.types import Fit, JobClass, SizeBucket

if TYPE_CHECKING:
    from gateway.schedule.scheduler import Scheduler


def check(scheduler: Scheduler, now: float | None) -> None:
    """Raises AssertionError. With `now` (that of the last event) also work conservation."""
    ended = sum(scheduler.ended.values())
    assert scheduler.submitted == len(scheduler.jobs) + ended, "one outcome per job"
    for name, pool in scheduler.pools.items():
        _check_pool(pool, [e for e in scheduler.jobs.values() if e.pool == name])
    assert {e.pool for e in scheduler.jobs.values()} <= set(scheduler.pools)
    _check_tenants(scheduler)
    _check_leases(scheduler, now)
    scheduler.accounts.check()
    if now is not None:
        for job_id, entry in scheduler.jobs.items():
            fit = scheduler.fits(job_id, now)
            assert not isinstance(fit, Fit), f"{job_id} waits although it fits"
            assert entry.stage is Stage.RUNNING or now < entry.expire_s, f"{job_id} is overdue"


def _check_pool(pool: Pool, entries: list[Entry]) -> None:
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
    assert set(pool.queued) == {e.job.id for e in waiting}, pool.name
    assert pool.waiting_tokens == sum(e.reserve for e in waiting), pool.name
    assert pool.waiting_bytes == sum(e.body_bytes for e in waiting), pool.name
    assert pool.retrying == sum(e.stage is Stage.RETRYING for e in inflight), pool.name
    assert pool.retried == sum(e.holds_retry for e in inflight), pool.name
    _check_lines(pool, waiting, inflight)


def _check_lines(pool: Pool, waiting: list[Entry], inflight: list[Entry]) -> None:
    in_line = Counter(id(e.line) for e in waiting + inflight if e.line is not None)
    total = 0
    for line in pool.lines.values():
        assert line.size == in_line[id(line)]
        lanes = [lane for tier in line.tiers.values() for lane in tier.lanes.values()]
        assert line.waiting == sum(lane.size for lane in lanes)
        total += line.size
        for tier in line.tiers.values():
            assert tier.size == sum(lane.size for lane in tier.lanes.values())
            for lane in tier.lanes.values():
                _check_lane(lane, [e for e in waiting if e.lane is lane])
            best = tier.best()  # parks what is to be parked
            shown = [lane for lane in tier.lanes.values() if lane.first and not lane.parked]
            assert best is min(shown, key=_rank, default=None), "a lane is lost to its tier"
    assert total == len(waiting) + pool.retrying
    for e in waiting:
        assert e.lane is not None
        assert e.lane.tier.line is e.line
        assert e.lane.tier.place == e.place
        assert e.place.cls is e.cls
        assert e.lane.tenant is e.tenant
    for cls in JobClass:
        held = Counter(e.tenant.name for e in waiting if e.cls is cls)
        pool.shares[cls].check(held)
    assert not any(pool.rounds.credit[TURN_OF[c]] for c in JobClass if not pool.waiting_of[c])


def _check_lane(lane: Lane, entries: list[Entry]) -> None:
    assert lane.size == len(entries)
    assert lane.first is min(entries, key=lambda e: (e.key, e.seq), default=None)
    assert lane.oldest is min(entries, key=lambda e: (e.job.arrived_s, e.seq), default=None)
    assert lane.parked == (lane in lane.tenant.parked)


def _rank(lane: Lane) -> tuple[int, float, int]:
    assert lane.first is not None
    return lane.share.rank, lane.first.key, lane.first.seq


def _check_tenants(scheduler: Scheduler) -> None:
    waiting = Counter(e.tenant.name for e in scheduler.jobs.values() if e.stage is Stage.WAITING)
    running = Counter(
        e.tenant.name for e in scheduler.jobs.values() if e.stage is not Stage.WAITING
    )
    for name, tenant in scheduler.tenants.items():
        assert tenant.waiting == waiting[name], name
        assert tenant.running == running[name], name
        tokens = sum(
            e.reserve
            for e in scheduler.jobs.values()
            if e.tenant is tenant and e.stage is Stage.WAITING
        )
        assert tenant.waiting_tokens == tokens, name
        assert tenant.capped or not tenant.parked, f"{name} is parked without need"


def _check_leases(scheduler: Scheduler, now: float | None) -> None:
    running = [e for e in scheduler.jobs.values() if e.stage is Stage.RUNNING]
    assert len({e.lease for e in running}) == len(running), "one lease per attempt"
    held = {a.name: a.inflight for a in scheduler.accounts.snapshot(0.0 if now is None else now)}
    used = Counter(e.account for e in running)
    assert {name: n for name, n in held.items() if n} == dict(used), "leases = running jobs"
