"""When a stream that outgrows its forecast is told of, and when not."""

from __future__ import annotations

from math import inf

import pytest

from gateway.engine.stream import LengthAlarm


def told_of(p90: float, n: int, tokens: range) -> list[int]:
    """What is told of a stream whose length goes through `tokens`, asked as the relay asks."""
    told: list[int] = []
    overrun = LengthAlarm(p90, n, told.append)
    for length in tokens:
        if length > overrun.at:
            overrun.passed(length)
    return told


def test_overrun_tells_at_the_p90_and_at_each_doubling() -> None:
    """A length just past the p90, then past twice and four times as much; nothing between."""
    assert told_of(100.0, 1, range(101)) == []
    assert told_of(100.0, 1, range(801)) == [101, 201, 401]


def test_overrun_of_several_choices_tells_the_length_of_one() -> None:
    """The forecast is of one choice, the stream carries all."""
    assert told_of(100.0, 3, range(700)) == [100, 200]


def test_overrun_past_several_doublings_at_once_tells_once() -> None:
    """A provider that sends in blocks is not told of twice for one block."""
    assert told_of(10.0, 1, range(0, 1000, 500)) == [500]


@pytest.mark.parametrize("p90", [0.0, 0.2])
def test_overrun_of_an_empty_forecast_goes_by_doublings_too(p90: float) -> None:
    """A forecast of nothing does not make every event news."""
    assert told_of(p90, 1, range(20)) == [2, 3, 5, 9, 17]


def test_overrun_without_a_listener_is_never_reached() -> None:
    """Requests that nobody forecasts cost one comparison."""
    assert LengthAlarm(1.0, 1, None).at == inf
