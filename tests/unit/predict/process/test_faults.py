"""Faults that were got over."""

from __future__ import annotations

import pytest

from gateway.predict.process.faults import Faults


def test_faults_are_counted_and_said_ever_more_seldom(caplog: pytest.LogCaptureFixture) -> None:
    """Ten of them are four lines: the first, second, fourth, eighth, each with its traceback."""
    faults = Faults()
    for number in range(10):
        try:
            raise RuntimeError(f"number {number}")
        except RuntimeError:
            faults("a thing failed")
    assert faults.count == 10
    said = [(record.getMessage(), str((record.exc_info or (0, 0))[1])) for record in caplog.records]
    assert said == [
        (f"predictor: a thing failed ({count} so far)", f"number {count - 1}")
        for count in (1, 2, 4, 8)
    ]
