from __future__ import annotations

import math

import numpy as np
import pytest

from gateway.balance.curve import BINS, Bins, Posterior, as_bins, as_tuple, fade_by_distance
from tests.unit.balance.fluid import SHAPES, Slowdown


def told(slowdown: Slowdown, ns: list[float], each: int = 60, noise: float = 0.2) -> Bins:
    """Bins that saw `each` latencies at each of `ns`."""
    rng, bins = np.random.default_rng(1), Bins()
    for n in ns:
        logs = math.log(slowdown(n)) + rng.normal(0.0, noise, each)
        flat, ones = np.zeros(BINS), np.ones(each)
        bins.add(np.full(each, math.log(n)), logs, ones, flat, np.ones(BINS))
    return bins


def best(slowdown: Slowdown, ns: list[float]) -> tuple[float, Posterior]:
    known = told(slowdown, ns).posterior(0.04)
    return known.best(2, 256), known


SEEN = [3.0, 6.0, 12.0, 20.0, 28.0]


@pytest.mark.parametrize(
    ("shape", "low", "high"),
    [("saturating", 11, 15), ("power", 11, 13), ("quadratic", 9, 14), ("usl", 9, 14)],
)
def test_posterior_puts_the_window_at_the_knee(shape: str, low: int, high: int) -> None:
    """A knee of 12, seen from both sides."""
    at, _ = best(SHAPES[shape](12), SEEN)
    assert low <= at <= high


def test_posterior_of_a_straight_line_is_wide() -> None:
    """Far beyond what was seen, to where a tenth more in flight brings one per cent."""
    at, known = best(SHAPES["linear"](12), SEEN)
    assert 5 * 12 < at < 12 * 12
    assert known.linear > 0.5


def test_posterior_at_a_lower_price_is_wider() -> None:
    """On a straight line, about in proportion; at a sharp knee hardly."""
    line, knee = (told(SHAPES[s](12), SEEN).posterior(0.04) for s in ("linear", "saturating"))
    assert line.best(2, 1000, 0.05) > 1.2 * line.best(2, 1000, 0.1)
    assert knee.best(2, 1000, 0.05) < 1.3 * knee.best(2, 1000, 0.1)


def test_posterior_that_saw_no_bend_explores() -> None:
    """As wide as it may, and it names no regime."""
    bins = told(lambda n: 1.0, [2.0, 4.0, 8.0])
    known = bins.posterior(0.04)
    assert known.best(2, 16) == 16
    assert known.curve(bins.explored()).regime == "unknown"


@pytest.mark.parametrize(
    ("shape", "regime"), [("saturating", "saturating"), ("power", "peaked"), ("linear", "linear")]
)
def test_curve_names_the_regime_and_the_knee(shape: str, regime: str) -> None:
    """Of what was seen from both sides; a straight line has no knee."""
    bins = told(SHAPES[shape](12), SEEN)
    seen = bins.posterior(0.04).curve(bins.explored())
    assert seen.regime == regime
    assert seen.knee == 0.0 if regime == "linear" else 10 <= seen.knee <= 14
    assert set(seen.parameters) == {"turn", "sharp", "steep"}


def test_posterior_does_not_hang_on_the_scale() -> None:
    """All latencies eight times as long: the same window, the scale told."""
    bins = told(SHAPES["saturating"](12), SEEN)
    before = bins.posterior(0.04)
    bins.shift(-math.log(8.0))
    after = bins.posterior(0.04)
    assert before.best(2, 256) == after.best(2, 256)
    assert after.scale - before.scale == pytest.approx(math.log(8.0), abs=0.02)


def test_bins_share_a_sample_without_moving_it() -> None:
    """Between two bins, the slope carries the value to each."""
    bins, slope = Bins(), np.log(np.maximum(np.arange(BINS) + 1.0, 1.0))
    n = np.array([math.log(6.5)])
    bins.add(
        n, np.interp(n, np.log(np.arange(1.0, 10.0)), slope[:9]), np.ones(1), slope, np.ones(BINS)
    )
    seen = np.flatnonzero(bins.weights)
    assert list(seen) == [5, 6]
    assert np.allclose(bins.sums[seen] / bins.weights[seen], slope[seen])


def test_bins_forget_near_and_keep_far() -> None:
    """Within a factor of two of N, and elsewhere."""
    keep = fade_by_distance(8.0, 0.5, 0.9)
    ns = np.arange(1, 24)
    near = set(ns[keep[:23] == 0.5])
    assert set(range(5, 16)) <= near <= set(range(4, 17))
    bins = told(lambda n: 1.0, [2.0, 8.0], each=10)
    bins.fade(keep)
    assert bins.weights[1] == 9.0
    assert bins.weights[7] == 5.0


def test_bins_know_how_far_they_have_seen() -> None:
    """Evidence of a few samples counts, less does not."""
    bins = told(lambda n: 1.0, [4.0], each=20)
    assert not bins.known_below(3.0)
    assert bins.known_below(4.0)
    bins.add(np.array([math.log(20.0)]), np.zeros(1), np.ones(1), np.zeros(BINS), np.ones(BINS))
    assert bins.explored() == pytest.approx(4.0)
    assert Bins().explored() == 1.0


def test_bins_come_back_from_storage() -> None:
    """As they were; another grid or no numbers are refused."""
    bins = told(SHAPES["power"](12), SEEN)
    again = as_bins(as_tuple(bins.weights), as_tuple(bins.sums))
    assert again.posterior(0.04).best(2, 256) == bins.posterior(0.04).best(2, 256)
    good = (0.0,) * BINS
    for weights, sums in (((1.0,), (1.0,)), ((-1.0,) * BINS, good), (good, (math.nan,) * BINS)):
        with pytest.raises(ValueError, match="bins"):
            as_bins(weights, sums)
