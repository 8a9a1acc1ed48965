from __future__ import annotations

from random import Random

import numpy as np

from gateway.balance.guard import BLOCKS, KEEP, SURE, Guard


def says(slope: float, blocks: int, noise: float = 0.1, spread: float = 0.3) -> bool:
    """Whether it spoke over blocks whose rate goes with N^slope."""
    guard, rng = Guard(), Random(3)
    spoke = False
    for _ in range(blocks):
        n = 20.0 * rng.lognormvariate(0.0, spread)
        spoke |= guard.add(n, n**slope * rng.lognormvariate(0.0, noise))
    return spoke


def test_guard_speaks_where_more_in_flight_did_less_work() -> None:
    """Past a peak, within a few blocks."""
    assert says(-0.8, 30)


def test_guard_is_silent_below_and_at_a_flat_top() -> None:
    """Where more did more, or as much, and where too little was seen."""
    assert not says(0.8, 300)
    assert not says(-0.8, 7)
    assert not says(-0.8, 100, spread=0.0)


def test_guard_begins_anew_after_it_spoke() -> None:
    """The blocks that led to a shrinking do not lead to the next one."""
    guard = Guard()
    spoke = [guard.add(20.0 + n % 5, 1.0 / (20.0 + n % 5)) for n in range(40)]
    first = spoke.index(True)
    assert not any(spoke[first + 1 : first + 7])


def surely_falls(blocks: list[tuple[float, float]]) -> bool:
    """Student's t of the correlation of the logarithms, as a textbook has it; old ones fade."""
    weights = KEEP ** np.arange(len(blocks))[::-1]
    n = weights.sum()
    if n < BLOCKS:
        return False
    x, y = np.log(np.array(blocks)).T
    covariance = np.cov(x, y, aweights=weights, ddof=0)
    r = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    return bool(r * np.sqrt((n - 2) / (1 - r * r)) < SURE)


def test_guard_speaks_when_the_correlation_says_so() -> None:
    """At the same block as the textbook's formula, for slopes of all kinds; then from none."""
    rng, spoken = Random(5), 0
    for slope in (-1.5, -0.8, -0.4, -0.2, 0.0, 0.5):
        guard, blocks = Guard(), list[tuple[float, float]]()
        for _ in range(60):
            n = 20.0 * rng.lognormvariate(0.0, 0.3)
            blocks.append((n, 50.0 * n**slope * rng.lognormvariate(0.0, 0.15)))
            spoke = guard.add(*blocks[-1])
            assert spoke is surely_falls(blocks), (slope, len(blocks))
            if spoke:
                spoken += 1
                blocks.clear()
    assert 5 < spoken < 40


def test_guard_waits_for_its_blocks_however_clear_they_are() -> None:
    """A straight fall speaks at the first moment it may, not before."""
    guard = Guard()
    spoke = [guard.add(10.0 + n, 1.0 / (10.0 + n)) for n in range(20)]
    faded = [sum(KEEP**k for k in range(n + 1)) for n in range(20)]
    assert spoke.index(True) == next(n for n, blocks in enumerate(faded) if blocks >= BLOCKS)


def test_guard_is_silent_where_nothing_varies() -> None:
    """Neither the number in flight nor the work: a correlation of nothing is none."""
    for same in ("inflight", "rate"):
        guard = Guard()
        for n in range(40):
            x = 20.0 if same == "inflight" else 20.0 + n % 7
            y = 5.0 if same == "rate" else 5.0 - n % 7 / 2
            assert not guard.add(x, y), same


def test_guard_bears_a_perfect_correlation() -> None:
    """Of either sign: no root of less than nothing, no division by it."""
    for power in (1.0, 0.5, 2.0):
        rising, falling = Guard(), Guard()
        spoke = [
            (rising.add(n, n**power), falling.add(n, n**-power))
            for n in (float(2 + k % 9) for k in range(60))
        ]
        assert not any(up for up, _ in spoke)
        assert any(down for _, down in spoke)
