"""The gateway's own lateness is not held against its provider."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.kit.gateway import TENANT_KEY, GatewayProcess, account

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
KEY = {"authorization": f"Bearer {TENANT_KEY}"}
AT_ONCE = 32
ROUNDS = 3
Start = Callable[..., GatewayProcess]


@pytest.fixture
def at_once() -> Iterator[str]:
    """The address of a provider of its own process that answers everything at once."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.mock_upstream"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.terminate()


def body(number: int) -> dict[str, Any]:
    text = f"question {number}"
    return {"model": "kit-model", "messages": [{"role": "user", "content": text}]}


async def test_busy_gateway_learns_nothing_from_its_own_lateness(
    start_gateway: Start, at_once: str
) -> None:
    """Answers that came at once and waited for the gateway's busy loop, most of a second each,
    teach no latency and no congestion, and cost the window nothing."""
    one = account(at_once, initial_concurrency=AT_ONCE, max_concurrency=256)
    gateway = start_gateway(accounts=[one], module="tests.kit.busy")
    async with httpx.AsyncClient(headers=KEY, timeout=30.0) as client:

        async def ask(number: int) -> None:
            answer = await client.post(gateway.url(CHAT), json=body(number))
            assert answer.status_code == 200

        for _ in range(ROUNDS):
            await asyncio.gather(*map(ask, range(AT_ONCE)))
        state = await client.get(gateway.url("/_stats"), headers=gateway.admin_headers)
    (window,) = state.json()["accounts"][0]["windows"]
    assert window["base_s"] == 0.0
    assert window["regime"] == "unknown"
    assert window["window"] >= AT_ONCE
