"""Concurrency limit of one account: AIMD, cut by 429, 503 and time-outs.

An account's true limit is unknown and changes, so it is probed as TCP probes a path: up while
requests succeed, down by a factor when the provider refuses one. It is only a ceiling; the size
worth using below it is found by the windows (window.py).

1. Slow start: +`QUICKLY` per success until the first drop. From then on +1/limit per success,
   about +1 per round of requests.
2. The limit grows only while it is in use (2 × in flight ≥ limit): successes of an idle account
   do not show what it could carry (Netflix concurrency-limits, `AIMDLimit`).
3. A drop cuts once per episode: drops of requests that began before the last cut are ignored, as
   in TCP NewReno. Otherwise a burst of five 429s would take 20 to 4; so it takes it to 15.
4. The limit before a cut is the ceiling. Above it growth is slow and stops a tenth higher; once
   that has held for a round, it is the new ceiling.
5. A fault of the server (5xx, no connection) pauses growth for a round and cuts nothing.

All is counted in rounds and successes, never seconds, so slow providers are treated alike.
"""

from __future__ import annotations

from math import inf

QUICKLY = 2.0
"""Growth per success in slow start: three times the limit in a round."""
PROBE_RATIO = 1.1
"""Factor over the ceiling that the limit reaches before that becomes the ceiling."""
GENTLY = 0.25
"""Growth per success above the ceiling, as a share of the usual growth."""


class Limit:
    """One account's concurrency limit.

    Leases are increasing numbers, so "older than the last cut" is a comparison of two of them.
    """

    __slots__ = (
        "_carried",
        "_cut_ratio",
        "_episode",
        "_high",
        "_low",
        "_paused",
        "_slow_start",
        "ceiling",
        "cuts",
        "value",
    )

    def __init__(self, initial: int, low: int, high: int, cut_ratio: float) -> None:
        self.value = float(initial)
        self.ceiling = inf  # the limit before the last cut
        self.cuts = 0
        self._slow_start = True
        self._episode = 0  # leases with a smaller number began before the last cut
        self._paused = 0.0  # successes until growth goes on
        self._carried = 0.0  # successes at the upper end of the probe
        self.configure(low, high, cut_ratio)

    def configure(self, low: int, high: int, cut_ratio: float) -> None:
        """Sets new bounds and moves the limit inside them. `high` wins over `low`."""
        self._high = float(high)
        self._low = float(min(low, high))
        self._cut_ratio = cut_ratio
        self.value = min(max(self.value, self._low), self._high)

    def restore(self, value: float, ceiling: float) -> None:
        """Takes back a saved limit; without slow start if a ceiling is known."""
        self.value = min(max(value, self._low), self._high)
        self.ceiling = ceiling
        self._slow_start = ceiling == inf

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest limit."""
        return self._low, self._high

    def has_room(self, inflight: int) -> bool:
        """True if one more than `inflight` requests may be in flight."""
        return inflight + 1 <= self.value

    def on_success(self, inflight: int) -> None:
        """Grows the limit where it is in use. `inflight` includes the request that just ended."""
        if self._paused > 0.0:
            self._paused -= 1.0
        elif 2 * inflight >= self.value:
            self._grow()

    def _grow(self) -> None:
        value = self.value
        step = QUICKLY if self._slow_start else 1.0 / value
        if value >= self.ceiling:
            top = self.ceiling * PROBE_RATIO
            if value >= top:
                self._carried += 1.0
                if self._carried >= value:
                    self.ceiling, self._carried = value, 0.0
                return
            step = min(GENTLY / value, top - value)
        self.value = min(self._high, value + step)

    def on_drop(self, lease: int, next_lease: int) -> bool:
        """Cuts the limit unless `lease` began before the last cut; True if it cut.

        `next_lease` is the number of the next lease: all below it belong to this episode.
        """
        if lease < self._episode:
            return False
        self.ceiling = self.value
        self.value = max(self._low, self.value * self._cut_ratio)
        self._slow_start = False
        self._carried = 0.0
        self._episode = next_lease
        self.cuts += 1
        return True

    def on_fault(self) -> None:
        """Pauses growth for a round."""
        self._paused = self.value
