"""Curves of a provider's slowdown under load, and the probability of each.

A provider serves N requests at once, each 1/g(N) as fast as one alone; throughput is N/g(N).

    g(N)                throughput                       best window
    1 + aN              rises for ever                   wide: 9/a, more under a backlog
    max(1, N/N0)        rises to N0, then flat           N0
    (N/N0)^p, 1+(N/n)²  rises to a peak, then falls      the peak

One family holds all of these, and nearly the universal scalability law:

    g(N) = (1 + (N/n)^s)^(p/s)      n: where it bends, s: how sharply, p: how steeply

A few noisy latencies do not identify one curve, so every curve of a fixed grid gets its posterior
probability, with the scale of latencies integrated out. The window is the N of the best expected
log throughput less `price` × ln N: it stops where a tenth more in flight brings less than 1 %.
Where the data say little, the curves that bend further out dominate, so the window explores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PRICE = 0.1  # of log throughput, per e-fold of the window
SHARP = (1.0, 2.0, 4.0, 32.0)
STEEP = (1.0, 1.5, 2.0)
BENT = 0.35  # gain of log throughput from twice the load above which no bend was seen
_WHOLE = 24  # up to here one bin per number in flight, above it steps of a tenth
_LN_N: Floats = np.log(np.concatenate([np.arange(1.0, _WHOLE), _WHOLE * 1.1 ** np.arange(42)]))
BINS = len(_LN_N)
_N: Floats = np.unique(np.round(np.exp(_LN_N)))
MAX_WINDOW = float(np.exp(_LN_N[-1]))  # 1,194


def _log_slowdown(ln_n: Floats, ln_knee: Floats, sharp: Floats, steep: Floats) -> Floats:
    value: Floats = steep / sharp * np.logaddexp(0.0, sharp * (ln_n - ln_knee))
    return value


def _grid() -> tuple[Floats, Floats, Floats]:
    """Parameters s, p and ln n of every curve: n in fine steps for sharp bends."""
    parts = []
    for sharp in SHARP:
        turns = np.arange(0.3, _LN_N[-1] + 0.7, 0.04 if sharp > 4.0 else 0.12)
        parts.append(np.meshgrid([sharp], STEEP, turns, indexing="ij"))
    sharps, steeps, turns = (np.concatenate([p[i].ravel() for p in parts]) for i in range(3))
    return sharps, steeps, turns


_S, _P, _K = _grid()
_PLAUSIBLE = (_S > 1.0) | (_K >= 1.1)  # no provider slows down by half with two requests
_S, _P, _K = _S[_PLAUSIBLE], _P[_PLAUSIBLE], _K[_PLAUSIBLE]
_LINEAR = (_S == 1.0) & (_P == 1.0)
_G = np.ascontiguousarray(
    _log_slowdown(_LN_N[:, None], _K[None, :], _S[None, :], _P[None, :])
)  # bins × curves
_G2 = _G * _G
# Smooth bends (s = 2, 4) get little weight, so that a few unsteady samples around a sharp knee are
# not taken for one.
_PRIOR: Floats = np.log(
    np.where(_P > 1.0, 0.5, 1.0) * np.where(_S == 1.0, 3.0, np.where(_S < 5.0, 0.15, 1.0))
)
SCALE_SD = 3.0  # prior standard deviation of the log scale: wide, the data decide


class Curve(Struct, frozen=True):
    """The likeliest member of the family; all 0 while the regime is unknown."""

    regime: str = "unknown"
    knee: float = 0.0  # requests in flight at the knee or peak; 0: no knee
    turn: float = 0.0  # n
    sharp: float = 0.0  # s
    steep: float = 0.0  # p

    @property
    def parameters(self) -> dict[str, float]:
        """n, s and p by name; empty while the regime is unknown."""
        if self.regime == "unknown":
            return {}
        return {"turn": self.turn, "sharp": self.sharp, "steep": self.steep}


class Posterior(Struct, frozen=True):
    """Probabilities of the curves, given the bins; arrays are per bin, in order of N."""

    log_slowdown: Floats  # expected, relative to a request alone
    log_throughput: Floats  # expected, up to a constant
    scale: float  # expected log of (unloaded latency / its fit by size)
    likeliest: int  # index of the likeliest curve
    peaked: float  # probability that throughput falls behind a peak
    linear: float  # probability that latency grows along a straight line

    def best(self, low: float, high: float, price: float = PRICE) -> float:
        """The N in [low, high] with the greatest worth."""
        ns = _candidates(low, high)
        return float(ns[int(np.argmax(self.worth(ns, price)))])

    def worth(self, ns: Floats, price: float = PRICE) -> Floats:
        """Expected log throughput at each of `ns`, less `price` per e-fold."""
        ln_n = np.log(ns)
        value: Floats = np.interp(ln_n, _LN_N, self.log_throughput) - price * ln_n
        return value

    def gain(self, n: float, than: float) -> float:
        """Expected log of (throughput at `n` / throughput at `than`)."""
        at, base = np.interp(np.log([n, than]), _LN_N, self.log_throughput)
        return float(at - base)

    def slowdown_at(self, ln_n: Floats) -> Floats:
        """Expected log slowdown at these ln N."""
        value: Floats = np.interp(ln_n, _LN_N, self.log_slowdown)
        return value

    def curve(self, explored: float) -> Curve:
        """The likeliest curve; unknown while no bend was seen up to `explored`, the highest N
        with evidence."""
        if self.gain(2.0 * explored, explored) > BENT:
            return Curve()
        i = self.likeliest
        turn, sharp, steep = float(np.exp(_K[i])), float(_S[i]), float(_P[i])
        x = self.log_throughput
        if self.peaked >= 0.5:
            return Curve("peaked", float(np.exp(_LN_N[int(np.argmax(x))])), turn, sharp, steep)
        if self.linear > 1.0 - self.peaked - self.linear:
            return Curve("linear", 0.0, turn, sharp, steep)
        knee = _LN_N[int(np.argmax(x >= x.max() - 0.05))]
        return Curve("saturating", float(np.exp(knee)), turn, sharp, steep)


def _candidates(low: float, high: float) -> Floats:
    ns = _N[(low <= _N) & (high >= _N)]
    return ns if len(ns) else np.array([low])


class LatencyBins:
    """Log latencies binned by ln N: weight and weighted sum per bin; old samples fade."""

    __slots__ = ("sums", "weights")

    def __init__(self) -> None:
        self.weights: Floats = np.zeros(BINS)
        self.sums: Floats = np.zeros(BINS)

    def add(
        self, ln_n: Floats, values: Floats, weights: Floats, slope: Floats, keep: Floats
    ) -> None:
        """Fades the bins to `keep` and adds samples, each shared by its two nearest bins.

        `slope` is the log slowdown per bin, by which a value moves from its own N to a bin's.
        """
        right = np.clip(np.searchsorted(_LN_N, ln_n), 1, BINS - 1)
        left = right - 1
        share = np.clip((ln_n - _LN_N[left]) / (_LN_N[right] - _LN_N[left]), 0.0, 1.0)
        here = np.interp(ln_n, _LN_N, slope)
        self.fade(keep)
        for index, part in ((left, (1.0 - share) * weights), (right, share * weights)):
            np.add.at(self.weights, index, part)
            np.add.at(self.sums, index, part * (values + slope[index] - here))

    def fade(self, keep: float | Floats) -> None:
        """Keeps a share of the evidence, one for all bins or one per bin."""
        self.weights *= keep
        self.sums *= keep

    def shift(self, by: float) -> None:
        """Follows a change by `by` of the log scale that latencies are divided by."""
        self.sums -= by * self.weights

    def explored(self) -> float:
        """The highest N with evidence of a few samples; 1.0 where there is none."""
        tail = np.cumsum(self.weights[::-1])[::-1]
        filled = np.flatnonzero(tail >= 3.0)
        return float(np.exp(_LN_N[filled[-1]])) if len(filled) else 1.0

    def has_evidence_below(self, n: float) -> bool:
        """True if there is evidence of latencies with at most `n` in flight."""
        return float(self.weights[math.log(n) >= _LN_N].sum()) >= 3.0

    def posterior(self, variance: float) -> Posterior:
        """The probability of each curve. `variance`: of one log latency around its curve."""
        filled = np.flatnonzero(self.weights > 1e-6)
        part = slice(filled[0], filled[-1] + 1) if len(filled) else slice(0, 0)
        w, wy = self.weights[part], self.sums[part]
        total = float(w.sum())
        resid_sum = wy.sum() - w @ _G[part]  # of y - g, per curve
        squares = float(wy @ (wy / np.maximum(w, 1e-9))) - 2.0 * (wy @ _G[part]) + w @ _G2[part]
        # y = scale + g + noise, scale ~ N(0, SCALE_SD²) integrated out
        shrink = total + variance / SCALE_SD**2
        scale = resid_sum / shrink
        log = _PRIOR - (squares - scale * resid_sum) / (2.0 * variance)
        p = np.exp(log - log.max())
        p /= p.sum()
        slowdown = _G @ p
        return Posterior(
            log_slowdown=slowdown,
            log_throughput=_LN_N - slowdown,
            scale=float(p @ scale),
            likeliest=int(np.argmax(log)),
            peaked=float(p[_P > 1.0].sum()),
            linear=float(p[_LINEAR].sum()),
        )


def fade_by_distance(n: float, near: float, far: float) -> Floats:
    """The share to keep per bin: `near` within a factor of two of `n`, `far` elsewhere."""
    keep: Floats = np.where(np.abs(_LN_N - math.log(max(n, 1.0))) <= math.log(2.0), near, far)
    return keep


def as_tuple(values: Floats) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def as_bins(weights: Sequence[float], sums: Sequence[float]) -> LatencyBins:
    """Bins from saved values. Raises ValueError for another grid or for no numbers."""
    bins = LatencyBins()
    bins.weights, bins.sums = np.array(weights, np.float64), np.array(sums, np.float64)
    if bins.weights.shape != (BINS,) or bins.sums.shape != (BINS,):
        raise ValueError("bins: another grid")
    if not (np.isfinite(bins.sums).all() and (bins.weights >= 0.0).all()):
        raise ValueError("bins: no numbers")
    return bins
