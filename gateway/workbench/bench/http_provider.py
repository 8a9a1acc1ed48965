"""The simulated provider behind real HTTP, in a process of its own.

`sagesched bench` measures the gateway's sockets, parsing and predictor along with its decisions,
so its provider must be real as well, and the same for every policy:

1. It is simulated_provider.py on a clock that runs `scale` times as fast as the wall's. One timer
   waits for the next step of any stream; nothing polls.
2. The length and noise of an answer stand in a table that the bench sends before a run, by the
   request's number in `metadata`. So a length is the row's true one under every policy, and is
   never read from the text. The gateway does not read `metadata`.
3. A client that leaves frees its place at once.

    PUT /bench   {"traits": {...}, "scale": 5, "requests": {"r0": [prompt, output, z], ...}}
    GET /bench   {"inflight", "peak", "served", "left", "rejected", "cpu_s"}
    POST /v1/chat/completions   streamed or not; 429 with Retry-After where a limit says so
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import msgspec
import uvicorn
from msgspec import Struct

from gateway.demo.asgi import Client, Receive, Scope, Send
from gateway.types import RateLimits
from gateway.workbench.simulate.simulated_provider import (
    ProviderTraits,
    Rejection,
    SimulatedProvider,
)

EVENT_S = 0.25  # between two events of a stream, on the wall's clock
WORD = "word "
HEAD: dict[str, Any] = {
    "id": "chatcmpl-bench",
    "object": "chat.completion.chunk",
    "created": 1_760_000_000,
    "model": "m",
}


class ProviderPlan(Struct):
    """The body of PUT /bench."""

    traits: ProviderTraits
    requests: dict[str, tuple[int, int, float]]  # prompt tokens, output tokens, z
    scale: float = 1.0


class _Metadata(Struct):
    bench: str


class _StreamOptions(Struct):
    include_usage: bool = False


class _ChatBody(Struct):
    metadata: _Metadata
    stream: bool = False
    stream_options: _StreamOptions | None = None


class _RunningStream:
    """The moments of one answer under way."""

    __slots__ = ("ended", "first")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()


class BenchProvider:
    """The ASGI application; `event_s` is the time between two events of a stream."""

    def __init__(self, event_s: float = EVENT_S) -> None:
        self._event_s = event_s
        self._plan = ProviderPlan(ProviderTraits(), {})
        self._provider = SimulatedProvider(ProviderTraits(), self._now())
        self._streams: dict[str, _RunningStream] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._counter = 0
        self.served = self.left = self.peak = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = Client(scope, receive, send)
        body = await client.body()
        try:
            if client.path == "/bench":
                if client.method == "PUT":
                    self._start(msgspec.json.decode(body, type=ProviderPlan))
                await client.json(200, self._state())
            elif client.path == "/v1/chat/completions":
                await self._answer(client, msgspec.json.decode(body, type=_ChatBody))
            else:
                await client.json(404, {"error": {"message": "no such route"}})
        finally:
            client.forget()

    def _start(self, plan: ProviderPlan) -> None:
        """Begin with a fresh provider; the streams of the one before must have ended."""
        if self._streams:
            raise RuntimeError("streams of the last run have not ended")
        self._plan = plan
        self._provider = SimulatedProvider(plan.traits, self._now())
        self.served = self.left = self.peak = 0

    def _state(self) -> dict[str, float]:
        return {
            "inflight": self._provider.inflight,
            "peak": self.peak,
            "served": self.served,
            "left": self.left,
            "rejected": self._provider.rejected,
            "cpu_s": time.process_time(),
        }

    def _now(self) -> float:
        """Seconds on the provider's own clock."""
        return time.monotonic() * self._plan.scale

    # -- one answer --------------------------------------------------------------------------

    async def _answer(self, client: Client, body: _ChatBody) -> None:
        planned = self._plan.requests.get(body.metadata.bench)
        if planned is None:
            await client.json(400, {"error": {"message": "not planned", "code": "unknown"}})
            return
        prompt, output, z = planned
        self._counter += 1
        stream_id = f"{body.metadata.bench}/{self._counter}"  # a retry is a stream of its own
        rejection = self._provider.offer(stream_id, prompt, output, z, self._now())
        if rejection is not None:
            await self._reject(client, rejection)
            return
        stream = self._streams[stream_id] = _RunningStream(asyncio.get_running_loop())
        self.peak = max(self.peak, self._provider.inflight)
        self._arm()
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
        }
        try:
            deliver = self._deliver_stream if body.stream else self._deliver_at_once
            if await deliver(client, body, stream, usage):
                self.served += 1
            else:
                self.left += 1
        finally:
            if not stream.ended.done():
                self._provider.cancel(stream_id, self._now())
                self._arm()
            del self._streams[stream_id]

    async def _deliver_at_once(
        self, client: Client, body: _ChatBody, stream: _RunningStream, usage: dict[str, int]
    ) -> bool:
        """Send the answer when it has ended; False where the client left first."""
        if not await client.stays_until(stream.ended):
            return False
        message = {"role": "assistant", "content": WORD * min(usage["completion_tokens"], 64)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {**HEAD, "object": "chat.completion", "choices": [choice], "usage": usage}
        await client.json(200, answer, self._headers())
        return True

    async def _deliver_stream(
        self, client: Client, body: _ChatBody, stream: _RunningStream, usage: dict[str, int]
    ) -> bool:
        """Send an event now and then until the answer has ended; False where the client left."""
        if not await client.stays_until(stream.first):
            return False
        await client.begin(200, {"content-type": "text/event-stream", **self._headers()})
        await client.write(_chunk({"role": "assistant", "content": WORD}))
        while not stream.ended.done():
            if not await client.stays_until(stream.ended, self._event_s):
                return False
            await client.write(_chunk({"content": WORD}))
        await client.write(_chunk({}, "stop"))
        if body.stream_options is not None and body.stream_options.include_usage:
            await client.write(_event({**HEAD, "choices": [], "usage": usage}))
        await client.write(b"data: [DONE]\n\n", more=False)
        return True

    async def _reject(self, client: Client, rejection: Rejection) -> None:
        await asyncio.sleep(self._plan.traits.reject_s / self._plan.scale)
        headers = self._headers()
        if rejection.retry_after_s is not None:
            wait_s = rejection.retry_after_s / self._plan.scale
            headers["retry-after-ms"] = str(max(1, round(wait_s * 1000)))
        error = {
            "message": "Rate limit reached.",
            "type": "requests",
            "code": "rate_limit_exceeded",
        }
        await client.json(429, {"error": error}, headers)

    def _headers(self) -> dict[str, str]:
        limits = self._provider.limits(self._now())
        return {} if limits is None else _limit_headers(limits, self._plan.scale)

    # -- the one timer -----------------------------------------------------------------------

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self._provider.next_s
        if due_s != float("inf"):
            delay_s = max(0.0, due_s - self._now()) / self._plan.scale
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._step)

    def _step(self) -> None:
        """Take every step that is due by now, each at its own time."""
        self._timer = None
        while self._provider.next_s <= self._now():
            step = self._provider.step(self._provider.next_s)
            stream = self._streams.get(step.id)
            if stream is None:
                continue
            for moment in (stream.first, *([stream.ended] if step.ended else [])):
                if not moment.done():
                    moment.set_result(None)
        self._arm()


