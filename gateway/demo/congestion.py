"""Congestion of the demo provider, and its limits per key.

Up to `congestion_knee` concurrent streams run at full speed. Beyond, the speed of each is
(knee ÷ streams) to the power `congestion_exponent`: with 1 the total rate stays the same, above 1
it falls, as with overloaded servers.

Limits are per key. `rpm` is a token bucket of one minute's requests, and
`x-ratelimit-reset-requests` the time until it is full again, as with OpenAI. `max_concurrency` is
a count.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import GatewayError
from gateway.settings.schema import Demo

TICK_S = 0.005  # least time between two wakes of a stream; faster tokens come several at once
CONCURRENCY_RETRY_S = 0.5


class Limited(GatewayError):
    """The 429 of a key that is over its rate or its concurrency, in OpenAI's words."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"


class Congestion:
    """Speed of the demo's streams, by the number that run."""

    def __init__(self, settings: Demo) -> None:
        self._settings = settings
        self._chance = random.Random(settings.seed)
        self.active = 0

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Counts one stream while inside."""
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    def speed(self) -> float:
        """Speed of one stream, as a share of full speed: (0, 1]."""
        crowd = max(1.0, self.active / self._settings.congestion_knee)
        return math.pow(crowd, -self._settings.congestion_exponent)

    def noise(self) -> float:
        """A random factor around 1, log-normal."""
        return math.exp(self._chance.gauss(0.0, self._settings.noise))

    def fault(self) -> int | None:
        """A status of 500 or 503 for a share `error_rate` of requests; else None."""
        if self._chance.random() >= self._settings.error_rate:
            return None
        return self._chance.choice((500, 503))


class MinuteLimit:
    """A bucket that holds one minute's amount, full at first; 0 is no limit."""

    def __init__(self, per_minute: int, now: float) -> None:
        self._full = float(per_minute)
        self._rate = per_minute / 60.0
        self._level, self._at = self._full, now

    def lacks_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; for more than the bucket holds, until it is full."""
        if not self._rate:
            return 0.0
        self._level = min(self._full, self._level + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, min(amount, self._full) - self._level) / self._rate

    def take(self, amount: float) -> None:
        """Take it, whether it is there or not."""
        self._level -= amount if self._rate else 0.0

    def state(self) -> tuple[int, int, float] | tuple[None, None, None]:
        """Limit, remaining and seconds until full, as in response headers."""
        if not self._rate:
            return None, None, None
        reset_s = (self._full - self._level) / self._rate
        return int(self._full), max(0, int(self._level)), reset_s


class KeyLimits:
    """Limits of one key. Times are monotonic seconds."""

    def __init__(self, settings: Demo, now: float) -> None:
        self.max_concurrency = settings.max_concurrency
        self.running = 0
        self._minute = MinuteLimit(settings.rpm, now)

    @contextmanager
    def request(self, now: float) -> Iterator[None]:
        """Counts one request while inside. Raises Limited."""
        wait_s = self._minute.lacks_s(1.0, now)
        if wait_s > 0:
            raise Limited(
                f"Rate limit reached: {self._minute.state()[0]} requests per minute. "
                f"Please try again in {wait_s:.3f}s.",
                retry_after_s=wait_s,
            )
        if self.max_concurrency and self.running >= self.max_concurrency:
            raise Limited(
                f"Too many concurrent requests: at most {self.max_concurrency}.",
                retry_after_s=CONCURRENCY_RETRY_S,
            )
        self._minute.take(1.0)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def headers(self, now: float) -> dict[str, str]:
        """OpenAI's x-ratelimit-*-requests headers; empty where there is no rate limit."""
        self._minute.lacks_s(0.0, now)
        limit, left, reset_s = self._minute.state()
        if reset_s is None:
            return {}
        return {
            "x-ratelimit-limit-requests": str(limit),
            "x-ratelimit-remaining-requests": str(left),
            "x-ratelimit-reset-requests": duration(reset_s),
        }


def duration(seconds: float) -> str:
    """A duration in OpenAI's notation: 120ms, 1s, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{round(seconds, 3):g}s"
    return f"{int(seconds // 60)}m{int(seconds % 60)}s"
