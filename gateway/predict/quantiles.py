"""Grids of quantiles: made, mended, mixed and cut.

A grid is seven values of log1p(output tokens) at `QUANTILE_LEVELS`. All arithmetic is in
logarithms, because lengths are logarithmic: half and double are equally wrong.

The boosters know what kind of request this is; neighbours know how long answers to nearly the
same prompt were. Both are mixed quantile by quantile, with weight n_eff / (n_eff + k0) on the
neighbours. n_eff counts a repeat of the prompt as 1 and a row at the similarity threshold as 0,
quadratic in between; a row of another model counts half. Pinball loss prefers k0 = 3 or more by a
little; 2 believes repeats sooner.

Neighbours fade: the newest of those found counts in full, the forty-eighth newest half, and a row
a month older than the newest row of the window half again. So a changed template is followed
within some fifty answers, and the rows of a quiet tenant stay good. Censored neighbours enter
last and can only raise: each stands for the mixture's own distribution beyond its length.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import exp, expm1, log1p
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.predict.index import Neighbours
from gateway.types import QUANTILE_LEVELS, SHORT_TOKENS

Grid = tuple[float, ...]
Floats = npt.NDArray[np.float64]

K0 = 2.0
REPEAT = 0.99  # least n_eff of one repeat, whose vector is stored in half precision
SCATTER = 0.45  # of log length between answers to the same prompt
OTHER_MODEL = 0.5  # weight of a row of another model
RECENCY_ROWS = 48.0  # newer rows found that halve a neighbour's weight
AGE_S = 30 * 86_400.0  # age that halves a neighbour's weight
NEAREST = 20  # rows the neighbour features look at
MAX_LOG = log1p(1_000_000)
Z = (-1.6449, -1.2816, -0.6745, 0.0, 0.6745, 1.2816, 1.6449)  # normal, at QUANTILE_LEVELS
_HALF_NORMAL = (0.063, 0.126, 0.319, 0.674, 1.150, 1.645, 1.960)  # quantiles of |N(0, 1)|
_STEPS = tuple(np.diff((0.0, *QUANTILE_LEVELS, 1.0)))

NEIGHBOUR_NAMES = (
    *("nn_max", "nn_top5", "nn_effective", "nn_mean", "nn_p10", "nn_p50", "nn_p90"),
    *("nn_first", "nn_same_model", "nn_same_count"),
)
"""The names of `neighbour_features`, in their order."""


def rearranged(grid: Sequence[float]) -> Grid:
    """A grid of values in rising order and within [0, log 10⁶].

    Quantile models may cross each other; sorting never worsens them (Chernozhukov,
    Fernández-Val, Galichon, 2010).
    """
    values = sorted(grid)
    if values[0] < 0.0 or values[-1] > MAX_LOG:
        values = [min(max(value, 0.0), MAX_LOG) for value in values]
    return tuple(values)


def truncated(grid: Grid, max_tokens: int | None) -> Grid:
    """The grid of an answer that stops at `max_tokens`; None: no limit."""
    if max_tokens is None or grid[-1] <= (top := log1p(max_tokens)):
        return grid
    return tuple(min(value, top) for value in grid)


def relevelled(grid: Grid, median_z: float, high_z: float) -> Grid:
    """The grid whose p50 and p90 are this grid's values at two normal scores.

    The other levels move along, between and beyond them; the lower tail with the median. Values
    between scores are linear.
    """
    low, high = median_z, high_z - Z[5]
    if abs(low) < 1e-3 and abs(high) < 1e-3:
        return grid
    middle = low + (high - low) * (Z[4] / Z[5])
    values = []
    for z, by in zip(Z, (low, low, low, low, middle, high, high), strict=True):
        score = z + by
        i = bisect_right(Z, score, 1, len(Z) - 1) - 1  # beyond the ends the last slope goes on
        values.append(grid[i] + (grid[i + 1] - grid[i]) * (score - Z[i]) / (Z[i + 1] - Z[i]))
    return rearranged(values)


def shifted(grid: Sequence[float], by: float) -> Grid:
    """The grid with `by` added to each value."""
    return rearranged([value + by for value in grid])


def to_tokens(grid: Grid) -> Grid:
    """The grid in tokens."""
    return tuple(map(expm1, grid))


def probability_at_most(grid: Grid, value: float) -> float:
    """P(X ≤ value): linear between the grid's levels, with the last slope beyond them."""
    last = len(grid) - 1
    if value >= grid[last]:
        if grid[last] == grid[last - 1]:
            return 1.0
        slope = (QUANTILE_LEVELS[-1] - QUANTILE_LEVELS[-2]) / (grid[last] - grid[last - 1])
        return min(QUANTILE_LEVELS[-1] + (value - grid[last]) * slope, 1.0)
    if value < grid[0]:
        if grid[1] == grid[0]:
            return 0.0
        slope = (QUANTILE_LEVELS[1] - QUANTILE_LEVELS[0]) / (grid[1] - grid[0])
        return max(QUANTILE_LEVELS[0] - (grid[0] - value) * slope, 0.0)
    i = bisect_right(grid, value) - 1
    if i >= last or grid[i + 1] == grid[i]:
        return QUANTILE_LEVELS[min(i, last)]
    share = (value - grid[i]) / (grid[i + 1] - grid[i])
    return QUANTILE_LEVELS[i] + share * (QUANTILE_LEVELS[i + 1] - QUANTILE_LEVELS[i])


def value_at(grid: Grid, level: float) -> float:
    """The quantile at any level: linear between the grid's levels, flat outside."""
    return float(np.interp(level, QUANTILE_LEVELS, grid))


