"""The bench's provider, over ASGI messages."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from gateway.workbench.bench.http_provider import BenchProvider

TRAITS = {"shape": "knee", "base_s": 0.01, "prompt_token_s": 0, "output_token_s": 0, "noise": 0}
RARE_S = 60.0  # between two events of a stream


class Caller:
    """One ASGI request; it stays connected until `leave` is set."""

    def __init__(self, method: str, path: str, body: Any) -> None:
        self.scope = {"type": "http", "method": method, "path": path, "headers": []}
        self.leave = asyncio.Event()
        self.begun = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self._body: bytes | None = json.dumps(body).encode()

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        self.begun.set()

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


async def call(provider: BenchProvider, method: str, path: str, body: Any = None) -> Caller:
    caller = Caller(method, path, body)
    await provider(caller.scope, caller.receive, caller.send)
    return caller


async def planned(**traits: Any) -> BenchProvider:
    """A provider with one request of 10 and 20 tokens, `r0`, and rare events."""
    provider = BenchProvider(event_s=RARE_S)
    body = {"traits": TRAITS | traits, "requests": {"r0": [10, 20, 0.0]}}
    await call(provider, "PUT", "/bench", body)
    return provider


def chat(stream: bool = False) -> dict[str, Any]:
    options = {"include_usage": True} if stream else None
    return {"metadata": {"bench": "r0"}, "stream": stream, "stream_options": options}


def test_answer_has_the_length_of_the_plan() -> None:
    """The usage of an answer is the table's, streamed and not."""

    async def both() -> None:
        provider = await planned()
        for stream in (False, True):
            text = (await call(provider, "POST", "/v1/chat/completions", chat(stream))).text
            assert '"completion_tokens":20' in text
            assert text.endswith("data: [DONE]\n\n") is stream
        assert provider.served == 2

    asyncio.run(both())


def test_stream_ends_when_its_answer_has_ended() -> None:
    """An answer of 30 ms does not wait until its next event would be due."""

    async def one() -> float:
        provider = await planned(output_token_s=0.001)
        started = time.monotonic()
        await call(provider, "POST", "/v1/chat/completions", chat(stream=True))
        return time.monotonic() - started

    assert asyncio.run(one()) < RARE_S / 2


def test_client_that_leaves_frees_its_place() -> None:
    """The stream is cancelled at the provider as soon as its client is gone."""

    async def one() -> float:
        provider = await planned(output_token_s=1000.0)
        caller = Caller("POST", "/v1/chat/completions", chat(stream=True))
        running = asyncio.ensure_future(provider(caller.scope, caller.receive, caller.send))
        await caller.begun.wait()
        started = time.monotonic()
        caller.leave.set()
        await running
        assert provider.left == 1
        state = json.loads((await call(provider, "GET", "/bench")).text)
        assert state["inflight"] == 0
        return time.monotonic() - started

    assert asyncio.run(one()) < RARE_S / 2


def test_limit_answers_429_with_its_wait() -> None:
    """A provider with a limit of one request a minute refuses the second."""

    async def two() -> None:
        provider = await planned(rpm=1, reject_s=0.0)
        await call(provider, "POST", "/v1/chat/completions", chat())
        refused = await call(provider, "POST", "/v1/chat/completions", chat())
        start = refused.sent[0]
        assert start["status"] == 429
        assert b"retry-after-ms" in dict(start["headers"])

    asyncio.run(two())
