"""What is counted and written down of requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from gateway.engine.exchange import WORD_CHARS
from tests.kit import steps
from tests.kit.gateway import GatewayProcess
from tests.kit.provider import ScriptedProvider
from tests.kit.steps import EVENTS, Head, Respond, Send, chunk, event

Start = Callable[..., GatewayProcess]
CHAT = "/v1/chat/completions"


def body(**more: Any) -> dict[str, Any]:
    return {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}], **more}


def test_words_of_a_provider_are_cut_before_they_are_kept(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A finish reason and an error code of 100,000 characters reach the client whole, and log and
    events as their beginnings."""
    long = "x" * 100_000
    gateway = start_gateway(provider)
    done = steps.completion("Hi.", (9, 3))
    done["choices"][0]["finish_reason"] = long
    failed = [event(chunk({"content": "a"})), event({"error": {"message": "no", "code": long}})]
    provider.enqueue([Respond(json=done)], [Head(headers=EVENTS), *map(Send, failed)])
    with httpx.Client(headers=gateway.headers) as client:
        assert long in client.post(gateway.url(CHAT), json=body()).text
        assert long in client.post(gateway.url(CHAT), json=body(stream=True)).text
        told = client.get(gateway.url("/events"), headers=gateway.admin_headers).json()["events"]
    gateway.stop()
    finished, broken = [line for line in gateway.log if line.get("msg") == "request"]
    assert finished["finish_reason"] == long[:WORD_CHARS]
    assert broken["error_code"] == long[:WORD_CHARS]
    assert told[-1]["detail"]["error_code"] == long[:WORD_CHARS]
