"""How many requests one account may have in flight: AIMD, taught by drops.

Nobody knows an account's true concurrency limit, and it moves. So the limit is probed as TCP
probes a path: up while things go well, down by a factor when the provider says "too much". It
is a ceiling only: what is worth sending below it, the windows find (window.py).

1. Slow start: +`QUICKLY` per success until the first drop, as fast as a window's. From then on
   +1/limit per success, about +1 per round of requests.
2. The limit grows only while it is in use (2 × in flight ≥ limit): an idle account's
   successes say nothing about what it could carry (Netflix concurrency-limits, `AIMDLimit`).
3. A drop cuts once per *episode*. Requests that were already under way when the limit was cut
   ran under the old one, so their drops are old news (as in TCP NewReno). Without this rule a
   burst of five 429s takes 20 to 4; with it, to 15.
4. The limit before a cut is remembered. From there on growth is gentle and stops a tenth
   above; when that has been carried for a round, it is the new mark. So an account that drops
   at 40 is asked for 41 now and then, not for 60 every minute.
5. A fault of the server (5xx, no connection) is no statement about load: it pauses growth for
   a round and cuts nothing.

Rounds and successes, never seconds: a provider ten times as slow looks the same.
"""

from __future__ import annotations

QUICKLY = 2.0
"""Growth per success in slow start: three times the limit in a round."""
PROBE_RATIO = 1.1
"""How far above the remembered ceiling the limit goes before that is the ceiling."""
GENTLY = 0.25
"""Growth per success above the remembered ceiling, of the usual one."""


class Limit:
    """One account's concurrency limit.

    Leases are known by increasing numbers; "older than the last cut" is a comparison of them.
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
        self.ceiling = float("inf")  # the limit before the last cut
        self.cuts = 0
        self._slow_start = True
        self._episode = 0  # leases with a smaller number began before the last cut
        self._paused = 0.0  # successes until growth goes on
        self._carried = 0.0  # successes at the upper end of the probe
        self.configure(low, high, cut_ratio)

    def configure(self, low: int, high: int, cut_ratio: float) -> None:
        """New bounds; what was learned stays, moved inside them. `high` wins over `low`."""
        self._high = float(high)
        self._low = float(min(low, high))
        self._cut_ratio = cut_ratio
        self.value = min(max(self.value, self._low), self._high)

    def restore(self, value: float, ceiling: float) -> None:
        """What was learned before: no slow start where a ceiling is known."""
        self.value = min(max(value, self._low), self._high)
        self.ceiling = ceiling
        self._slow_start = ceiling == float("inf")

    @property
    def bounds(self) -> tuple[float, float]:
        return self._low, self._high

    def has_room(self, inflight: int) -> bool:
        return inflight + 1 <= self.value

    def on_success(self, inflight: int) -> None:
        """`inflight` includes the request that just ended."""
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
        """Cuts, unless `lease` began before the last cut. `next_lease` is the number the next
        lease will get: everything below it belongs to this episode. True if it cut."""
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
        self._paused = self.value
