"""The record of one relayed request."""

from __future__ import annotations

import pytest

from gateway.engine.exchange import Exchange
from tests.kit.client import WiredClient
from tests.unit.schedule.build import job


@pytest.mark.parametrize("counted", [True, False])
def test_exchange_frees_a_body_that_is_counted(counted: bool) -> None:
    """A counted body is freed and given back; one without `release`, as in a stored job, stays."""
    released: list[bool] = []
    release = (lambda: released.append(True)) if counted else None
    client = WiredClient().cycle
    exchange = Exchange(job("one"), client, "r", "POST", "/x", b"", [], b"body", release=release)
    exchange.release_body()
    assert (exchange.body, released) == ((b"", [True]) if counted else (b"body", []))
