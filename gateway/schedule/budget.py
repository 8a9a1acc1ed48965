"""Tokens in flight by class, jobs in flight by size, of one pool.

A class may start a job while its tokens are *below* its budget; the job that crosses the line
is let through. So whether a class may start never depends on how large the next job is: no
large job waits for a gap that small ones keep filling, and a budget is exceeded by at most one
oversize job.

With borrowing a class at its budget goes on while the pool as a whole is below the sum of both
budgets and the other class has nothing it could start itself: room is never left idle, and the
owner of a share always comes first to it.
"""

from __future__ import annotations

from gateway.settings.schema import Schedule, TierCaps
from gateway.types import JobClass, Mode, SizeBucket


class Budget:
    """The counters. A job is in flight from its first dispatch to its end, across retries."""

    __slots__ = (
        "buckets",
        "jobs",
        "limits",
        "tokens",
        "total_jobs",
        "total_limit",
        "total_tokens",
    )

    def __init__(self, settings: Schedule) -> None:
        self.tokens = dict.fromkeys(JobClass, 0)
        self.jobs = dict.fromkeys(JobClass, 0)
        self.buckets = dict.fromkeys(SizeBucket, 0)
        self.total_tokens = 0
        self.total_jobs = 0
        self.limits = {
            JobClass.INTERACTIVE: settings.interactive_inflight_tokens,
            JobClass.HEAVY: settings.heavy_inflight_tokens,
        }
        self.total_limit = sum(self.limits.values())

    def take(self, cls: JobClass, bucket: SizeBucket, reserve: int) -> None:
        self.tokens[cls] += reserve
        self.total_tokens += reserve
        self.jobs[cls] += 1
        self.total_jobs += 1
        self.buckets[bucket] += 1

    def give_back(self, cls: JobClass, bucket: SizeBucket, reserve: int) -> None:
        self.tokens[cls] -= reserve
        self.total_tokens -= reserve
        self.jobs[cls] -= 1
        self.total_jobs -= 1
        self.buckets[bucket] -= 1
        assert min(self.tokens[cls], self.jobs[cls], self.buckets[bucket]) >= 0

    def correct(self, cls: JobClass, change: int) -> None:
        """A running job's reserve changed by so much."""
        self.tokens[cls] += change
        self.total_tokens += change

    def owns_room(self, cls: JobClass) -> bool:
        return self.tokens[cls] < self.limits[cls]

    @property
    def has_spare(self) -> bool:
        return self.total_tokens < self.total_limit

    def borrowed(self, cls: JobClass) -> int:
        return max(0, self.tokens[cls] - self.limits[cls])


def tier_cap(settings: Schedule, bucket: SizeBucket, mode: Mode) -> int:
    """Most jobs of one size in flight in this mode; 0 = no cap."""
    caps: TierCaps = settings.tier_caps
    match bucket:
        case SizeBucket.SHORT:
            cap = caps.short
        case SizeBucket.MEDIUM:
            cap = caps.medium
        case SizeBucket.LONG:
            cap = caps.long
    match mode:
        case Mode.FREE:
            return cap
        case Mode.MODERATE:
            scale = settings.moderate_caps
        case Mode.CONGESTED:
            scale = settings.congested_caps
    return max(1, int(cap * scale)) if cap else 0
