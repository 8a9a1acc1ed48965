"""Grids of quantiles: made, mended, mixed and cut."""

from __future__ import annotations

from math import expm1, log1p

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.predict.index import NO_NEIGHBOURS, Neighbours
from gateway.predict.quantiles import (
    AGE_S,
    NEIGHBOUR_NAMES,
    RECENCY_ROWS,
    SCATTER,
    Z,
    blended,
    confidence,
    faded,
    mixture,
    neighbour_features,
    neighbour_grid,
    neighbour_weights,
    p_short,
    probability_at_most,
    rearranged,
    relevelled,
    risk,
    truncated,
    value_at,
)
from gateway.types import QUANTILE_LEVELS

logs = st.lists(st.floats(-5, 20), min_size=7, max_size=7)


def normal(centre: float, sigma: float) -> tuple[float, ...]:
    return tuple(centre + sigma * z for z in Z)


def near(
    similarity: list[float],
    tokens: list[float],
    *,
    censored: list[bool] | None = None,
    same: list[bool] | None = None,
    age_s: list[float] | None = None,
    recency: list[int] | None = None,
) -> Neighbours:
    count = len(tokens)
    return Neighbours(
        similarity=np.array(similarity, np.float32),
        length=np.log1p(np.array(tokens, np.float32)),
        censored=np.array(censored or [False] * count, bool),
        same_model=np.array(same or [True] * count, bool),
        age_s=np.array(age_s or [0.0] * count, float),
        recency=np.zeros(count, np.int64) if recency is None else np.array(recency),
    )


@given(logs)
def test_rearranged_grid_is_non_decreasing_and_bounded(values: list[float]) -> None:
    """Crossing quantiles are sorted and held within [0, log 10⁶]."""
    grid = rearranged(values)
    assert list(grid) == sorted(grid)
    assert grid[0] >= 0.0
    assert grid[-1] <= log1p(1_000_000)


@given(logs, st.integers(1, 10_000))
def test_truncated_grid_stops_at_max_tokens(values: list[float], limit: int) -> None:
    """No quantile lies above max_tokens; those below stay."""
    grid = rearranged(values)
    short = truncated(grid, limit)
    assert expm1(short[-1]) <= limit * (1 + 1e-9)
    assert all(b == a or b == log1p(limit) for a, b in zip(grid, short, strict=True))
    assert truncated(grid, None) == grid


@given(logs, st.floats(-2, 22), st.floats(0, 3))
def test_probability_rises_with_the_value(values: list[float], at: float, step: float) -> None:
    """The distribution function is within [0, 1] and does not fall."""
    grid = rearranged(values)
    low, high = probability_at_most(grid, at), probability_at_most(grid, at + step)
    assert 0.0 <= low <= high + 1e-12 <= 1.0 + 1e-9


def test_probability_at_a_quantile_is_its_level() -> None:
    """P(X ≤ quantile) is the level, and the quantile at a level gives it back."""
    grid = normal(5, 0.8)
    for level, value in zip(QUANTILE_LEVELS, grid, strict=True):
        assert probability_at_most(grid, value) == pytest.approx(level)
        assert value_at(grid, level) == pytest.approx(value)


def test_p_short_is_certain_at_the_ends() -> None:
    """P(short) is 1 for short grids, 0 for long ones, and one half where the median is 64."""
    assert p_short(normal(log1p(10), 0.2)) == 1.0
    assert p_short(normal(log1p(2000), 0.2)) == 0.0
    assert p_short(normal(log1p(64), 0.5)) == pytest.approx(0.5)


def test_p_short_of_an_answer_cut_at_64_is_one() -> None:
    """An answer limited to 64 tokens is short."""
    assert p_short(truncated(normal(7, 0.5), 64)) == 1.0


def test_risk_is_the_chance_of_twice_the_median() -> None:
    """Wider grids have more risk, and one cut at twice its median has none."""
    wide, tight = normal(5, 1.2), normal(5, 0.3)
    assert 0.0 <= risk(tight) < 0.05 < risk(wide) <= 0.5
    assert risk(truncated(wide, int(expm1(5)))) == 0.0


def test_confidence_falls_with_the_scatter() -> None:
    """Confidence is 1 for a certain length and exp(−σ) otherwise."""
    assert confidence((5.0,) * 7) == 1.0
    assert confidence(normal(5, 0.7)) == pytest.approx(np.exp(-0.7), rel=1e-3)


def test_neighbour_weight_is_one_for_a_repeat_and_none_at_the_threshold() -> None:
    """The weight is 1 at similarity 1, 0 at and below the threshold, and half for another model."""
    found = near([1.0, 0.9, 0.8, 0.1, 1.0], [1] * 5, same=[True] * 4 + [False])
    assert neighbour_weights(found, 0.8) == pytest.approx([1, 0.25, 0, 0, 0.5], abs=1e-6)


def test_neighbour_grid_of_one_row_scatters_around_it() -> None:
    """One neighbour's length is smeared by the usual scatter."""
    grid = neighbour_grid(np.log1p([100.0]), np.array([1.0]))
    assert grid[3] == pytest.approx(log1p(100), abs=0.01)
    assert grid[5] - grid[3] == pytest.approx(SCATTER * Z[5], rel=0.25)


