from __future__ import annotations

import numpy as np
import pytest

from gateway.balance.unloaded import LEAST_BASE, PRIOR, Floats, Unloaded


def batches(
    count: int, truth: tuple[float, float, float], noise: float = 0.3
) -> list[tuple[Floats, Floats]]:
    rng = np.random.default_rng(2)
    made = []
    for _ in range(count):
        prompt, output = rng.lognormal(4.8, 1.0, 16), rng.lognormal(5.0, 1.2, 16)
        sizes = np.column_stack([np.ones(16), prompt, output])
        made.append((sizes, sizes @ np.array(truth) * rng.lognormal(0.0, noise, 16)))
    return made


@pytest.mark.parametrize("truth", [(0.05, 0.0, 0.1), (2.0, 0.0, 0.002), (0.5, 0.001, 0.02)])
def test_unloaded_finds_the_coefficients_of_an_unknown_provider(
    truth: tuple[float, float, float],
) -> None:
    """From a few hundred noisy latencies, within a fifth for sizes small and large."""
    it = Unloaded()
    for sizes, latency_s in batches(20, truth):
        it.learn(sizes, latency_s, 1.0)
    for size in ([1.0, 20.0, 10.0], [1.0, 200.0, 200.0], [1.0, 200.0, 1500.0]):
        assert float(it.of(np.array([size]))[0]) == pytest.approx(np.array(size) @ truth, rel=0.2)
    assert it.theta.min() >= 0.0


def test_unloaded_does_not_follow_outliers() -> None:
    """One in sixteen a hundred times as long moves it by less than a third."""
    it = Unloaded()
    for sizes, latency_s in batches(20, (0.5, 0.0, 0.02)):
        latency_s[0] *= 100.0
        it.learn(sizes, latency_s, 1.0)
    assert float(it.of(np.array([[1.0, 200.0, 200.0]]))[0]) == pytest.approx(4.5, rel=0.33)


def test_unloaded_forgets() -> None:
    """A provider twice as slow is believed after a while, and the move is told."""
    it = Unloaded()
    moved = 0.0
    for sizes, latency_s in batches(20, (0.5, 0.0, 0.02)):
        it.learn(sizes, latency_s, 0.9)
    for sizes, latency_s in batches(40, (1.0, 0.0, 0.04)):
        moved += it.learn(sizes, latency_s, 0.9)
    assert moved == pytest.approx(np.log(2.0), abs=0.15)
    assert float(it.of(np.array([[1.0, 200.0, 200.0]]))[0]) == pytest.approx(9.0, rel=0.2)


def test_unloaded_restored_is_soon_overruled() -> None:
    """What was stored holds until fresh samples say otherwise."""
    it = Unloaded()
    it.restore((5.0, 0.0, 0.2))
    assert float(it.of(np.array([[1.0, 0.0, 0.0]]))[0]) == 5.0
    for sizes, latency_s in batches(20, (0.5, 0.0, 0.02)):
        it.learn(sizes, latency_s, 1.0)
    assert float(it.of(np.array([[1.0, 200.0, 200.0]]))[0]) == pytest.approx(4.5, rel=0.2)


def test_unloaded_of_an_empty_request_is_never_nothing() -> None:
    """All of it in the output tokens: a request without any still can be divided by."""
    it = Unloaded()
    for sizes, latency_s in batches(20, (0.0, 0.0, 0.1), noise=0.0):
        it.learn(sizes, latency_s, 1.0)
    assert it.theta[0] == pytest.approx(LEAST_BASE * latency_s.mean(), rel=0.05)
    empty = np.array([[1.0, 0.0, 0.0]])
    assert float(it.of(empty)[0]) > 0.0
    it.learn(np.repeat(empty, 16, axis=0), np.full(16, 0.01), 1.0)
    assert np.isfinite(it.theta).all()


def test_unloaded_counts_fresh_samples_alone() -> None:
    """Faded; what was restored counts for next to none."""
    it = Unloaded()
    for n, (sizes, latency_s) in enumerate(batches(3, (0.5, 0.0, 0.02))):
        it.learn(sizes, latency_s, 0.5)
        assert it.count == pytest.approx((16.0, 24.0, 28.0)[n])
    it.restore((5.0, 0.0, 0.2))
    it.learn(*batches(1, (0.5, 0.0, 0.02))[0], 0.5)
    assert it.count == pytest.approx(16.0)


def test_unloaded_scales_its_guess_by_the_first_latencies() -> None:
    """One batch says how long; the proportions are the prior's until more is known."""
    it = Unloaded()
    sizes = np.repeat(np.array([[1.0, 100.0, 50.0]]), 4, axis=0)
    moved = it.learn(sizes, np.full(4, 31.0), 1.0)
    assert float(it.of(sizes[:1])[0]) == pytest.approx(31.0, rel=0.02)
    assert it.theta[2] / it.theta[0] == pytest.approx(PRIOR[2] / PRIOR[0], rel=0.3)
    before = float(sizes[0] @ PRIOR)
    assert moved == pytest.approx(np.log(31.0 / before), rel=0.02)


def test_unloaded_clips_a_latency_at_both_ends() -> None:
    """One that is much too short moves it no more than one that is much too long."""
    moved = []
    for factor in (1e-4, 1e4):
        it = Unloaded()
        for sizes, latency_s in batches(20, (0.5, 0.0, 0.02), noise=0.0):
            it.learn(sizes, latency_s, 1.0)
        sizes, latency_s = batches(1, (0.5, 0.0, 0.02), noise=0.0)[0]
        moved.append(it.learn(sizes, latency_s * factor, 1.0))
    assert -0.08 < moved[0] < -0.01
    assert 0.01 < moved[1] < 0.12


def test_unloaded_leaves_out_what_would_be_negative() -> None:
    """A prompt that makes answers faster is noise: it counts for nothing, the rest is fitted."""
    it = Unloaded()
    for sizes, _ in batches(40, (0.0, 0.0, 0.0)):
        latency_s = np.maximum(3.0 - 0.002 * sizes[:, 1], 0.5) + 0.02 * sizes[:, 2]
        it.learn(sizes, latency_s, 1.0)
    assert it.theta[1] == 0.0
    assert it.theta[2] == pytest.approx(0.02, rel=0.15)
    assert 1.5 < it.theta[0] < 3.0
