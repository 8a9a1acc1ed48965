"""The predictor's process of a gateway under test, seen from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.kit.gateway import GatewayProcess


def child_of(gateway: GatewayProcess) -> int | None:
    """The predictor's process id."""
    assert gateway.process is not None
    own = gateway.process.pid
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = stat.with_name("cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(fields[1]) == own and b"predictor" in command:
            return int(stat.parent.name)
    return None


def predictor(gateway: GatewayProcess) -> dict[str, Any]:
    stats = httpx.get(gateway.url("/stats"), headers=gateway.admin_headers)
    found: dict[str, Any] = stats.json()["predictor"]
    return found


def eventually(true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Ask again until it is so; asking is a request, and takes its time."""
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until, "it did not come to be"
