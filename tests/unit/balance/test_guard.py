from __future__ import annotations

from random import Random

from gateway.balance.guard import Guard


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
