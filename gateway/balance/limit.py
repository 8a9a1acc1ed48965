"""How many requests one account may have in flight: AIMD, taught by drops.

Nobody knows an account's true concurrency limit, and it moves. So the limit is probed as TCP
probes a path: up while things go well, down by a factor when the provider says "too much".

1. Slow start: +1 per success until the first drop. From then on +1/limit per success,
   about +1 per round of requests.
2. The limit grows only while it is in use (2 × in flight ≥ limit): an idle account's
   successes say nothing about what it could carry (Netflix concurrency-limits, `AIMDLimit`).
3. A drop cuts once per *episode*. Requests that were already under way when the limit was cut
   ran under the old one, so their drops are old news (as in TCP NewReno). Without this rule a
   burst of five 429s takes 20 to 4; with it, to 15.
4. A fault of the server (5xx, no connection) is no statement about load: it pauses growth for
   a moment and cuts nothing.
"""

from __future__ import annotations

GROWTH_PAUSE_S = 5.0
"""No growth for so long after a fault of the server."""


class Limit:
    """One account's concurrency limit.

    Leases are known by increasing numbers; "older than the last cut" is a comparison of them.
    """

    __slots__ = (
        "_cut_ratio",
        "_episode",
        "_high",
        "_low",
        "_paused_until_s",
        "_slow_start",
        "cuts",
        "value",
    )

    def __init__(self, initial: int, low: int, high: int, cut_ratio: float) -> None:
        self.value = float(initial)
        self.cuts = 0
        self._slow_start = True
        self._episode = 0  # leases with a smaller number began before the last cut
        self._paused_until_s = float("-inf")
        self.configure(low, high, cut_ratio)

    def configure(self, low: int, high: int, cut_ratio: float) -> None:
        """New bounds; what was learned stays, moved inside them. `high` wins over `low`."""
        self._high = float(high)
        self._low = float(min(low, high))
        self._cut_ratio = cut_ratio
        self.value = min(max(self.value, self._low), self._high)

    @property
    def bounds(self) -> tuple[float, float]:
        return self._low, self._high

    def has_room(self, inflight: int) -> bool:
        return inflight + 1 <= self.value

    def on_success(self, inflight: int, now: float) -> None:
        """`inflight` includes the request that just ended."""
        if 2 * inflight < self.value or now < self._paused_until_s:
            return
        step = 1.0 if self._slow_start else 1.0 / self.value
        self.value = min(self._high, self.value + step)

    def on_drop(self, lease: int, next_lease: int) -> bool:
        """Cuts, unless `lease` began before the last cut. `next_lease` is the number the next
        lease will get: everything below it belongs to this episode. True if it cut."""
        if lease < self._episode:
            return False
        self.value = max(self._low, self.value * self._cut_ratio)
        self._slow_start = False
        self._episode = next_lease
        self.cuts += 1
        return True

    def on_fault(self, now: float) -> None:
        self._paused_until_s = now + GROWTH_PAUSE_S
