from __future__ import annotations

import math

import numpy as np
import pytest

from gateway.balance import curve
from gateway.balance.curve import (
    BINS,
    Floats,
    LatencyBins,
    Posterior,
    as_bins,
    as_tuple,
    fade_by_distance,
)
from tests.unit.balance.fluid import SHAPES, Slowdown


def seen_bins(
    slowdown: Slowdown, ns: list[float], each: int = 60, noise: float = 0.2
) -> LatencyBins:
    """LatencyBins that saw `each` latencies at each of `ns`."""
    rng, bins = np.random.default_rng(1), LatencyBins()
    for n in ns:
        logs = math.log(slowdown(n)) + rng.normal(0.0, noise, each)
        flat, ones = np.zeros(BINS), np.ones(each)
        bins.add(np.full(each, math.log(n)), logs, ones, flat, np.ones(BINS))
    return bins


def best(slowdown: Slowdown, ns: list[float]) -> tuple[float, Posterior]:
    posterior = seen_bins(slowdown, ns).posterior(0.04)
    return posterior.best(2, 256), posterior


SEEN = [3.0, 6.0, 12.0, 20.0, 28.0]


@pytest.mark.parametrize(
    ("shape", "low", "high"),
    [("saturating", 11, 15), ("power", 11, 13), ("quadratic", 9, 14), ("usl", 9, 14)],
)
def test_posterior_puts_the_window_at_the_knee(shape: str, low: int, high: int) -> None:
    """A knee of 12 seen from both sides is found."""
    at, _ = best(SHAPES[shape](12), SEEN)
    assert low <= at <= high


def test_posterior_of_a_straight_line_is_wide() -> None:
    """On a straight line the window ends where a tenth more in flight brings one per cent."""
    at, posterior = best(SHAPES["linear"](12), SEEN)
    assert 5 * 12 < at < 12 * 12
    assert posterior.linear > 0.5


def test_posterior_at_a_lower_price_is_wider() -> None:
    """A lower price widens in proportion on a straight line, and hardly at a sharp knee."""
    line, knee = (seen_bins(SHAPES[s](12), SEEN).posterior(0.04) for s in ("linear", "saturating"))
    assert line.best(2, 1000, 0.05) > 1.2 * line.best(2, 1000, 0.1)
    assert knee.best(2, 1000, 0.05) < 1.3 * knee.best(2, 1000, 0.1)


def test_posterior_that_saw_no_bend_explores() -> None:
    """Without a bend the best window is the upper bound, and no regime is named."""
    bins = seen_bins(lambda n: 1.0, [2.0, 4.0, 8.0])
    posterior = bins.posterior(0.04)
    assert posterior.best(2, 16) == 16
    assert posterior.curve(bins.explored()).regime == "unknown"


@pytest.mark.parametrize(
    ("shape", "regime"), [("saturating", "saturating"), ("power", "peaked"), ("linear", "linear")]
)
def test_curve_names_the_regime_and_the_knee(shape: str, regime: str) -> None:
    """Regime and knee are named for what was seen from both sides; a straight line has no knee."""
    bins = seen_bins(SHAPES[shape](12), SEEN)
    seen = bins.posterior(0.04).curve(bins.explored())
    assert seen.regime == regime
    assert seen.knee == 0.0 if regime == "linear" else 10 <= seen.knee <= 14
    assert set(seen.parameters) == {"turn", "sharp", "steep"}


def test_posterior_does_not_hang_on_the_scale() -> None:
    """Latencies eight times as long give the same window and another scale."""
    bins = seen_bins(SHAPES["saturating"](12), SEEN)
    before = bins.posterior(0.04)
    bins.shift(-math.log(8.0))
    after = bins.posterior(0.04)
    assert before.best(2, 256) == after.best(2, 256)
    assert after.scale - before.scale == pytest.approx(math.log(8.0), abs=0.02)


def test_bins_share_a_sample_without_moving_it() -> None:
    """A sample between two bins is shared, and the slope carries its value to each."""
    bins, slope = LatencyBins(), np.log(np.maximum(np.arange(BINS) + 1.0, 1.0))
    n = np.array([math.log(6.5)])
    bins.add(
        n, np.interp(n, np.log(np.arange(1.0, 10.0)), slope[:9]), np.ones(1), slope, np.ones(BINS)
    )
    seen = np.flatnonzero(bins.weights)
    assert list(seen) == [5, 6]
    assert np.allclose(bins.sums[seen] / bins.weights[seen], slope[seen])


def test_bins_forget_near_and_keep_far() -> None:
    """Bins within a factor of two of N fade faster than others."""
    keep = fade_by_distance(8.0, 0.5, 0.9)
    ns = np.arange(1, 24)
    near = set(ns[keep[:23] == 0.5])
    assert set(range(5, 16)) <= near <= set(range(4, 17))
    bins = seen_bins(lambda n: 1.0, [2.0, 8.0], each=10)
    bins.fade(keep)
    assert bins.weights[1] == 9.0
    assert bins.weights[7] == 5.0


