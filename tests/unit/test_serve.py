"""The life of a serving process, as far as no signal and no socket is needed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gateway.app import fresh_core
from gateway.serve import ServingProcess
from gateway.settings.live import LiveSettings
from tests.unit.schedule.build import settings


def test_process_ends_though_its_drain_fails() -> None:
    """A fault in the drain is not swallowed with the process left running."""

    async def fail() -> None:
        raise RuntimeError("a fault")

    async def play() -> bool:
        nothing: Any = None
        live = LiveSettings(Path("none.toml"), settings=settings())
        process = ServingProcess(live, nothing, nothing, fresh_core)
        gateway: Any = SimpleNamespace(drain=fail)
        server: Any = SimpleNamespace(should_exit=False)
        process.gateway, process.server = gateway, server
        process._end(15)
        while not server.should_exit:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        return True

    async def in_time() -> bool:
        return await asyncio.wait_for(play(), 5)

    assert asyncio.run(in_time())
