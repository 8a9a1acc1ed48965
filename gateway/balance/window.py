"""How many requests of one model an account is given at once: the knee, found online.

A provider that is given more than it serves well makes everybody wait inside it, where nobody
can be overtaken, or even serves less. The window is where its throughput stops rising (curve.py
says for each shape of congestion where that is). How it is found:

1. Every answered request tells its latency, its size and the mean number in flight over its
   life. Latency / unloaded latency of that size is its slowdown; slowdowns over ln N are binned.
2. Every round of completions the posterior over curves names the best N. The window moves there:
   down at once, up by doubling until the first sign of congestion (slow start), then by `CLIMB`,
   and only while the window is used and requests that *began* under it have ended.
3. At the best N nothing would be learned of what lies above, so every `PROBE_EVERY` rounds one
   round runs wider, by at most what the curve says costs `PROBE_COST`; wider again while it
   goes better than the curve said. That is how capacity that came back is found.
4. Evidence fades over some rounds, near the present N faster than far from it: what few
   requests take is news only when the provider changes. Where recent latencies contradict the
   curve, nearly everything is forgotten at once: the capacity changed.
5. The covariance guard, for what is outside the family of curves: where more in flight went
   along with less work done over the last blocks, the window shrinks.

Every constant counts completions or rounds (one round: as many completions as fit in the
window, about one service time), never seconds: a provider ten times as slow looks the same.
"""

from __future__ import annotations

import math

import numpy as np
from msgspec import Struct

from gateway.balance.curve import (
    BINS,
    MAX_WINDOW,
    Bins,
    Curve,
    Floats,
    Posterior,
    fade_by_distance,
)
from gateway.balance.unloaded import Unloaded

BATCH = (8, 64)  # completions between two looks: half a window, within these
NEAR_ROUNDS = 30.0  # memory of latencies near the present window
FAR_ROUNDS = 100.0  # and elsewhere, and of the unloaded latency
UNSTEADY = 0.12  # relative deviation of N over a life at which a sample counts half
MIN_MEMORY = 128.0  # completions
CLIMB = 1.25  # a round, after the first sign of congestion
WORTH = 0.008  # expected log throughput for which the window moves by little
FREE_EVERY = 4.0  # rounds between probes that cost at most FREE
FREE = 0.03  # of log throughput, while it lasts
PROBE_EVERY = 14.0  # rounds between probes that cost more, at most PROBE_COST
PROBE_COST = 0.12
MIN_PROBE = 1.12
PROBE = 1.4
ANCHOR = 0.33
SURPRISE = 4.0  # standard errors between recent latencies and the curve
FORGET = 0.1  # what is kept after one
NOISE = (0.08, 0.6)  # bounds of the log latencies' standard deviation


class Mark(Struct, frozen=True, gc=False):
    """The beginning of a request: the time, and the integrals of the number in flight."""

    since_s: float
    area: float
    squares: float


class Sample(Struct, frozen=True, gc=False):
    inflight: float  # mean over its life
    steady: float  # 1.0: that number did not change meanwhile
    latency_s: float
    prompt_tokens: float
    output_tokens: float


class Learned(Struct, frozen=True):
    """A window as it is stored; `restore` takes it back."""

    model: str
    window: float
    slow_start: bool
    noise: float
    coefficients: tuple[float, float, float]
    weights: tuple[float, ...]
    sums: tuple[float, ...]


