"""The bench's gateway process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.errors import SettingsError
from gateway.workbench.bench.bench_processes import BenchGateway


def gateway(folder: Path, *overrides: str) -> BenchGateway:
    return BenchGateway(folder, "http://127.0.0.1:1", ["m"], 1.0, overrides)


def test_start_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    """A start that another seed's error cancels ends the process it began."""
    own = gateway(tmp_path / "g")

    async def cancelled() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):  # Python alone takes longer to start
                await own.__aenter__()

    asyncio.run(cancelled())
    assert own.process is not None
    assert own.process.returncode is not None


def test_gateway_that_does_not_start_says_why(tmp_path: Path) -> None:
    """The error of a failed start has the end of the gateway's log."""
    own = gateway(tmp_path / "g", "server.nonsense=1")
    with pytest.raises(SettingsError, match="nonsense"):
        asyncio.run(own.__aenter__())
    assert own.process is not None
    assert own.process.returncode is not None