def test_neighbour_grid_has_the_quantiles_of_the_neighbours() -> None:
    """With many neighbours the median and the outer quantiles are theirs."""
    rng = np.random.default_rng(1)
    logs_ = np.sort(rng.normal(5, 1.0, 64_000))[500::1000]  # as regular as a sample can be
    grid = neighbour_grid(logs_, np.ones(64))
    assert grid[3] == pytest.approx(np.median(logs_), abs=0.15)
    share = (rng.normal(5, np.hypot(1.0, SCATTER), 5000) <= grid[5]).mean()
    assert 0.85 < share < 0.95


def test_neighbours_fade_with_newer_ones_and_with_time() -> None:
    """The newest neighbour counts in full; each 48 newer ones and each month halve the weight."""
    found = near([1.0] * 3, [1] * 3, age_s=[0.0, 0.0, AGE_S], recency=[0, int(RECENCY_ROWS), 0])
    assert faded(found, np.ones(3)) == pytest.approx([1.0, 0.5, 0.5])


@settings(max_examples=200, deadline=None)
@given(
    st.floats(2, 7),
    st.floats(0.1, 1.5),
    st.lists(st.tuples(st.floats(1, 3000), st.floats(0.05, 1)), max_size=5),
    st.lists(st.tuples(st.floats(1, 5000), st.floats(0.05, 1)), min_size=1, max_size=5),
)
def test_mixture_is_never_lowered_by_a_bound(
    centre: float,
    spread: float,
    exact: list[tuple[float, float]],
    cut: list[tuple[float, float]],
) -> None:
    """Adding cut answers of any length leaves no quantile lower than without them."""
    prior = normal(centre, spread)
    lengths, weights = zip(*exact, *cut, strict=True)
    flags = [False] * len(exact) + [True] * len(cut)
    found = near([1.0] * len(flags), list(lengths), censored=flags)
    few = near([1.0] * len(exact), list(lengths[: len(exact)]))
    without = mixture(prior, few, np.array(weights[: len(exact)]))
    with_ = mixture(prior, found, np.array(weights))
    assert all(b >= a - 1e-9 for a, b in zip(without, with_, strict=True))


def test_mixture_is_raised_by_a_bound_above_it() -> None:
    """A cut answer beyond the forecast raises it as an exact one of that length does."""
    prior = normal(log1p(100), 0.5)
    cut = mixture(prior, near([1.0], [2000], censored=[True]), np.ones(1))
    exact = mixture(prior, near([1.0], [2000]), np.ones(1))
    assert cut[3] > prior[3] + 0.5
    assert cut[3] >= exact[3]


def test_relevelled_reads_other_levels_as_p50_and_p90() -> None:
    """A normal grid gets its values at the two scores as p50 and p90; those between move along."""
    grid = normal(5, 1.0)
    same = relevelled(grid, 0.0, Z[5])
    moved = relevelled(grid, 0.2, 2.0)
    assert same == grid
    assert (moved[3], moved[5]) == pytest.approx((5.2, 7.0), abs=1e-3)
    assert grid[4] < moved[4] < moved[5] < moved[6]
    assert list(moved) == sorted(moved)
    assert moved[0] == pytest.approx(grid[0] + 0.2, abs=1e-3)


def test_blend_follows_the_effective_neighbours() -> None:
    """The blend is the model's grid without neighbours, a third of the way to them with one, and
    theirs with many."""
    model, theirs = normal(3, 0.5), normal(6, 0.5)
    assert blended(model, theirs, 0.0) == pytest.approx(model)
    assert blended(model, theirs, 1.0)[3] == pytest.approx(4.0)
    assert blended(model, theirs, 99.0)[3] == pytest.approx(6, abs=0.1)


def test_neighbour_features_have_their_names() -> None:
    """There are as many features as names, all NaN without neighbours."""
    row = neighbour_features(near([0.9, 0.5], [10, 1000], same=[False, True]))
    named = dict(zip(NEIGHBOUR_NAMES, row, strict=True))
    assert named["nn_max"] == pytest.approx(0.9)
    assert named["nn_first"] == pytest.approx(log1p(10))
    assert named["nn_same_model"] == pytest.approx(log1p(1000))
    assert 1.0 <= named["nn_effective"] < 1.1
    assert np.isnan(neighbour_features(NO_NEIGHBOURS)).all()


def test_neighbour_features_take_no_bound_below_the_middle() -> None:
    """A cut row counts only where it is longer than the median of the exact ones."""
    exact = near([1.0, 0.9], [200, 300])
    short = near([1.0, 1.0, 0.9], [5, 200, 300], censored=[True, False, False])
    long = near([1.0, 1.0, 0.9], [5000, 200, 300], censored=[True, False, False])
    at = NEIGHBOUR_NAMES.index("nn_mean")
    assert neighbour_features(short) == neighbour_features(exact)
    assert neighbour_features(long)[at] > neighbour_features(exact)[at]
    assert np.isnan(neighbour_features(near([1.0], [5], censored=[True]))).all()
