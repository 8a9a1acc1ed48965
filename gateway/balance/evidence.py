"""Evidence about a provider from latencies: a request's time alone, and its slowdown under load.

The unloaded latency of a request depends on its size:

    unloaded latency = base + c_in · prompt tokens + c_out · output tokens

Both are found together: a latency divided by the slowdown at its N (requests in flight) teaches
the unloaded latency, divided by the unloaded latency it teaches the curve (curve.py). Each batch
of samples is used in this order:

1. Fit the unloaded latency to the latencies divided by their expected slowdown.
2. Compare recent latencies with the curve. If they differ by `SURPRISE` standard errors, the
   provider has changed: keep only `FORGET` of the evidence. Latencies better than expected above
   the window are what probes look for, so fewer standard errors are enough for them.
3. Bin the samples. Old ones fade over `NEAR_ROUNDS` rounds near the present N and more slowly far
   from it, where samples are rare.
4. Compute the posterior over the curves.

A sample weighs less the more the number in flight varied during its life.
"""

from __future__ import annotations

import math

import numpy as np
from msgspec import Struct

from gateway.balance.curve import (
    BENT,
    BINS,
    Curve,
    Floats,
    LatencyBins,
    Posterior,
    as_bins,
    as_tuple,
    fade_by_distance,
)
from gateway.balance.saved_state import SavedWindow

NEAR_ROUNDS = 30.0  # memory of latencies within a factor of two of the present N
FAR_ROUNDS = 100.0  # memory of other latencies and of the unloaded latency
MIN_MEMORY = 128.0  # samples
UNSTEADY = 0.12  # relative deviation of N over a request's life at which a sample counts half
SURPRISE = 4.0  # standard errors
GOOD_SURPRISE = 3.0  # the same for better than expected, above the window
HOPE = 2.0  # standard errors above the window from which a probe is repeated at once
FLAT = 0.6  # gain of log throughput by twice the load where latencies are hardly higher
JUMP = math.log(10.0)  # change of log latencies that no load explains
FORGET = 0.1  # share of the evidence kept after a surprise
RECENT = 4.0  # how much faster the residuals fade that a surprise is judged by
NOISE = (0.08, 0.6)  # bounds of the standard deviation of log latencies
FIRST_NOISE = 0.3
MEDIAN_SIZE = np.array([[1.0, 250.0, 250.0]])  # the request by which accounts are compared

PRIOR = np.array([1.0, 0.0005, 0.04])
"""Seconds for an empty request, a prompt token, an output token: first guess of their proportions,
scaled by the first latencies and outweighed by a dozen samples."""
PRIOR_WEIGHT = 1.5  # samples
LEAST_BASE = 0.001  # of a mean latency
CLIP = 2.5  # factor by which a latency may differ from its fit; more is cut to it


class Sample(Struct, frozen=True, gc=False):
    """One answered request."""

    inflight: float  # mean over its life
    deviation: float  # standard deviation of that number over its life
    latency_s: float
    prompt_tokens: float
    output_tokens: float