def p_short(grid: Grid) -> float:
    """P(output ≤ 64 tokens)."""
    return probability_at_most(grid, log1p(SHORT_TOKENS))


def risk(grid: Grid) -> float:
    """The chance that the answer exceeds twice its median, and so a reserve of the median."""
    return 1.0 - probability_at_most(grid, log1p(2 * expm1(grid[3])))


def confidence(grid: Grid) -> float:
    """exp(−σ), with σ the scatter of log length from p10 to p90: 1 is certain, 0.5 within a
    factor 2. Neighbours raise it by narrowing the grid."""
    sigma = (grid[5] - grid[1]) / (Z[5] - Z[1])
    return exp(-sigma)


# --- neighbours -------------------------------------------------------------------------


def neighbour_weights(near: Neighbours, threshold: float) -> Floats:
    """The weight of each neighbour in `n_eff`: 1 for a repeat, 0 at the threshold or below."""
    span = max(1.0 - threshold, 1e-3)
    closeness = np.clip((near.similarity.astype(np.float64) - threshold) / span, 0.0, 1.0)
    weights: Floats = np.square(closeness)
    weights[~near.same_model] *= OTHER_MODEL
    return weights


def faded(near: Neighbours, weights: Floats) -> Floats:
    """The weights, halved by newer rows and by age."""
    halvings = near.recency / RECENCY_ROWS + np.maximum(near.age_s, 0.0) / AGE_S
    left: Floats = weights * np.exp2(-halvings)
    return left


def mixture(prior: Grid, near: Neighbours, weights: Floats) -> Grid:
    """The boosters' grid mixed with the neighbours' lengths."""
    exact = ~near.censored
    counted = float(weights[exact].sum())
    grid = prior
    if counted > 0.0:
        grid = blended(prior, neighbour_grid(near.length[exact], weights[exact]), counted)
    if counted < float(weights.sum()):
        cut = near.censored & (weights > 0.0)
        grid = raised(grid, near.length[cut], weights[cut], counted)
    return grid


def neighbour_grid(lengths: npt.NDArray[Any], weights: Floats) -> Grid:
    """Weighted quantiles of exact lengths, each smeared by the usual scatter."""
    points = (lengths.astype(np.float64)[:, None] + SCATTER * np.array(Z)).ravel()
    mass = (weights[:, None] * _level_mass()).ravel()
    order = np.argsort(points)
    reached = np.cumsum(mass[order]) - mass[order] / 2
    return rearranged(np.interp(QUANTILE_LEVELS, reached / mass.sum(), points[order]).tolist())


def raised(grid: Grid, lengths: npt.NDArray[Any], weights: Floats, counted: float) -> Grid:
    """The grid raised by lower bounds; nowhere lower than before (Kaplan, Meier, 1958).

    A bound at length c stands for the grid's own distribution beyond c; far beyond the grid,
    for the usual scatter above c.

    Args:
        lengths: the bounds.
        weights: of the bounds.
        counted: weight of the exact neighbours that the grid holds already.
    """
    total, sums = counted + K0, [value * (counted + K0) for value in grid]
    for c, weight in zip(lengths.tolist(), weights.tolist(), strict=True):
        passed = probability_at_most(grid, c)
        for i, level in enumerate(QUANTILE_LEVELS):
            beyond = value_at(grid, passed + (1.0 - passed) * level)
            least = c + SCATTER * _HALF_NORMAL[i] if passed > 0.0 else 0.0
            sums[i] += weight * max(beyond, least, grid[i])
        total += weight
    return rearranged([value / total for value in sums])


def _level_mass() -> Floats:
    """The probability mass around each of `Z`."""
    steps = np.array(_STEPS)
    mass: Floats = (steps[:-1] + steps[1:]) / 2
    mass[0] += steps[0] / 2
    mass[-1] += steps[-1] / 2
    return mass


def blended(model: Grid, near: Grid, effective: float) -> Grid:
    """Quantile-wise mean with weight n_eff / (n_eff + k0) on the neighbours."""
    w = effective / (effective + K0)
    return rearranged([(1 - w) * a + w * b for a, b in zip(model, near, strict=True)])


def neighbour_features(near: Neighbours) -> list[float]:
    """The boosters' features of the nearest rows, in the order of `NEIGHBOUR_NAMES`; NaN without
    rows.

    Weights fall by e for each 0.05 of similarity below the nearest. A censored row counts
    only where it is longer than the median of the exact ones.
    """
    chosen = np.arange(min(len(near), NEAREST))
    if near.censored[chosen].any():
        exact = chosen[~near.censored[chosen]]
        middle = float(np.median(near.length[exact])) if len(exact) else np.inf
        chosen = chosen[~near.censored[chosen] | (near.length[chosen] > middle)]
    if len(chosen) == 0:
        return [float("nan")] * len(NEIGHBOUR_NAMES)
    similarity = near.similarity[chosen].astype(np.float64)
    length = near.length[chosen].astype(np.float64)
    same = near.same_model[chosen]
    weights = np.exp((similarity - similarity[0]) / 0.05)
    total = float(weights.sum())
    order = np.argsort(length)
    reached = (np.cumsum(weights[order]) - weights[order] / 2) / total
    low, middle, high = np.interp((0.1, 0.5, 0.9), reached, length[order])
    of_same = float((weights * same).sum())
    return [
        float(similarity[0]),
        float(similarity[:5].mean()),
        total**2 / float((weights**2).sum()),
        float((weights * length).sum()) / total,
        float(low),
        float(middle),
        float(high),
        float(length[0]),
        float((weights * same * length).sum()) / of_same if of_same > 0 else float("nan"),
        float(same.sum()),
    ]
