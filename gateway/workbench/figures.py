"""Figures that judge forecasts and runs. Pure functions over arrays.

Of forecasts, a value per row: lengths are output tokens. A censored row (its answer was cut at its
limit) is a lower bound. It has no part in figures that need the true length, and counts where the
bound alone decides, as with "is it short" once it is longer than short.

Kendall's τ-b (Kendall 1945; in O(n log n) after Knight 1966, JASA 61:436) is
(P − Q) / √((n₀ − n₁)(n₀ − n₂)): concordant minus discordant pairs, over the pairs not tied
in the one and in the other. It is written here because the library that has it is no dependency.

Of runs, a value per seed: two policies are compared seed by seed over the same arrivals, lengths
and noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gateway.types import MEDIUM_TOKENS, QUANTILE_LEVELS, SHORT_TOKENS

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

TOP_SHARE = 0.35
DRAWS = 2000  # of the bootstrap
NAN = float("nan")
MEDIAN, P90 = QUANTILE_LEVELS.index(0.5), QUANTILE_LEVELS.index(0.9)
_LEVELS = np.array(QUANTILE_LEVELS)


def kendall_tau(forecast: Floats, truth: Floats) -> float | None:
    """Kendall's τ-b of two rows of values.

    0.0 where the forecast is one constant (it orders nothing); None where the truth is one, or
    where there are fewer than two rows: there is no order to find.
    """
    count = len(truth)
    pairs = count * (count - 1) // 2
    _, x = np.unique(forecast, return_inverse=True)
    _, y = np.unique(truth, return_inverse=True)
    in_x, in_y = _tied(x), _tied(y)
    if in_y == pairs:
        return None
    if in_x == pairs:
        return 0.0
    in_both = _tied(x * (count + 1) + y)
    order = np.lexsort((y, x))  # by x, ties by y: so ties in x are no inversions
    swapped = _inversions(y[order])
    difference = pairs - in_x - in_y + in_both - 2 * swapped
    return float(difference / np.sqrt(float(pairs - in_x) * float(pairs - in_y)))


def _tied(values: Ints) -> int:
    """Number of pairs of equal values."""
    _, counts = np.unique(values, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())


def _inversions(values: Ints) -> int:
    """Number of pairs i < j with values[i] > values[j].

    By merge sort, each level in a few array steps.

    At each level the blocks of `width` are sorted; for each value of a left block the
    smaller ones of its right block are counted. Adding block × n keeps blocks apart.
    """
    count, total, width = len(values), 0, 1
    place = np.arange(count)
    while width < count:
        keys = values + place // (2 * width) * (count + 1)
        is_right = (place // width) % 2 == 1
        left, right = keys[~is_right], keys[is_right]
        # Right-hand values before a place are a full block for each pair of blocks before it.
        before = place[~is_right] // (2 * width) * width
        total += int((np.searchsorted(right, left, side="left") - before).sum())
        values = values[np.argsort(keys, kind="stable")]
        width *= 2
    return total


def auc(score: Floats, positive: Flags) -> float | None:
    """Chance that a positive row scores above another (ties count half); None without both."""
    yes = int(positive.sum())
    no = len(positive) - yes
    if not yes or not no:
        return None
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]  # mean rank of equal scores
    return float((ranks[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


def recall_in_top(score: Floats, positive: Flags, share: float = TOP_SHARE) -> float | None:
    """Share of the positive rows among the `share` best scored; equal scores count in part."""
    if not positive.any():
        return None
    room = share * len(score)
    bound = float(np.sort(score)[::-1][max(0, min(len(score), int(np.ceil(room))) - 1)])
    above, at = score > bound, score == bound
    part = (room - above.sum()) / at.sum()
    return float((positive & above).sum() + min(part, 1.0) * (positive & at).sum()) / float(
        positive.sum()
    )


def pinball(grid: Floats, truth: Floats) -> float | None:
    """Mean pinball loss over `QUANTILE_LEVELS`, on log1p of lengths."""
    if not len(truth):
        return None
    error = np.log1p(truth)[:, None] - np.log1p(grid)
    return float(np.maximum(_LEVELS * error, (_LEVELS - 1) * error).mean())


def coverage(grid: Floats, truth: Floats) -> Floats:
    """Share of the rows that are at most their quantile, at each level."""
    covered: Floats = (truth[:, None] <= np.maximum(grid, 0) * (1 + 1e-9)).mean(axis=0)
    return covered


def rolling(covered: Flags, window: int) -> dict[str, float | int] | None:
    """Smallest, largest and last coverage over stretches of `window` rows; None of no rows."""
    if not len(covered):
        return None
    size = min(window, len(covered))
    sums = np.concatenate([[0], np.cumsum(covered)])
    shares = (sums[size:] - sums[:-size]) / size
    return {
        "window": size,
        "min": float(shares.min()),
        "max": float(shares.max()),
        "last": float(shares[-1]),
    }


def buckets(lengths: Floats) -> Ints:
    """0 short, 1 medium, 2 long, by the bounds of `SizeBucket`; rounding errors are forgiven."""
    found: Ints = np.searchsorted((SHORT_TOKENS, MEDIUM_TOKENS), lengths - 1e-6, side="left")
    return found


def judged(
    grid: Floats, p_short: Floats, truth: Floats, censored: Flags
) -> dict[str, float | int | None]:
    """Figures of any group of rows.

    `mae` in tokens, `mae_log` in natural log; `auc_short` and `recall_short_top35` of
    P(output ≤ 64).
    """
    exact = ~censored
    y, g = truth[exact], grid[exact]
    middle = g[:, MEDIAN]
    found = coverage(g, y) if len(y) else None
    bucket, forecast = buckets(truth), buckets(grid[:, MEDIAN])
    comparable = exact | (bucket == 2)
    decided = exact | (truth > SHORT_TOKENS)
    short = (truth <= SHORT_TOKENS)[decided]
    return {
        "n": len(truth),
        "kendall_tau": kendall_tau(middle, y),
        "mae": float(np.abs(middle - y).mean()) if len(y) else None,
        "mae_log": float(np.abs(np.log1p(middle) - np.log1p(y)).mean()) if len(y) else None,
        "pinball": pinball(g, y),
        "coverage_p50": None if found is None else float(found[MEDIAN]),
        "coverage_p90": None if found is None else float(found[P90]),
        "bucket_accuracy": float((bucket == forecast)[comparable].mean())
        if comparable.any()
        else None,
        "auc_short": auc(p_short[decided], short),
        "recall_short_top35": recall_in_top(p_short[decided], short),
    }


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None; None where there is none."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


# --- runs -------------------------------------------------------------------------------


def percentile(values: Floats, level: float) -> float:
    """Percentile by linear interpolation; NaN of nothing."""
    return float(np.percentile(values, level)) if len(values) else NAN


class RelativeChange(Struct, frozen=True):
    """A ratio minus 1, and its 95 % interval."""

    value: float
    low: float
    high: float


def change(
    own: Sequence[float], other: Sequence[float], *, by_sums: bool = False
) -> RelativeChange | None:
    """Relative change of a figure from another policy's, both a value per seed.

    A ratio of times is the geometric mean of the seeds' ratios: a slow provider's seconds must
    not outweigh a fast one's. The interval is the bootstrap's, seeds drawn anew DRAWS times.

    Args:
        by_sums: the ratio of the sums instead, for figures that may be 0.

    Returns:
        None where no seed has both values, or the other's leave nothing to divide by.
    """
    pairs = np.array([own, other], float)
    pairs = pairs[:, ~np.isnan(pairs).any(axis=0)]
    if not pairs.shape[1]:
        return None
    if (pairs[1].sum() <= 0) if by_sums else (pairs <= 0).any():
        return None
    draws = np.random.default_rng(5).integers(pairs.shape[1], size=(DRAWS, pairs.shape[1]))
    all_seeds = np.arange(pairs.shape[1])[None, :]
    if by_sums:
        value, drawn = _of_sums(pairs, all_seeds), _of_sums(pairs, draws)
    else:
        logs = np.log(pairs[0] / pairs[1])
        value, drawn = np.exp(logs[all_seeds].mean(axis=1)), np.exp(logs[draws].mean(axis=1))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return RelativeChange(float(value[0]) - 1, float(low) - 1, float(high) - 1)


def _of_sums(pairs: Floats, draws: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Floats:
    """Ratio of the drawn sums; NaN where only seeds without any were drawn."""
    sums = pairs[:, draws].sum(axis=2)
    ratio: Floats = sums[0] / np.where(sums[1] > 0, sums[1], np.nan)
    return ratio