class UnloadedLatency:
    """Coefficients of the unloaded latency, fitted online by weighted least squares.

    Errors grow with the latency, so relative errors are minimised: weights 1/fitted², one
    iteration per fit. Old samples fade. Coefficients are never negative.
    """

    __slots__ = ("_matrix", "_vector", "count", "theta")

    def __init__(self) -> None:
        self.theta: Floats = PRIOR.copy()
        self._matrix: Floats = np.zeros((3, 3))
        self._vector: Floats = np.zeros(3)
        self.count = 0.0  # samples, faded

    def of(self, sizes: Floats) -> Floats:
        """Seconds for each row of (1, prompt tokens, output tokens)."""
        value: Floats = sizes @ self.theta
        return value

    def learn(self, sizes: Floats, latencies_s: Floats, keep: float) -> float:
        """Fits to latencies that are already divided by the slowdown.

        Returns the change of the log scale, as a mean over these sizes.
        """
        before = self.of(sizes)
        if not self.count:
            self.theta = PRIOR * float(np.exp(np.mean(np.log(latencies_s / before))))
        fitted = self.of(sizes)
        latencies_s = np.clip(latencies_s, fitted / CLIP, fitted * CLIP)
        rows = sizes / fitted[:, None]
        self._matrix = self._matrix * keep + rows.T @ rows
        self._vector = self._vector * keep + rows.T @ (latencies_s / fitted)
        self.count = self.count * keep + len(sizes)
        self._solve(sizes)
        return float(np.mean(np.log(self.of(sizes) / before)))

    def restore(self, theta: tuple[float, float, float]) -> None:
        """Takes back saved coefficients; new samples soon outweigh them."""
        self.theta = np.array(theta)
        self.count = 1e-6

    def _solve(self, sizes: Floats) -> None:
        """Solves with a prior on the proportions; drops coefficients that would be negative."""
        typical = np.diagonal(self._matrix) / self.count
        guess = PRIOR * float(np.exp(np.mean(np.log(self.of(sizes) / (sizes @ PRIOR)))))
        prior = PRIOR_WEIGHT * (typical + 1e-12)
        matrix = self._matrix + np.diag(prior)
        vector = self._vector + prior * guess
        active = [0, 1, 2]
        theta = np.zeros(3)
        while active:
            part = np.linalg.solve(matrix[np.ix_(active, active)], vector[active])
            if part.min() >= 0.0:
                theta[active] = part
                break
            active.pop(int(np.argmin(part)))
        # An empty request takes some time: latencies are divided by the fit.
        theta[0] = max(theta[0], LEAST_BASE * float(np.mean(sizes @ theta)))
        if theta[0] > 0.0:
            self.theta = theta


