"""How full a pool is, and what to tell those who are sent away."""

from __future__ import annotations

from math import exp

from gateway.errors import Refused, Unavailable
from gateway.settings.schema import Schedule
from gateway.types import Mode

RATE_WINDOW_S = 30.0
RETRY_MIN_S = 1.0
RETRY_MAX_S = 60.0  # official SDKs ignore a longer Retry-After
RETRY_UNKNOWN_S = 5.0  # nothing has finished yet


def next_mode(mode: Mode, saturation: float, settings: Schedule) -> Mode:
    """Up at the entry, down only below (1 − hysteresis) × the entry."""
    stay = 1.0 - settings.hysteresis
    congested, moderate = settings.congested_above, settings.moderate_above
    if mode is Mode.CONGESTED:
        congested *= stay
    if mode is not Mode.FREE:
        moderate *= stay
    if saturation >= congested:
        return Mode.CONGESTED
    return Mode.MODERATE if saturation >= moderate else Mode.FREE


class DrainRate:
    """Tokens finished a second, lately: an exponentially fading count over the weight it has
    gathered so far, so that the first minute is not read as a slow one."""

    __slots__ = ("_at_s", "_tokens", "_weight_s")

    def __init__(self) -> None:
        self._tokens = 0.0
        self._weight_s = 0.0
        self._at_s: float | None = None

    def add(self, tokens: float, now: float) -> None:
        self._fade(now)
        self._tokens += tokens

    def seconds(self, tokens: float, now: float) -> float:
        """How long `tokens` of waiting work will take, clamped to what a Retry-After may say."""
        self._fade(now)
        if self._tokens <= 0 or self._weight_s <= 0:
            return RETRY_UNKNOWN_S
        return min(max(tokens * self._weight_s / self._tokens, RETRY_MIN_S), RETRY_MAX_S)

    def _fade(self, now: float) -> None:
        if self._at_s is None:
            self._at_s = now
        keep = exp(-max(0.0, now - self._at_s) / RATE_WINDOW_S)
        self._tokens *= keep
        self._weight_s = self._weight_s * keep + RATE_WINDOW_S * (1.0 - keep)
        self._at_s = max(now, self._at_s)


def queue_full(retry_after_s: float) -> Refused:
    return Refused("the queue is full", code="queue_full", retry_after_s=retry_after_s)


def tenant_queue_full(retry_after_s: float) -> Refused:
    return Refused(
        "too many of your requests are waiting", code="queue_full", retry_after_s=retry_after_s
    )


def queue_timeout(retry_after_s: float) -> Unavailable:
    return Unavailable(
        "the request waited too long for a free slot",
        code="queue_timeout",
        retry_after_s=retry_after_s,
    )


def no_account(heals_in_s: float) -> Unavailable:
    """`heals_in_s` is infinite where only the operator can help; then a retry cannot."""
    if heals_in_s == float("inf"):
        return Unavailable("no account can serve this model", code="no_account", should_retry=False)
    return Unavailable(
        "no account can serve this model in time",
        code="no_account",
        retry_after_s=min(max(heals_in_s, RETRY_MIN_S), RETRY_MAX_S),
    )


def draining(retry_after_s: float) -> Unavailable:
    return Unavailable("the gateway is shutting down", code="draining", retry_after_s=retry_after_s)
