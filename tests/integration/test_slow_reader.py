"""A client that reads slowly, or not at all, fills its own buffer and holds no provider slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from tests.kit import steps
from tests.kit.gateway import TENANT_KEY, GatewayProcess, account
from tests.kit.provider import ScriptedProvider
from tests.kit.raw import RawClient
from tests.kit.steps import EVENTS, Head, Send, chunk, event

CHAT = "/v1/chat/completions"
KEY = {"authorization": f"Bearer {TENANT_KEY}"}
Start = Callable[..., GatewayProcess]


def body(**more: Any) -> dict[str, Any]:
    return {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}], **more}


def long_stream(events: int, text: str = "x" * 1000) -> list[Any]:
    one = event(chunk({"content": text}))
    end = event(chunk({}, "stop")) + b"data: [DONE]\n\n"
    return [Head(headers=EVENTS), *[Send(one) for _ in range(events)], Send(end)]


def sleeper(gateway: GatewayProcess) -> RawClient:
    """A client with a tiny window that asks for a stream and reads nothing."""
    client = RawClient.to(gateway.url(), receive_buffer=4096)
    client.request("POST", CHAT, json=body(stream=True), headers=KEY)
    return client


def test_slow_reader_does_not_hold_the_slot(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """The provider's stream ends into the buffer; the only slot serves the next request
    while the sleeper still has everything to read."""
    provider.enqueue(long_stream(500))
    one = account(provider, initial_concurrency=1, max_concurrency=1)
    gateway = start_gateway(accounts=[one])
    with sleeper(gateway) as client:
        provider.wait_request(0)
        response = httpx.post(gateway.url(CHAT), json=body(), headers=KEY, timeout=5)
        assert response.status_code == 200
        assert provider.exchanges[0].finished.wait(1.0)
        rest = client.read_until(b"[DONE]", 10.0)
    assert rest.count(b"data: ") >= 500


def test_stalled_client_is_cut_off(start_gateway: Start, provider: ScriptedProvider) -> None:
    """A client that takes nothing for write_timeout_s, of an answer larger than the buffer, has its
    stream cancelled upstream, and the slot is free."""
    provider.enqueue(long_stream(2000, "x" * 10_000))
    one = account(provider, initial_concurrency=1, max_concurrency=1)
    gateway = start_gateway(
        accounts=[one],
        server={"write_timeout_s": 1.0, "stream_buffer_bytes": 65_536},
    )
    with sleeper(gateway):
        exchange = provider.wait_request(0)
        line = gateway.wait_log(lambda x: x.get("outcome") == "stalled", 10.0)
        assert line["attempts"] == 1
        exchange.peer_closed.wait(2.0)
        provider.enqueue(steps.answer())
        response = httpx.post(gateway.url(CHAT), json=body(), headers=KEY, timeout=5)
        assert response.status_code == 200


def test_slow_client_that_keeps_reading_gets_it_all(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """The twin: as long as the client takes something, nothing is cut off."""
    provider.enqueue(long_stream(3000))
    gateway = start_gateway(
        provider, server={"write_timeout_s": 1.0, "stream_buffer_bytes": 65_536}
    )
    with sleeper(gateway) as client:
        received = b""
        while b"[DONE]" not in received[-200:]:
            received += client.read_some()
    assert received.count(b"data: ") == 3002
    assert gateway.wait_log(lambda x: x.get("msg") == "request")["outcome"] == "ok"


def test_memory_stays_bounded_under_many_sleepers(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """The buffers of all streams together stay within buffer_memory_bytes."""
    provider.default = long_stream(1000, "x" * 10_000)
    gateway = start_gateway(
        provider,
        server={"stream_buffer_bytes": 1_048_576, "buffer_memory_bytes": 2_097_152},
    )
    sleepers = [sleeper(gateway) for _ in range(8)]
    try:
        for number in range(8):
            provider.wait_request(number)
        held = 0.0
        for _ in range(20):
            text = httpx.get(gateway.url("/metrics")).text
            line = next(x for x in text.splitlines() if x.startswith("sagesched_buffer_bytes "))
            held = max(held, float(line.split()[1]))
        # Each connection may go over its mark by one write.
        assert 0 < held < 2_097_152 + 9 * 65_536
    finally:
        for client in sleepers:
            client.reset()
