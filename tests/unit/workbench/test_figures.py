"""The figures, each against a plain way of counting or a case worked by hand."""

from __future__ import annotations

from itertools import combinations
from math import sqrt

import numpy as np
import pytest

from gateway.workbench import figures
from tests.unit.workbench.evaluate_cases import flat


def naive_tau(x: list[float], y: list[float]) -> float:
    """τ-b by looking at every pair."""
    agree = tied_x = tied_y = 0
    pairs = list(combinations(range(len(x)), 2))
    for i, j in pairs:
        dx, dy = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
        agree += int(dx * dy)
        tied_x += dx == 0
        tied_y += dy == 0
    return agree / sqrt((len(pairs) - tied_x) * (len(pairs) - tied_y))


@pytest.mark.parametrize("values", [2, 5, 40, 10_000])
@pytest.mark.parametrize("count", [2, 3, 17, 64, 129])
def test_tau_is_what_counting_pairs_gives(count: int, values: int) -> None:
    """Fast and naive τ-b agree, with many ties and with few, at sizes around powers of two."""
    chance = np.random.default_rng(count * values)
    for _ in range(5):
        x, y = chance.integers(0, values, (2, count)).astype(float)
        if len(set(x)) == 1 or len(set(y)) == 1:
            continue
        assert figures.kendall_tau(x, y) == pytest.approx(naive_tau(x.tolist(), y.tolist()))


def test_tau_of_extreme_orders() -> None:
    """τ is 1 for the same order, −1 for the reversed, 0 for a constant forecast, None for a
    constant truth."""
    y = np.arange(100.0)
    assert figures.kendall_tau(y**3, y) == 1.0
    assert figures.kendall_tau(-y, y) == -1.0
    assert figures.kendall_tau(np.ones(100), y) == 0.0
    assert figures.kendall_tau(y, np.ones(100)) is None
    assert figures.kendall_tau(y[:1], y[:1]) is None


def test_tau_stays_fast_on_many_rows() -> None:
    """τ of 200,000 rows (2 × 10¹⁰ pairs) ends, which counting pairs would not."""
    y = np.random.default_rng(1).permutation(200_000).astype(float)
    assert figures.kendall_tau(y, y) == 1.0


def test_auc_counts_ties_half() -> None:
    """By hand, 2 pairs won and 1 tied of 4 make 0.625."""
    score = np.array([0.9, 0.5, 0.5, 0.1])
    positive = np.array([True, True, False, False])
    assert figures.auc(score, positive) == pytest.approx(3.5 / 4)
    assert figures.auc(score, np.ones(4, bool)) is None


def test_recall_takes_the_best_scored() -> None:
    """Of 100 rows the 35 best are taken, and positives among them count."""
    score = np.arange(100.0)
    positive = np.zeros(100, bool)
    positive[[99, 70, 65, 64, 0]] = True
    assert figures.recall_in_top(score, positive) == pytest.approx(3 / 5)


def test_recall_of_one_score_for_all_is_the_share() -> None:
    """Without an order the top 35 % hold 35 % of the positives, wherever these stand."""
    positive = np.zeros(200, bool)
    positive[:10] = True
    assert figures.recall_in_top(np.ones(200), positive) == pytest.approx(0.35)


def test_pinball_prefers_the_right_quantiles() -> None:
    """Quantiles of the true distribution lose less than wider, narrower or shifted ones."""
    chance = np.random.default_rng(3)
    truth = np.exp(chance.normal(5, 0.7, 20_000))
    z = np.array([-1.6449, -1.2816, -0.6745, 0, 0.6745, 1.2816, 1.6449])

    def loss(centre: float, spread: float) -> float:
        grid = np.exp(centre + spread * z)[None, :].repeat(len(truth), axis=0)
        value = figures.pinball(grid, truth)
        assert value is not None
        return value

    right = loss(5, 0.7)
    assert right < min(loss(5, 1.0), loss(5, 0.4), loss(5.3, 0.7), loss(4.7, 0.7))


