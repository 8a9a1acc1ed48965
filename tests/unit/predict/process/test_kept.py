"""The calibration as it outlives whoever learned it."""

from __future__ import annotations

import pytest

from gateway.predict.calibrate import Calibration
from gateway.predict.process.faults import Faults
from gateway.predict.process.kept import Kept
from gateway.predict.residuals import Residuals
from gateway.predict.scopes import scopes


@pytest.fixture
def learned() -> Calibration:
    residuals = Residuals()
    residuals.learn(scopes("m", "a"), 6.0, stage0=5.0, full=None, censored=False)
    return residuals.table


def test_kept_is_what_was_put_last(learned: Calibration) -> None:
    """At first what it was given; then the same bytes here and in the store."""
    stored: list[bytes] = []
    kept = Kept(b"before", stored.append, Faults())
    assert kept.state == b"before"
    kept.put(learned)
    assert stored == [kept.state] == [learned.dump()]


def test_kept_goes_on_where_the_store_fails(learned: Calibration) -> None:
    """The next backend of this process begins with it all the same; the fault is counted."""

    def full(_: bytes) -> None:
        raise OSError("the disk is full")

    faults = Faults()
    kept = Kept(None, full, faults)
    kept.put(learned)
    assert (kept.state, faults.count) == (learned.dump(), 1)


def test_kept_needs_no_store(learned: Calibration) -> None:
    """Commands that only learn store nothing."""
    faults = Faults()
    kept = Kept(None, None, faults)
    kept.put(learned)
    assert (kept.state, faults.count) == (learned.dump(), 0)