def _event(tree: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(tree) + b"\n\n"


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    return _event({**HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _limit_headers(limits: RateLimits, scale: float) -> dict[str, str]:
    """OpenAI's headers; a minute of the provider is a `scale`-th of a minute here."""
    headers = {}
    for kind, limit, left, reset_s in (
        ("requests", limits.limit_requests, limits.remaining_requests, limits.reset_requests_s),
        ("tokens", limits.limit_tokens, limits.remaining_tokens, limits.reset_tokens_s),
    ):
        if limit is not None and left is not None and reset_s is not None:
            headers[f"x-ratelimit-limit-{kind}"] = str(round(limit * scale))
            headers[f"x-ratelimit-remaining-{kind}"] = str(left)
            headers[f"x-ratelimit-reset-{kind}"] = f"{reset_s / scale:.3f}s"
    return headers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: all that the provider needs comes by PUT /bench."""


def run(args: argparse.Namespace) -> int:
    """Serve on a free port until standard input closes; print the port as one JSON line."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    server = uvicorn.Server(
        uvicorn.Config(BenchProvider(), lifespan="off", log_level="error", access_log=False)
    )
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    sys.stdout.write(json.dumps({"port": listener.getsockname()[1]}) + "\n")
    sys.stdout.flush()
    server.run(sockets=[listener])
    return 0


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
