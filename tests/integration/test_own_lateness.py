"""What the gateway takes itself is not held against its provider."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.kit.gateway import TENANT_KEY, GatewayProcess, account
from tests.kit.provider import ScriptedProvider
from tests.kit.steps import Drip, Head, Wait, completion

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
KEY = {"authorization": f"Bearer {TENANT_KEY}"}
AT_ONCE = 32
BUSY = 8  # rounds of as many answers that come at once
SLOW = 3  # rounds of as many that take a while
ANSWER = json.dumps(completion("Hello there.", (9, 3))).encode()
SLOW_ANSWER = [
    Head(headers={"content-type": "application/json"}, length=len(ANSWER)),
    Drip(ANSWER, size=len(ANSWER) // 3, every_s=0.1),
]
Start = Callable[..., GatewayProcess]


def body(number: int) -> dict[str, Any]:
    text = f"question {number}"
    return {"model": "kit-model", "messages": [{"role": "user", "content": text}]}


async def test_answers_at_once_make_no_window_for_slow_ones(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """After answers that waited for the gateway's busy loop, as many slow ones at once are asked
    for, round after round: each round is at the provider in full before its first answer."""
    one = account(provider, initial_concurrency=2 * AT_ONCE, max_concurrency=256)
    gateway = start_gateway(accounts=[one], module="tests.kit.busy")
    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(headers=KEY, limits=limits, timeout=30.0) as client:

        async def ask(number: int) -> None:
            answer = await client.post(gateway.url(CHAT), json=body(number))
            assert answer.status_code == 200

        for _ in range(BUSY):
            await asyncio.gather(*map(ask, range(AT_ONCE)))
        for turn in range(SLOW):
            gate = f"round {turn}"
            provider.enqueue(*[[Wait(gate), *SLOW_ANSWER]] * AT_ONCE)
            before = len(provider.exchanges)
            asked = asyncio.gather(*map(ask, range(AT_ONCE)))
            await provider.request(before + AT_ONCE - 1)
            provider.gate(gate).mark()
            await asked
        state = await client.get(gateway.url("/_stats"), headers=gateway.admin_headers)
    assert state.json()["accounts"][0]["windows"][0]["window"] >= AT_ONCE
