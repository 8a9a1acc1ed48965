"""The alarm of a stream that outgrows its forecast."""

from __future__ import annotations

from math import inf

import pytest

from gateway.engine.stream import LengthAlarm


def alarms_of(p90: float, n: int, tokens: range) -> list[int]:
    """The lengths reported of a stream that grows through `tokens`, compared as in the relay."""
    reported: list[int] = []
    alarm = LengthAlarm(p90, n, reported.append)
    for length in tokens:
        if length > alarm.at:
            alarm.passed(length)
    return reported


def test_length_alarm_reports_the_p90_and_each_doubling() -> None:
    """The alarm reports the first length past the p90, past twice and past four times it, and none
    between."""
    assert alarms_of(100.0, 1, range(101)) == []
    assert alarms_of(100.0, 1, range(801)) == [101, 201, 401]


def test_length_alarm_of_several_choices_reports_the_length_of_one() -> None:
    """The forecast is of one choice, while the stream carries all."""
    assert alarms_of(100.0, 3, range(700)) == [100, 200]


def test_length_alarm_past_several_doublings_at_once_reports_once() -> None:
    """A provider that sends in blocks is not reported twice for one block."""
    assert alarms_of(10.0, 1, range(0, 1000, 500)) == [500]


@pytest.mark.parametrize("p90", [0.0, 0.2])
def test_length_alarm_of_an_empty_forecast_goes_by_doublings_too(p90: float) -> None:
    """A forecast of nothing does not make every event an alarm."""
    assert alarms_of(p90, 1, range(20)) == [2, 3, 5, 9, 17]


def test_length_alarm_without_a_callback_is_never_reached() -> None:
    """A request that nobody forecasts costs one comparison."""
    assert LengthAlarm(1.0, 1, None).at == inf
