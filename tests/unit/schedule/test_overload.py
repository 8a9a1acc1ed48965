from __future__ import annotations

from gateway.schedule.overload import (
    RATE_WINDOW_S,
    RETRY_MAX_S,
    RETRY_MIN_S,
    RETRY_UNKNOWN_S,
    DrainRate,
    next_mode,
    no_account,
)
from gateway.types import Mode
from tests.unit.schedule.build import settings

GIVEN = settings(
    schedule={"moderate_above": 0.7, "congested_above": 1.2, "hysteresis": 0.15}
).schedule


def walk(*saturations: float) -> list[Mode]:
    mode, seen = Mode.FREE, []
    for saturation in saturations:
        mode = next_mode(mode, saturation, GIVEN)
        seen.append(mode)
    return seen


def test_mode_rises_at_its_entry() -> None:
    """Also past a mode in one step."""
    assert walk(0.69, 0.7, 1.19, 1.2) == [
        Mode.FREE,
        Mode.MODERATE,
        Mode.MODERATE,
        Mode.CONGESTED,
    ]
    assert walk(5.0) == [Mode.CONGESTED]


def test_mode_falls_only_well_below_its_entry() -> None:
    """(1 − hysteresis) × the entry; a number that hovers at the entry does not flap."""
    assert walk(1.2, 1.1, 1.03, 1.01) == [Mode.CONGESTED] * 3 + [Mode.MODERATE]
    assert walk(0.7, 0.6, 0.59) == [Mode.MODERATE, Mode.MODERATE, Mode.FREE]
    assert walk(1.5, 0.1) == [Mode.CONGESTED, Mode.FREE]


def test_drain_rate_predicts_from_what_finished_lately() -> None:
    """Waiting tokens over tokens a second."""
    rate = DrainRate()
    for second in range(200):
        rate.add(100.0, float(second))
    assert 19 < rate.seconds(2000.0, 199.0) < 21


def test_drain_rate_is_not_slow_because_it_is_young() -> None:
    """Five seconds at 100 tokens a second say 100, not 500 over the whole window."""
    rate = DrainRate()
    for second in range(6):
        rate.add(100.0, float(second))
    assert 15 < rate.seconds(2000.0, 5.0) < 21


def test_drain_rate_says_what_a_retry_after_may() -> None:
    """Clamped; a guess where nothing has finished."""
    rate = DrainRate()
    assert rate.seconds(1e9, 0.0) == RETRY_UNKNOWN_S
    rate.add(100.0, 1.0)
    assert rate.seconds(1e9, 2.0) == RETRY_MAX_S
    assert rate.seconds(0.0, 2.0) == RETRY_MIN_S
    assert rate.seconds(10.0, 2.0 + 100 * RATE_WINDOW_S) == RETRY_MAX_S, "long ago"


def test_no_account_says_whether_a_retry_can_help() -> None:
    """Not where only the operator can."""
    never = no_account(float("inf"))
    assert (never.should_retry, never.retry_after_s) == (False, None)
    soon = no_account(12.0)
    assert (soon.should_retry, soon.retry_after_s) == (None, 12.0)