class Evidence:
    """Evidence of one window. `window` in its methods is the number of requests it allows."""

    __slots__ = ("_bins", "_recent", "_unloaded", "_variance", "curve", "posterior", "slowdown")

    def __init__(self) -> None:
        self._forget_all()

    def _forget_all(self) -> None:
        self._unloaded = UnloadedLatency()
        self._bins = LatencyBins()
        self._variance = FIRST_NOISE**2
        # Weight and sum of recent residuals: up to the window, above it.
        self._recent = ([0.0, 0.0], [0.0, 0.0])
        self.posterior: Posterior | None = None
        self.curve = Curve()
        self.slowdown = 1.0  # recent latency / unloaded latency

    def look(self, batch: list[Sample], window: float) -> bool:
        """Takes in a batch; True if it showed more capacity than the curve expected."""
        ln_n = np.log(np.array([max(s.inflight, 1.0) for s in batch]))
        steady = np.array(
            [1.0 / (1.0 + (s.deviation / (UNSTEADY * s.inflight)) ** 2) for s in batch]
        )
        latency_s = np.array([s.latency_s for s in batch])
        sizes = np.array([(1.0, s.prompt_tokens, s.output_tokens) for s in batch])
        near = math.exp(-len(batch) / max(MIN_MEMORY, NEAR_ROUNDS * window))
        far = math.exp(-len(batch) / max(MIN_MEMORY, FAR_ROUNDS * window))

        posterior = self.posterior
        slope = posterior.log_slowdown if posterior else np.zeros(BINS)
        expected = posterior.slowdown_at(ln_n) if posterior else np.zeros(len(batch))
        scale = posterior.scale if posterior else 0.0
        if posterior and self._is_another(
            ln_n, np.log(latency_s / self._unloaded.of(sizes)) - expected - scale
        ):
            self._forget_all()
            return self.look(batch, window)
        moved = self._unloaded.learn(sizes, latency_s / np.exp(expected + scale), far)
        logs = np.log(latency_s / self._unloaded.of(sizes))
        better = False
        if posterior:
            self._bins.shift(moved)
            expected += scale - moved
            reach = max(3.0 * math.sqrt(self._variance), 1.0)
            residual = np.clip(logs - expected, -reach, reach)
            logs = expected + residual
            better = self._surprised(
                ln_n - math.log(window * 1.04), residual * steady, steady, near
            )
        keep = fade_by_distance(math.exp(float(ln_n.mean())), near, far)
        self._bins.add(ln_n, logs, steady, slope, keep)
        self._conclude(ln_n, logs, steady)
        return better

    def _is_another(self, ln_n: Floats, residual: Floats) -> bool:
        """True if latencies with no more in flight than was seen differ so much from what is
        expected that no load explains it: another provider answers, or other requests are sent."""
        known = residual[ln_n <= math.log(1.1 * self.explored())]
        if 2 * len(known) < len(residual):
            return False
        return abs(float(np.median(known))) > JUMP

    def _surprised(self, above: Floats, residual: Floats, weights: Floats, keep: float) -> bool:
        better = False
        for recent, mine, side in zip(
            self._recent, (above <= 0.0, above > 0.0), (0, 1), strict=True
        ):
            recent[0] = recent[0] * keep**RECENT + float(weights[mine].sum())
            recent[1] = recent[1] * keep**RECENT + float(residual[mine].sum())
            bound = GOOD_SURPRISE if side and recent[1] < 0.0 else SURPRISE
            if self._errors(side) > bound:
                better |= recent[1] < 0.0
                self._bins.fade(FORGET)
                recent[0] = recent[1] = 0.0
        return better

    def _errors(self, side: int) -> float:
        """Distance of recent latencies from the curve, in standard errors."""
        weight, total = self._recent[side]
        return abs(total) / math.sqrt(self._variance * max(weight, 4.0))

    def _conclude(self, ln_n: Floats, logs: Floats, weights: Floats) -> None:
        posterior = self.posterior = self._bins.posterior(self._variance)
        residual = logs - posterior.slowdown_at(ln_n) - posterior.scale
        keep = math.exp(-len(logs) / MIN_MEMORY)
        latest = float(weights @ residual**2 / weights.sum())
        variance = self._variance * keep + (1.0 - keep) * latest
        self._variance = min(max(variance, NOISE[0] ** 2), NOISE[1] ** 2)
        self.curve = posterior.curve(self._bins.explored())
        recent = math.log(self.slowdown) * keep**RECENT
        self.slowdown = math.exp(
            recent + (1.0 - keep**RECENT) * (float(np.mean(logs)) - posterior.scale)
        )

    @property
    def hopeful(self) -> bool:
        """True if requests above the window were probably faster than the curve expects."""
        return self._recent[1][1] < 0.0 and self._errors(1) > HOPE

    @property
    def flat(self) -> float:
        """The highest N with evidence if latencies are hardly higher there than at half of it, and
        no bend is to be seen; else 0.0."""
        explored, posterior = self._bins.explored(), self.posterior
        if posterior is None or not self.has_evidence_below(explored / 2.0):
            return 0.0
        is_flat = posterior.gain(explored, explored / 2.0) > FLAT
        return explored if is_flat and posterior.gain(2.0 * explored, explored) > BENT else 0.0

    def explored(self) -> float:
        """The highest N with evidence of a few samples; 1.0 where there is none."""
        return self._bins.explored()

    def has_evidence_below(self, n: float) -> bool:
        """True if there is evidence of latencies with at most `n` in flight."""
        return self._bins.has_evidence_below(n)

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """Unloaded seconds for an empty request, per prompt token, per output token."""
        scale = math.exp(self.posterior.scale) if self.posterior else 0.0
        base, prompt, output = (float(c) * scale for c in self._unloaded.theta)
        return base, prompt, output

    @property
    def alone_s(self) -> float:
        """Unloaded seconds of a request of medium size; 0.0 while nothing is known."""
        if self.posterior is None:
            return 0.0
        return float(self._unloaded.of(MEDIAN_SIZE)[0]) * math.exp(self.posterior.scale)

    def to_save(self, model: str, window: float) -> SavedWindow:
        """The evidence with the window's name and size, for `restore`."""
        base, prompt, output = (float(c) for c in self._unloaded.theta)
        return SavedWindow(
            model=model,
            window=window,
            noise=math.sqrt(self._variance),
            coefficients=(base, prompt, output),
            weights=as_tuple(self._bins.weights),
            sums=as_tuple(self._bins.sums),
        )

    def restore(self, saved: SavedWindow, keep: float) -> None:
        """Takes back a share `keep` of saved evidence.

        Raises ValueError if it is of another grid, or no numbers.
        """
        bins = as_bins(saved.weights, saved.sums)
        if not saved.noise > 0.0 or not 0.0 < sum(saved.coefficients) < math.inf:
            raise ValueError("learned: not of a window")
        self._bins = bins
        self._bins.fade(keep)
        self._variance = min(max(saved.noise**2, NOISE[0] ** 2), NOISE[1] ** 2)
        self._unloaded.restore(saved.coefficients)
        self.posterior = self._bins.posterior(self._variance)
        self.curve = self.posterior.curve(self._bins.explored())
