from __future__ import annotations

import numpy as np
import pytest

from gateway.balance.unloaded import Floats, Unloaded


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
    empty = np.array([[1.0, 0.0, 0.0]])
    assert float(it.of(empty)[0]) > 0.0
    it.learn(np.repeat(empty, 16, axis=0), np.full(16, 0.01), 1.0)
    assert np.isfinite(it.theta).all()
