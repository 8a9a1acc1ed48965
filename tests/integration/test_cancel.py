"""A client that leaves at any moment: the provider's connection closes within 100 ms, the
permit goes back, and the request is counted as cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.kit import steps
from tests.kit.gateway import TENANT_KEY, GatewayProcess, account
from tests.kit.provider import ScriptedProvider
from tests.kit.raw import RawClient
from tests.kit.steps import EVENTS, Hang, Head, Send, Wait, chunk, event

CHAT = "/v1/chat/completions"
KEY = {"authorization": f"Bearer {TENANT_KEY}"}
WITHIN_S = 0.1
Start = Callable[..., GatewayProcess]


def body(**more: Any) -> dict[str, Any]:
    return {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}], **more}


def ask(gateway: GatewayProcess, **more: Any) -> RawClient:
    client = RawClient.to(gateway.url())
    client.request("POST", CHAT, json=body(**more), headers=KEY)
    return client


def outcome(gateway: GatewayProcess, wanted: str) -> dict[str, Any]:
    """The request's log line with that outcome."""
    return gateway.wait_log(lambda x: x.get("msg") == "request" and x.get("outcome") == wanted)


def in_flight(gateway: GatewayProcess) -> tuple[int, int]:
    """Running and waiting jobs."""
    stats = httpx.get(gateway.url("/stats"), headers=gateway.admin_headers).json()
    classes = [c for pool in stats["pools"] for c in pool["classes"].values()]
    return sum(c["running"] for c in classes), sum(c["waiting"] for c in classes)


SCRIPTS = {
    "waiting, streaming": ([Hang()], True),
    "waiting, not streaming": ([Hang()], False),
    "headers came, no event": ([Head(headers=EVENTS), Hang()], True),
    "in mid-stream": ([Send(event(chunk({"content": "a"}))), Hang()], True),
    "in mid-answer": ([Head(headers=steps.JSON), Send(b'{"choices":'), Hang()], False),
}


@pytest.mark.parametrize("phase", SCRIPTS)
@pytest.mark.parametrize("how", ["close", "reset"])
def test_leaving_client_closes_the_provider_connection(
    start_gateway: Start, provider: ScriptedProvider, phase: str, how: str
) -> None:
    """In each state of the provider its socket closes within 100 ms, and no permit or lease is
    left."""
    script, stream = SCRIPTS[phase]
    if phase == "in mid-stream":
        script = [Head(headers=EVENTS), *script]
    provider.enqueue(script)
    gateway = start_gateway(provider)
    client = ask(gateway, stream=stream)
    exchange = provider.wait_request(0)
    if phase == "in mid-stream":
        client.read_until(b'"a"')
    assert not exchange.peer_closed
    left_s = time.monotonic()
    getattr(client, how)()
    closed_s = exchange.peer_closed.wait(2.0)
    assert closed_s - left_s < WITHIN_S
    assert outcome(gateway, "cancelled")["status"] == 499
    assert in_flight(gateway) == (0, 0)


def test_leaving_client_in_the_queue_never_reaches_the_provider(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A queued request whose client left is taken out; the provider sees only the other."""
    provider.enqueue([Wait("go"), *steps.answer()])
    gateway = start_gateway(accounts=[_single(provider)])
    first = ask(gateway)
    provider.wait_request(0)
    second = ask(gateway)
    gateway_waits(gateway, 1)
    second.close()
    line = outcome(gateway, "cancelled")
    assert line["attempts"] == 0
    provider.gate("go").mark()
    assert first.read_response().status == 200
    assert len(provider.exchanges) == 1
    assert in_flight(gateway) == (0, 0)


def test_staying_client_keeps_the_provider_connection(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """The twin: while the client stays, the provider's connection stays too."""
    provider.enqueue([Head(headers=EVENTS), Send(event(chunk({"content": "a"}))), Wait("go")])
    gateway = start_gateway(provider)
    client = ask(gateway, stream=True)
    exchange = provider.wait_request(0)
    client.read_until(b'"a"')
    with pytest.raises(TimeoutError):
        exchange.peer_closed.wait(0.3)
    assert in_flight(gateway) == (1, 0)
    provider.gate("go").mark()
    client.read_until(b"\r\n0\r\n\r\n")


def _single(provider: ScriptedProvider) -> dict[str, Any]:
    return account(provider, initial_concurrency=1, max_concurrency=1)


def gateway_waits(gateway: GatewayProcess, count: int) -> None:
    """Poll /stats until so many jobs wait."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if in_flight(gateway)[1] == count:
            return
    raise AssertionError(f"{count} jobs did not come to wait")
