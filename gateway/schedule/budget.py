"""Tokens in flight by class and jobs in flight by size, of one pool.

A class may start a job while its tokens are *below* its budget; the job that crosses the line is
let through. So whether a class may start never depends on how large the next job is: no large
job waits for a gap that small ones keep filling, and a budget is exceeded by one job at most.

`policy = "adaptive"`: the budgets are shares of what the accounts take, which is room × mean
reserve: 3000 : 7000 to begin with, and a little for the background. The interactive share grows
with congestion as its weight does. With borrowing the budgets decide only which class comes first:
what a class leaves idle serves the others, up to the accounts' windows, which alone bound the
whole. (Fixed token budgets are what makes a gateway under-fill its provider.)

`policy = "dual_budget"`: two fixed budgets, as given; background work draws on the heavy one.
With `borrow` a class at its budget goes on while the pool as a whole is below their sum.
"""

from __future__ import annotations

from gateway.settings.schema import Schedule, TierCaps
from gateway.types import JobClass, Mode, SizeBucket

INTERACTIVE, HEAVY, BACKGROUND = JobClass.INTERACTIVE, JobClass.HEAVY, JobClass.BACKGROUND
SURE_STARTS = 16  # jobs started before their mean reserve is believed
CAP_SCALES = {Mode.FREE: 1.0, Mode.MODERATE: 0.75, Mode.CONGESTED: 0.5}
"""Scale of the tier caps by mode: the fuller the pool, the more a cap keeps for other sizes."""


class Budget:
    """Counters of one pool. A job is in flight from its first dispatch to its end, across
    retries.

    `nominal`: the budgets only decide which class comes first, and keep no job waiting. `steady`:
    a job that waits for its class's budget gets room only when a job ends.
    """

    __slots__ = (
        "_background", "_parts", "borrow", "buckets", "fixed", "jobs", "limits", "nominal",
        "steady", "tokens", "total_jobs", "total_limit", "total_tokens",
    )  # fmt: skip

    def __init__(self, settings: Schedule) -> None:
        self.tokens = dict.fromkeys(JobClass, 0)
        self.jobs = dict.fromkeys(JobClass, 0)
        self.buckets = dict.fromkeys(SizeBucket, 0)
        self.total_tokens = 0
        self.total_jobs = 0
        self.fixed = settings.policy == "dual_budget"
        self.borrow = not self.fixed if settings.borrow is None else settings.borrow
        self.nominal = self.borrow and not self.fixed
        self.steady = self.borrow or self.fixed
        interactive = settings.interactive_inflight_tokens
        heavy = settings.heavy_inflight_tokens
        weights = settings.interactive_weight + settings.heavy_weight
        self._parts = (float(interactive), float(heavy))
        self._background = settings.background_weight / weights
        self.total_limit = float(interactive + heavy)
        self.limits = {
            INTERACTIVE: float(interactive),
            HEAVY: float(heavy),
            BACKGROUND: 0.0 if self.fixed else self.total_limit * self._background,
        }

    def resize(self, total_tokens: float, pressure: float) -> None:
        """Divide `total_tokens` among the classes anew; fixed budgets stay.

        Args:
            pressure: factor on the interactive share, 1 to 2.
        """
        if self.fixed:
            return
        interactive, heavy = self._parts[0] * pressure, self._parts[1]
        scale = total_tokens / (interactive + heavy)
        limits = self.limits
        limits[INTERACTIVE] = interactive * scale
        limits[HEAVY] = heavy * scale
        limits[BACKGROUND] = total_tokens * self._background
        self.total_limit = total_tokens

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
        assert self.tokens[cls] >= 0 <= self.jobs[cls]
        assert self.buckets[bucket] >= 0

    def correct(self, cls: JobClass, change: int) -> None:
        """Count the change of a running job's reserve."""
        self.tokens[cls] += change
        self.total_tokens += change

    def owns_room(self, cls: JobClass) -> bool:
        if self.fixed and cls is not INTERACTIVE:
            return self.tokens[HEAVY] + self.tokens[BACKGROUND] < self.limits[HEAVY]
        return self.tokens[cls] < self.limits[cls]

    def admits(self, cls: JobClass) -> bool:
        """True where a job of this class may start, in its own budget or in one left idle."""
        return self.nominal or self.lends or self.owns_room(cls)

    @property
    def lends(self) -> bool:
        """True where a class at its budget may use what other classes leave idle. The adaptive
        policy sets no bound to that here: the accounts' windows do."""
        return self.borrow and (not self.fixed or self.total_tokens < self.total_limit)

    def borrowed(self, cls: JobClass) -> float:
        return max(0.0, self.tokens[cls] - self.limits[cls])


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
    return max(1, int(cap * CAP_SCALES[mode])) if cap else 0
