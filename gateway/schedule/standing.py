"""Where a waiting job stands: for the person who asks, not for any decision.

It looks at every live job, so it is for `GET /status/{id}` and the like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.schedule.entry import Stage
from gateway.types import Standing

if TYPE_CHECKING:
    from gateway.schedule.scheduler import Scheduler


def standing(scheduler: Scheduler, job_id: str, now: float) -> Standing | None:
    """None for a job that does not wait. Jobs of its class in its pool that go before it by
    the present order; the wait is an estimate: what is ahead at the rate of late."""
    entry = scheduler.jobs.get(job_id)
    if entry is None or entry.stage is not Stage.WAITING:
        return None
    pool = scheduler.pools[entry.pool]
    ahead = [
        other
        for other in scheduler.jobs.values()
        if other.stage is Stage.WAITING
        and other.pool == entry.pool
        and other.cls is entry.cls
        and other.precedes(entry)
    ]
    tokens = sum(other.reserve for other in ahead)
    return Standing(
        position=len(ahead) + 1,
        waiting=pool.waiting,
        waited_s=now - entry.job.arrived_s,
        expected_wait_s=pool.rate.seconds(tokens, now),
    )
