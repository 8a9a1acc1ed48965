"""Number of requests in flight over time: its mean and deviation during each request's life.

A latency says something of a load only together with the number in flight while it lasted. Two
integrals over time, of the number and of its square, give both for any stretch, at the cost of a
few additions when a request begins or ends.
"""

from __future__ import annotations

import math

from msgspec import Struct

from gateway.balance.evidence import Sample


class Mark(Struct, frozen=True, gc=False):
    """The beginning of a request: the time, and the integrals of the number in flight then."""

    since_s: float
    area: float
    squares: float


class InFlight:
    """Counter of requests in flight. Times are seconds on the caller's clock."""

    __slots__ = ("_area", "_moved_s", "_squares", "inflight")

    def __init__(self) -> None:
        self.inflight = 0
        self._area = 0.0  # integral of the number in flight
        self._squares = 0.0  # integral of its square
        self._moved_s = 0.0

    def take(self, now: float) -> Mark:
        """Counts one more in flight; the mark that `sample` needs."""
        self._pass(now)
        self.inflight += 1
        return Mark(now, self._area, self._squares)

    def give_back(self, now: float) -> None:
        """Counts one less in flight."""
        self._pass(now)
        self.inflight -= 1

    def sample(
        self, mark: Mark, prompt_tokens: float, output_tokens: float, own_s: float, now: float
    ) -> Sample:
        """The request since `mark`, less `own_s` that were not the provider's."""
        self._pass(now)
        life_s = now - mark.since_s
        mean = (self._area - mark.area) / life_s
        variance = (self._squares - mark.squares) / life_s - mean * mean
        deviation = math.sqrt(max(variance, 0.0))
        return Sample(mean, deviation, life_s - own_s, prompt_tokens, output_tokens)

    def _pass(self, now: float) -> None:
        """Brings the integrals up to `now`."""
        load = self.inflight * (now - self._moved_s)
        self._area += load
        self._squares += load * self.inflight
        self._moved_s = now