class Window:
    """One (account, model). Times are seconds on the caller's clock."""

    __slots__ = (
        "_area",
        "_squares",
        "_batch",
        "_bins",
        "_changed",
        "_curve",
        "_fresh",
        "_full",
        "_high",
        "_low",
        "_moved_s",
        "_posterior",
        "_probing",
        "_recent",
        "_rest",
        "_since_probe",
        "_slow_start",
        "_unloaded",
        "_upward",
        "_variance",
        "base",
        "inflight",
        "model",
        "slowdown",
        "value",
    )

    def __init__(self, model: str, initial: float, low: float, high: float) -> None:
        self.model = model
        self.inflight = 0
        self.slowdown = 1.0
        self._area = 0.0  # integral of the number in flight
        self._squares = 0.0  # and of its square
        self._moved_s = 0.0
        self._batch: list[Sample] = []
        self._full = 0  # completions of the batch that found the window in use
        self._fresh = 0  # completions of requests that began under the present window
        self._changed = 0  # the first lease under the present window
        self._since_probe = 0.0  # rounds
        self._probing = False
        self._upward = False  # the last probe's direction
        self._slow_start = True
        self._forget_fits()
        self.base = float(initial)  # without a probe
        self.value = float(initial)
        self.configure(low, high)

    def _forget_fits(self) -> None:
        self._unloaded = Unloaded()
        self._bins = Bins()
        self._variance = 0.3**2
        self._posterior: Posterior | None = None
        self._curve = Curve()
        self._recent = [[0.0, 0.0], [0.0, 0.0]]  # surprise: at the window, above it

    def configure(self, low: float, high: float) -> None:
        """New bounds; what was learned stays, moved inside them. `high` wins over `low`."""
        self._high = min(float(high), MAX_WINDOW)
        self._low = min(float(low), self._high)
        self._move(self.base, 0)

    @property
    def bounds(self) -> tuple[float, float]:
        return self._low, self._high

    def take(self, now: float) -> Mark:
        """One more in flight; the mark that its `give_back` wants."""
        self._pass(now)
        self.inflight += 1
        return Mark(now, self._area, self._squares)

    def give_back(self) -> None:
        """One less in flight."""
        self.inflight -= 1

    def _pass(self, now: float) -> None:
        load = self.inflight * (now - self._moved_s)
        self._area += load
        self._squares += load * self.inflight
        self._moved_s = now

    def learn(
        self,
        mark: Mark,
        lease: int,
        next_lease: int,
        prompt_tokens: float,
        output_tokens: float,
        now: float,
    ) -> None:
        """The request that `mark` began was answered; call it before `give_back`."""
        self._pass(now)
        latency_s = now - mark.since_s
        if latency_s <= 0.0:
            return
        mean = (self._area - mark.area) / latency_s
        spread = (self._squares - mark.squares) / latency_s - mean * mean
        steady = 1.0 / (1.0 + max(spread, 0.0) / (UNSTEADY * mean) ** 2)
        fresh = lease >= self._changed
        self._batch.append(Sample(mean, steady, latency_s, prompt_tokens, output_tokens))
        used = self.inflight >= self.value
        self._full += used
        self._fresh += fresh
        if len(self._batch) >= min(max(BATCH[0], self.value / 2.0), BATCH[1]):
            self._look()
            self._steer(used, next_lease)
            self._batch.clear()
            self._full = 0

    # ---- what the batch says

    def _look(self) -> None:
        batch = self._batch
        ln_n = np.log(np.array([max(s.inflight, 1.0) for s in batch]))
        steady = np.array([s.steady for s in batch])
        latency_s = np.array([s.latency_s for s in batch])
        sizes = np.array([(1.0, s.prompt_tokens, s.output_tokens) for s in batch])
        rounds = len(batch) / max(self.base, 1.0)
        far = math.exp(-len(batch) / max(MIN_MEMORY, FAR_ROUNDS * self.base))
        near = math.exp(-len(batch) / max(MIN_MEMORY, NEAR_ROUNDS * self.base))
        known = self._posterior
        expected = known.slowdown_at(ln_n) if known else np.zeros(len(batch))
        scale = known.scale if known else 0.0
        moved = self._unloaded.learn(sizes, latency_s / np.exp(expected + scale), far)
        if known:
            self._bins.shift(moved)
            scale -= moved
        logs = np.log(latency_s / self._unloaded.of(sizes))
        if known:
            spread = max(3.0 * math.sqrt(self._variance), 1.0)
            residual = np.clip(logs - expected - scale, -spread, spread)
            logs = expected + scale + residual
            self._doubt(ln_n, residual, steady, near)
        slope = known.log_slowdown if known else np.zeros(BINS)
        self._bins.add(ln_n, logs, steady, slope, fade_by_distance(math.exp(float(ln_n.mean())), near, far))
        known = self._posterior = self._bins.posterior(self._variance)
        residual = logs - known.slowdown_at(ln_n) - known.scale
        keep = math.exp(-len(batch) / MIN_MEMORY)
        variance = self._variance * keep + (1.0 - keep) * float(steady @ residual**2 / steady.sum())
        self._variance = min(max(variance, NOISE[0] ** 2), NOISE[1] ** 2)
        self._curve = known.curve(self._bins.explored())
        self.slowdown = math.exp(float(np.mean(logs)) - known.scale)
        self._since_probe += rounds

    def _doubt(self, ln_n: Floats, residual: Floats, steady: Floats, keep: float) -> None:
        """Forgets where recent latencies contradict the curve, above the window or at it."""
        above = ln_n > math.log(self.base * 1.04)
        for recent, mine in zip(self._recent, (~above, above), strict=True):
            recent[0] = recent[0] * keep**4 + float(steady[mine].sum())
            recent[1] = recent[1] * keep**4 + float((residual * steady)[mine].sum())
            bound = SURPRISE if recent[1] > 0.0 or recent is self._recent[0] else 3.0
            if recent[1] ** 2 > bound**2 * self._variance * max(recent[0], 4.0):
                self._bins.fade(FORGET)
                self._slow_start |= recent[1] < 0.0
                recent[0] = recent[1] = 0.0

    # ---- what follows

    def _steer(self, used: bool, next_lease: int) -> None:
        known = self._posterior
        assert known is not None
        full = used and 2 * self._full >= len(self._batch)
        settled = self._fresh >= max(BATCH[0], self.value / 2.0)
        reach = max(2.0 * self._bins.explored(), self.base)
        best = min(known.best(self._low, min(self._high, reach)), self._high)
        if best < 1.6 * self.base:
            self._slow_start = False
        if self._probing:
            if not settled and full:
                return
            self._probing = False
        anchor = math.ceil(self.base * ANCHOR)
        if self.base >= 6 and full and settled and anchor >= self._low and not self._bins.known_below(1.5 * anchor):
            self._try(anchor, next_lease)
            return
        gain = known.worth(np.array([best, self.base]))
        worth = gain[0] - gain[1] > WORTH
        if best < self.base and worth:
            self._move(max(best, self.base * 0.6), next_lease)
        elif best > self.base and worth and full and settled:
            self._move(min(best, self.base * (2.0 if self._slow_start else CLIMB)), next_lease)
        elif self.value != self.base:
            self._move(self.base, next_lease)
        if full and settled and not self._slow_start:
            self._probe(known, next_lease)

    def _probe(self, known: Posterior, next_lease: int) -> None:
        """One round wider or, every other time, narrower, for a window far above a knee thinks
        it sees a straight line. Often where the curve says it is free, now and then where it
        says that it costs."""
        weight, total = self._recent[1]
        eager = total < 0.0 and total**2 > 4.0 * self._variance * max(weight, 4.0)
        upward = eager or not self._upward
        width = _affordable(known, self.base, PROBE if upward else 0.25, FREE)
        if not width and self._since_probe >= PROBE_EVERY:
            upward = True
            width = _affordable(known, self.base, PROBE, PROBE_COST) or MIN_PROBE
        if not width or (self._since_probe < FREE_EVERY and not eager):
            return
        self._upward = upward
        to = self.base * width
        self._try(max(math.floor(to), self.base + 1.0) if upward else math.ceil(to), next_lease)

    def _try(self, to: float, next_lease: int) -> None:
        if self._low <= to <= self._high and to != self.base:
            self.value = float(to)
            self._probing = True
            self._since_probe = 0.0
            self._fresh, self._changed = 0, next_lease

    def _move(self, to: float, next_lease: int) -> None:
        self.base = self.value = min(max(math.floor(to + 0.5), self._low), self._high)
        self._fresh, self._changed = 0, next_lease


def _affordable(known: Posterior, base: float, width: float, cost: float) -> float:
    """The factor nearest to `width` at which the curve expects to lose at most `cost` of log
    throughput; 0.0 where it is hardly a step."""
    while known.gain(base * width, base) < -cost:
        width **= 0.8
        if abs(math.log(width)) < math.log(MIN_PROBE):
            return 0.0
    return width
