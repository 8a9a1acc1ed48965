"""A call's body is let go of once no attempt needs it."""

from __future__ import annotations

import pytest

from gateway.engine.call import Call
from tests.unit.schedule.build import job


@pytest.mark.parametrize("counted", [True, False])
def test_call_lets_go_of_a_body_that_somebody_counts(counted: bool) -> None:
    """Where nobody counts it, as in a stored job, it stays."""
    told: list[bool] = []
    release = (lambda: told.append(True)) if counted else None
    call = Call(job("one"), "r", "POST", "/x", b"", [], b"body", release=release)
    call.let_go_of_body()
    assert (call.body, told) == ((b"", [True]) if counted else (b"body", []))