def test_bins_explored_needs_a_few_samples() -> None:
    """Evidence of a few samples counts as explored, less does not."""
    bins = seen_bins(lambda n: 1.0, [4.0], each=20)
    assert not bins.has_evidence_below(3.0)
    assert bins.has_evidence_below(4.0)
    bins.add(np.array([math.log(20.0)]), np.zeros(1), np.ones(1), np.zeros(BINS), np.ones(BINS))
    assert bins.explored() == pytest.approx(4.0)
    assert LatencyBins().explored() == 1.0


def test_bins_come_back_from_storage() -> None:
    """Saved bins are restored as they were; another grid or no numbers are refused."""
    bins = seen_bins(SHAPES["power"](12), SEEN)
    again = as_bins(as_tuple(bins.weights), as_tuple(bins.sums))
    assert again.posterior(0.04).best(2, 256) == bins.posterior(0.04).best(2, 256)
    good = (0.0,) * BINS
    for weights, sums in (((1.0,), (1.0,)), ((-1.0,) * BINS, good), (good, (math.nan,) * BINS)):
        with pytest.raises(ValueError, match="bins"):
            as_bins(weights, sums)


def test_family_is_the_formula() -> None:
    """g(N) is (1 + (N/n)^s)^(p/s), and the grid holds all kinds of bends, sharp ones finely."""
    for n, turn, sharp, steep in ((1.0, 5.0, 1.0, 1.0), (7.0, 3.0, 2.0, 1.5), (9.0, 9.0, 4.0, 2.0)):
        found = curve._log_slowdown(*(np.array([v]) for v in np.log([n, turn])), sharp, steep)
        assert math.exp(float(found[0])) == pytest.approx(
            (1 + (n / turn) ** sharp) ** (steep / sharp)
        )
    sharps, steeps, turns = curve._grid()
    kinds = {(s, p) for s, p in zip(sharps, steeps, strict=True)}
    assert kinds == {(s, p) for s in curve.SHARP for p in curve.STEEP}
    for sharp, steep in kinds:
        mine = turns[(sharps == sharp) & (steeps == steep)]
        assert np.allclose(np.diff(mine), 0.04 if sharp > 4.0 else 0.12), (sharp, steep)
        assert mine[0] == 0.3
        assert math.log(curve.MAX_WINDOW) + 0.55 < mine[-1] < math.log(curve.MAX_WINDOW) + 0.7


def by_integration(bins: LatencyBins, variance: float) -> tuple[Floats, float]:
    """Expected log slowdown and scale, by Bayes' rule over every curve and every scale."""
    scales = np.linspace(-12.0, 12.0, 1201)
    w, wy = bins.weights, bins.sums
    y = np.divide(wy, w, out=np.zeros(BINS), where=w > 0.0)
    away = y[:, None] - curve._G  # bins × curves
    one, first, second = w.sum(), w @ away, w @ away**2
    squares = second - 2.0 * scales[:, None] * first + scales[:, None] ** 2 * one
    log = -squares / (2.0 * variance) - scales[:, None] ** 2 / (2.0 * curve.SCALE_SD**2)
    p = np.exp(log + curve._PRIOR - (log + curve._PRIOR).max())
    p /= p.sum()
    return curve._G @ p.sum(axis=0), float(scales @ p.sum(axis=1))


@pytest.mark.parametrize("each", [1, 2, 20])
def test_posterior_is_bayes_rule(each: int) -> None:
    """The posterior equals sums over all scales, with little evidence and with much."""
    bins = seen_bins(SHAPES["power"](12), [2.5, 6.0, 17.3, 40.0], each=each)
    bins.fade(0.7)
    for variance in (0.04, 0.36):
        posterior = bins.posterior(variance)
        slowdown, scale = by_integration(bins, variance)
        assert posterior.log_slowdown == pytest.approx(slowdown, abs=2e-3)
        assert posterior.scale == pytest.approx(scale, abs=2e-3)
        assert posterior.log_throughput == pytest.approx(curve._LN_N - slowdown, abs=2e-3)


def test_posterior_of_nothing_is_the_prior() -> None:
    """Without evidence the scale is one and curves that bend further out weigh more."""
    posterior = LatencyBins().posterior(0.09)
    assert posterior.scale == 0.0
    assert posterior.gain(4.0, 2.0) > 0.3
    assert 0.0 < posterior.peaked < 0.5
    assert 0.0 < posterior.linear < 0.5