def test_rolling_finds_the_worst_stretch() -> None:
    """A hole of half a window shows as one half, whatever the mean."""
    covered = np.ones(1000, bool)
    covered[500:550] = False
    found = figures.rolling(covered, 100)
    assert found == {"window": 100, "min": 0.5, "max": 1.0, "last": 1.0}
    assert figures.rolling(covered[:0], 100) is None


def test_judged_leaves_censored_lengths_out_of_what_needs_the_truth() -> None:
    """A cut answer has no part in τ, MAE, pinball and coverage, but counts as not short."""
    result = flat([10.0, 100.0, 1000.0, 30.0])
    truth = np.array([10.0, 100.0, 1000.0, 300.0])
    cut = np.array([False, False, False, True])
    found = figures.judged(result.grid, result.p_short, truth, cut)
    assert found["n"] == 4
    assert found["kendall_tau"] == 1.0
    assert found["mae"] == pytest.approx(0.0)
    assert found["coverage_p90"] == 1.0
    assert found["bucket_accuracy"] == pytest.approx(3 / 4)  # it is long: said short is wrong
    assert found["auc_short"] == pytest.approx(2.5 / 3)


def test_judged_would_be_misled_by_a_censored_length() -> None:
    """The twin: the same row taken as exact changes τ and MAE."""
    result = flat([10.0, 100.0, 1000.0, 30.0])
    truth = np.array([10.0, 100.0, 1000.0, 300.0])
    found = figures.judged(result.grid, result.p_short, truth, np.zeros(4, bool))
    assert found["kendall_tau"] != 1.0
    assert found["mae"] == pytest.approx(270 / 4)


def test_judged_of_no_rows_is_empty() -> None:
    """A group without rows has no figures, and is no error."""
    result = flat([1.0])
    none = np.zeros(1, bool)
    found = figures.judged(result.grid[none], result.p_short[none], np.empty(0), np.empty(0, bool))
    assert found.pop("n") == 0
    assert set(found.values()) == {None}


def test_mean_skips_what_is_missing() -> None:
    """A source without a figure does not lower the mean."""
    assert figures.mean([0.2, None, 0.4]) == pytest.approx(0.3)
    assert figures.mean([None]) is None


def test_percentiles_interpolate_linearly() -> None:
    """A percentile lies between the two nearest values, and is NaN of nothing."""
    assert figures.percentile(np.array([1.0, 2.0, 3.0, 4.0]), 50) == 2.5
    assert figures.percentile(np.array([0.0, 10.0]), 95) == 9.5
    assert np.isnan(figures.percentile(np.array([]), 95))


def test_change_of_times_is_the_mean_of_ratios() -> None:
    """The mean of ratios is geometric, so halving and doubling cancel; a seed that lacks one is
    left out."""
    found = figures.change([1.0, 4.0, 3.0], [2.0, 2.0, float("nan")])
    assert found is not None
    assert found.value == pytest.approx(0.0)
    assert found.low == pytest.approx(-0.5)
    assert found.high == pytest.approx(1.0)


def test_change_of_counts_is_that_of_sums() -> None:
    """Counts are compared by their sums, so a seed without any counts as well."""
    found = figures.change([0.0, 0.1], [0.2, 0.0], by_sums=True)
    assert found is not None
    assert found.value == pytest.approx(-0.5)
    assert np.isfinite([found.low, found.high]).all()


def test_interval_narrows_with_seeds() -> None:
    """More seeds give a narrower interval around the value, and the same seeds the same one."""
    chance = np.random.default_rng(1)
    logs = chance.normal(size=200)
    other: list[float] = np.exp(logs).tolist()
    own: list[float] = (0.5 * np.exp(logs + 0.2 * chance.normal(size=200))).tolist()
    few, many = figures.change(own[:5], other[:5]), figures.change(own, other)
    assert few is not None
    assert many is not None
    assert many.high - many.low < few.high - few.low
    assert many.low < -0.5 < many.high
    assert figures.change(own, other) == many


def test_nothing_to_compare_is_no_change() -> None:
    """The change is None where no seed has both values, or the other's counts are all 0."""
    assert figures.change([float("nan")], [1.0]) is None
    assert figures.change([1.0], [0.0], by_sums=True) is None
