"""The record of one relayed request."""

from __future__ import annotations

import pytest

from gateway.engine.exchange import Exchange
from tests.unit.schedule.build import job


@pytest.mark.parametrize("counted", [True, False])
def test_exchange_frees_a_body_that_is_counted(counted: bool) -> None:
    """A counted body is freed and given back; one without `release`, as in a stored job, stays."""
    released: list[bool] = []
    release = (lambda: released.append(True)) if counted else None
    exchange = Exchange(job("one"), "r", "POST", "/x", b"", [], b"body", release=release)
    exchange.release_body()
    assert (exchange.body, released) == ((b"", [True]) if counted else (b"body", []))