def synthetic(slope: float, *, peaked: float = 0.0, linear: float = 0.0) -> Posterior:
    """A posterior whose log throughput rises by `slope` of ln N up to 30 in flight and then
    falls."""
    x = slope * np.minimum(curve._LN_N, 2 * math.log(30.0) - curve._LN_N)
    return Posterior(curve._LN_N - x, x, 0.0, 17, peaked, linear)


def test_curve_saw_no_bend_where_twice_as_much_brings_that_much_more() -> None:
    """The regime is unknown while twice the explored load brings BENT of log throughput."""
    assert synthetic(0.49).curve(10.0).regime == "saturating"
    assert synthetic(0.52).curve(10.0).regime == "unknown"
    assert synthetic(0.52).curve(25.0).regime == "saturating", "the top is within reach"


def test_curve_is_the_likeliest_regime() -> None:
    """The regime is peaked from one half on; else linear where that is likelier than a flat top."""
    for peaked, linear, regime in (
        (0.5, 0.4, "peaked"),
        (0.49, 0.3, "linear"),
        (0.4, 0.29, "saturating"),
        (0.0, 0.51, "linear"),
        (0.0, 0.49, "saturating"),
    ):
        seen = synthetic(0.3, peaked=peaked, linear=linear).curve(20.0)
        assert seen.regime == regime, (peaked, linear)
        assert (seen.sharp, seen.steep) == (curve._S[17], curve._P[17])
        assert seen.turn == pytest.approx(math.exp(curve._K[17]))
    assert synthetic(0.3, linear=1.0).curve(20.0).knee == 0.0


def test_curve_puts_the_knee_where_hardly_anything_is_left_to_gain() -> None:
    """The knee is a twentieth below the top; for a peak it is the top."""
    flat = synthetic(0.3).curve(20.0)
    assert flat.knee == pytest.approx(30.0 * math.exp(-0.05 / 0.3), rel=0.06)
    assert synthetic(0.3, peaked=1.0).curve(20.0).knee == pytest.approx(30.0, rel=0.05)


def test_posterior_chooses_among_whole_numbers_within_its_bounds() -> None:
    """The best N is a whole number within the bounds, or the lower bound if there is none."""
    posterior = synthetic(0.5)
    assert posterior.best(2.0, 8.0) == 8.0
    assert posterior.best(43.0, 90.0) == 43.0
    assert posterior.best(5.2, 5.8) == 5.2
    assert posterior.best(2.0, 200.0) == pytest.approx(30.0, abs=2.0)


def test_posterior_takes_a_price_off_for_the_size() -> None:
    """Worth is log throughput less the price per e-fold of the window."""
    posterior = synthetic(0.5)
    worth = posterior.worth(np.array([10.0, 20.0]))
    assert worth[1] - worth[0] == pytest.approx((0.5 - curve.PRICE) * math.log(2.0), abs=1e-3)
    assert synthetic(0.9 * curve.PRICE).best(2.0, 200.0) == 2.0
    assert synthetic(1.1 * curve.PRICE).best(2.0, 200.0) > 25.0


def test_bins_add_a_samples_weight() -> None:
    """Both bins together get the sample's weight, also beyond the grid's ends."""
    bins = LatencyBins()
    ln_n = np.log([6.4, 1.0, 2000.0])
    values, weights = np.array([0.3, -0.2, 1.0]), np.array([0.5, 0.25, 2.0])
    bins.add(ln_n, values, weights, np.zeros(BINS), np.ones(BINS))
    assert bins.weights.sum() == pytest.approx(2.75)
    assert bins.sums.sum() == pytest.approx(values @ weights)
    assert (bins.weights[0], bins.weights[-1]) == (0.25, 2.0)
    share = math.log(6.4 / 6.0) / math.log(7.0 / 6.0)
    assert bins.weights[5:7] == pytest.approx([0.5 * (1 - share), 0.5 * share])


def test_bins_fade_before_they_take_a_sample_in() -> None:
    """A new sample counts in full; the older ones have faded."""
    bins = seen_bins(lambda n: 1.0, [4.0], each=10)
    one = np.zeros(1)
    bins.add(np.log([4.0]), one, np.ones(1), np.zeros(BINS), np.full(BINS, 0.5))
    assert bins.weights[3] == pytest.approx(6.0)


def test_bins_explored_counts_all_that_lies_further_out() -> None:
    """Three samples' worth counts, one at an N and two further out."""
    bins = LatencyBins()
    for n, each in ((4.0, 5), (8.0, 1), (12.0, 2)):
        bins.add(
            np.full(each, math.log(n)), np.zeros(each), np.ones(each), np.zeros(BINS), np.ones(BINS)
        )
    assert bins.explored() == pytest.approx(8.0)
    assert bins.has_evidence_below(4.0)
    assert not bins.has_evidence_below(3.99)
    bins.fade(0.59)
    assert not bins.has_evidence_below(4.0), "what has faded is not known any more"
