"""Sizes, forecasts of a chosen quality, and how rows are drawn."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.errors import SettingsError
from gateway.types import QUANTILE_LEVELS, JobClass
from gateway.workbench.figures import buckets, kendall_tau
from gateway.workbench.simulate.request_rows import MIXES, draw, generated, noisy, truth


def test_generated_lengths_are_like_public_ones() -> None:
    """Deciles are within a fifth of 36, 237 and 703, and the same seed gives the same lengths."""
    sizes = generated(20_000, 1)
    tokens = [output for _, output in sizes]
    assert np.percentile(tokens, [10, 50, 90]) == pytest.approx([36, 237, 703], rel=0.2)
    assert sizes == generated(20_000, 1)
    assert sizes != generated(20_000, 2)


@pytest.mark.parametrize("tau", [0.35, 0.55, 0.8])
def test_noise_has_the_wanted_tau(tau: float) -> None:
    """The τ of the median forecast is within 0.03 of the wanted one."""
    rows = noisy(generated(3000, 1), tau, 2)
    medians = np.array([row.first.p50 for row in rows])
    found = kendall_tau(medians, np.array([float(row.output_tokens) for row in rows]))
    assert found == pytest.approx(tau, abs=0.03)


def test_noisy_forecasts_are_calibrated() -> None:
    """Each level of the grid covers its share of the lengths, and P(short) is a probability."""
    rows = noisy(generated(4000, 1), 0.5, 2)
    tokens = np.array([row.output_tokens for row in rows])
    grid = np.array([row.first.grid for row in rows])
    covered = (tokens[:, None] <= grid).mean(axis=0)
    assert covered == pytest.approx(QUANTILE_LEVELS, abs=0.03)
    p_short = np.array([row.first.p_short for row in rows])
    sure = p_short > 0.5
    assert p_short[sure].mean() == pytest.approx((tokens <= 64)[sure].mean(), abs=0.05)


def test_truth_is_a_forecast_without_doubt() -> None:
    """A true forecast has one length at every level, and the class of that length."""
    short, long = (truth(noisy([(5, tokens)], 0.5, 0)[0]).first for tokens in (64, 65))
    assert set(short.grid) == {64.0}
    assert (short.job_class, long.job_class) == (JobClass.INTERACTIVE, JobClass.HEAVY)
    assert short.confidence == 1.0


def test_mix_has_its_shares() -> None:
    """A mix has its shares by true size, and rows repeat only where there are too few."""
    rows = noisy(generated(2000, 1), 0.6, 2)
    places = draw(rows, 200, "heavy", np.random.default_rng(0))
    kinds = buckets(np.array([rows[i].output_tokens for i in places], float))
    assert np.bincount(kinds).tolist() == [20, 60, 120]
    assert len(set(places.tolist())) == 200
    assert len(draw(rows[:50], 120, "as-is", np.random.default_rng(0))) == 120
    assert set(MIXES) == {"as-is", "balanced", "heavy", "published"}


def test_mix_without_rows_of_a_size_is_an_error() -> None:
    """The error names the missing size."""
    rows = [row for row in noisy(generated(300, 1), 0.6, 2) if row.output_tokens > 64]
    with pytest.raises(SettingsError, match="no row of size short"):
        draw(rows, 20, "published", np.random.default_rng(0))
