"""Overload: whether to admit, defer or reject a job, and the errors of rejected jobs.

Severity is the worst of three ratios, 1 where overload begins:

    backlog    time to clear what waits / clear_s (or the shortest default deadline, if shorter)
    drops      attempts the provider refused for its load / DROP_RATIO
    slowdown   (wait + service) / service of what finished lately / SLOWDOWN

1. From `defer_above` on the most expensive jobs are deferred, half-way to `reject_above` the
   next ones: they take their turn as if they were background work. Nothing is lost, nothing idles,
   and a job that waits alone starts at once.
2. Drops and slowdown defer but never reject: they show a slow provider, which a queue can absorb.
   Only a backlog that is too long to wait for rejects, from `reject_above` on, jobs that could
   not start at once: the most expensive first, and never a short one, which costs less than the
   response that rejects it.
3. Background work is not rejected here: nobody waits for it with a connection open.
4. Each step is left only at (1 − HYSTERESIS) × its entry.
"""

from __future__ import annotations

from enum import IntEnum
from math import inf
from typing import Protocol

from gateway.errors import Refused, Unavailable
from gateway.settings.schema import Schedule
from gateway.types import Mode, SizeBucket

MODERATE_ABOVE = 0.7  # saturation that enters the mode; 1 = full
CONGESTED_ABOVE = 1.2  # more waits than runs out soon
HYSTERESIS = 0.15  # a mode or step is left at (1 − this) × its entry, so that it does not flap
DROP_RATIO = 0.25  # dropped attempts of all, at severity 1
SLOWDOWN = 20.0  # at severity 1
LONG_TOKENS = 256  # a medium reserve ends here, as SizeBucket's medium does
HUGE_TOKENS = 1024  # a long reserve ends here
RETRY_MIN_S = 1.0
RETRY_MAX_S = 60.0  # official SDKs ignore a longer Retry-After
RETRY_UNKNOWN_S = 5.0  # nothing has finished yet
JITTER = 0.25  # so that refused clients do not come back together


class Grade(IntEnum):
    """Rung of the cost ladder, by reserve; the highest is the first to be deferred."""

    SHORT = 0
    MEDIUM = 1
    LONG = 2
    HUGE = 3
    NONE = 4  # above all

    __hash__ = int.__hash__

    @classmethod
    def of(cls, reserve: int, bucket: SizeBucket) -> Grade:
        if bucket is SizeBucket.SHORT:
            return cls.SHORT
        if reserve <= LONG_TOKENS:
            return cls.MEDIUM
        return cls.LONG if reserve <= HUGE_TOKENS else cls.HUGE


def next_mode(mode: Mode, saturation: float) -> Mode:
    """The mode at this saturation: up at a mode's entry, down below (1 − HYSTERESIS) × it."""
    stay = 1.0 - HYSTERESIS
    congested, moderate = CONGESTED_ABOVE, MODERATE_ABOVE
    if mode is Mode.CONGESTED:
        congested *= stay
    if mode is not Mode.FREE:
        moderate *= stay
    if saturation >= congested:
        return Mode.CONGESTED
    return Mode.MODERATE if saturation >= moderate else Mode.FREE


def pressure(saturation: float) -> float:
    """Factor of the interactive class's share: 1 up to MODERATE_ABOVE, 2 from CONGESTED_ABOVE."""
    span = CONGESTED_ABOVE - MODERATE_ABOVE
    return 1.0 + min(1.0, max(0.0, (saturation - MODERATE_ABOVE) / span))


def backlog_severity(clear_s: float, settings: Schedule) -> float:
    """The severity of a backlog that takes `clear_s` to serve."""
    within_s = settings.clear_s
    for deadline_s in (settings.interactive_deadline_s, settings.heavy_deadline_s):
        if 0.0 < deadline_s < within_s:
            within_s = deadline_s
    return clear_s / within_s


def severity(backlog: float, drop_ratio: float, slowdown: float) -> float:
    """The worst of the three ratios; `backlog` is a severity already."""
    return max(backlog, drop_ratio / DROP_RATIO, slowdown / SLOWDOWN)


def deferred_from(present: Grade, level: float, settings: Schedule) -> Grade:
    """The lowest grade that is deferred at this severity; `present`: the one until now."""
    if not settings.shed or level < settings.defer_above * (1.0 - HYSTERESIS):
        return Grade.NONE
    half = (settings.defer_above + settings.reject_above) / 2
    return _step(present, level, {Grade.HUGE: settings.defer_above, Grade.LONG: half})


def rejected_from(present: Grade, backlog: float, settings: Schedule) -> Grade:
    """The lowest grade that is turned away at this backlog's severity."""
    first = settings.reject_above
    if not settings.shed or backlog < first * (1.0 - HYSTERESIS):
        return Grade.NONE
    entries = {Grade.HUGE: first, Grade.LONG: 1.5 * first, Grade.MEDIUM: 2.0 * first}
    return _step(present, backlog, entries)


def _step(present: Grade, level: float, entries: dict[Grade, float]) -> Grade:
    """The lowest grade whose entry is reached. `entries` fall in grade and rise in level."""
    stay = 1.0 - HYSTERESIS
    found = Grade.NONE
    for grade, entry in entries.items():
        if level >= (entry * stay if present <= grade else entry):
            found = grade
    return found


class Jitter(Protocol):
    """The part of `random.Random` that spreads the times at which refused clients come back."""

    def uniform(self, a: float, b: float, /) -> float: ...


def retry_after_s(clear_s: float | None, jitter: Jitter | None) -> float:
    """Seconds for Retry-After: the predicted time to clear the queue (None: unknown), at most as
    long as SDKs heed, jittered unless `jitter` is None."""
    seconds = RETRY_UNKNOWN_S if clear_s is None else max(clear_s, RETRY_MIN_S)
    factor = 1.0 if jitter is None else jitter.uniform(1 - JITTER, 1 + JITTER)
    return min(min(seconds, RETRY_MAX_S) * factor, RETRY_MAX_S)


def queue_full(retry_after_s: float) -> Refused:
    return Refused("the queue is full", code="queue_full", retry_after_s=retry_after_s)


def tenant_queue_full(retry_after_s: float) -> Refused:
    return Refused(
        "too many of your requests are waiting", code="queue_full", retry_after_s=retry_after_s
    )


def overloaded(retry_after_s: float) -> Refused:
    return Refused(
        "too much work is waiting for a request of this size", retry_after_s=retry_after_s
    )


def hopeless(retry_after_s: float) -> Refused:
    return Refused(
        "the request cannot be answered before its deadline",
        code="deadline_unreachable",
        retry_after_s=retry_after_s,
    )


def queue_timeout(retry_after_s: float) -> Unavailable:
    return Unavailable(
        "the request waited too long for a free slot",
        code="queue_timeout",
        retry_after_s=retry_after_s,
    )


def no_account(heals_in_s: float) -> Unavailable:
    """The error where no account is in service. `heals_in_s`: infinite where only the operator
    can help, so that a retry cannot."""
    if heals_in_s == inf:
        return Unavailable("no account can serve this model", code="no_account", should_retry=False)
    return Unavailable(
        "no account can serve this model in time",
        code="no_account",
        retry_after_s=min(max(heals_in_s, RETRY_MIN_S), RETRY_MAX_S),
    )


def draining(retry_after_s: float) -> Unavailable:
    return Unavailable("the gateway is shutting down", code="draining", retry_after_s=retry_after_s)
