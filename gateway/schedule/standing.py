"""Where a waiting job stands: for the person who asks, not for any decision.

It looks at every live job, so it is for `GET /status/{id}` and the like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.schedule.admission import wait_s
from gateway.schedule.entry import Entry, Stage
from gateway.snapshots import Standing

if TYPE_CHECKING:
    from gateway.schedule.scheduler import Scheduler


def standing(scheduler: Scheduler, job_id: str, now: float) -> Standing | None:
    """None for a job that does not wait. Jobs of its class in its pool that go before it by
    the present order; the wait is an estimate: what is ahead, at the pace of late and at its
    class's share of it; 0 before that is known."""
    entry = scheduler.jobs.get(job_id)
    if entry is None or entry.stage is not Stage.WAITING:
        return None
    pool = scheduler.pools[entry.pool]
    mine = _rank(entry)
    ahead = [e for e in pool.queued.values() if e.cls is entry.cls and _rank(e) < mine]
    tokens = sum(other.reserve for other in ahead)
    others = pool.waiting_tokens - entry.reserve
    return Standing(
        position=len(ahead) + 1,
        waiting=pool.waiting,
        waited_s=now - entry.job.arrived_s,
        expected_wait_s=wait_s(pool, entry.cls, tokens, others),
    )


def _rank(entry: Entry) -> tuple[int, float, int]:
    assert entry.lane is not None
    return entry.lane.share.rank, entry.key, entry.seq
