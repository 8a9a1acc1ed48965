"""The simulated provider (simulate_provider.py) behind real HTTP, in a process of its own.

`sagesched bench` measures the gateway's sockets, parsing and predictor along with its
decisions, so the provider has to be real as well, and must be the same for every policy:

1. Its physics are the simulator's own, on a clock that runs `scale` times as fast as the
   wall's. One timer stands for the next step of any stream; nothing polls.
2. How long an answer is, and its noise, stand in a table that the bench sends before a run, by
   a request's number in `metadata`. So an answer's length is the row's true one, never read
   from the text, and the same under every policy. Nothing of the gateway reads `metadata`.
3. A client that leaves frees its place at once, as on a server that notices.

    PUT /bench   {"nature": {...}, "scale": 5, "requests": {"r0": [prompt, output, z], ...}}
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
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import uvicorn
from msgspec import Struct

from gateway.types import RateLimits
from gateway.workbench.simulate.simulated_provider import (
    ProviderTraits,
    Rejection,
    SimulatedProvider,
)

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

EVENT_S = 0.25  # between two events of a stream, on the wall's clock
WORD = "word "


class Planned(Struct):
    """PUT /bench."""

    traits: ProviderTraits
    requests: dict[str, tuple[int, int, float]]  # prompt tokens, output tokens, z
    scale: float = 1.0


class _Metadata(Struct):
    bench: str


class _Options(Struct):
    include_usage: bool = False


class _Asked(Struct):
    metadata: _Metadata
    stream: bool = False
    stream_options: _Options | None = None


class _Stream:
    """One answer under way."""

    __slots__ = ("ended", "first")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()


class BenchProvider:
    """The ASGI application."""

    def __init__(self) -> None:
        self._planned = Planned(ProviderTraits(), {})
        self._provider = SimulatedProvider(ProviderTraits(), self._now())
        self._streams: dict[str, _Stream] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._counter = 0
        self.served = self.left = self.peak = 0

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if scope["path"] == "/bench":
            if scope["method"] == "PUT":
                self._plan(msgspec.json.decode(body, type=Planned))
            await _json(send, 200, self._state())
        elif scope["path"] == "/v1/chat/completions":
            await self._answer(msgspec.json.decode(body, type=_Asked), receive, send)
        else:
            await _json(send, 404, {"error": {"message": "no such route", "code": "not_found"}})

    def _plan(self, planned: Planned) -> None:
        """A new provider. Streams of the one before must have ended."""
        if self._streams:
            raise RuntimeError("streams of the last run have not ended")
        self._planned = planned
        self._provider = SimulatedProvider(planned.traits, self._now())
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
        return time.monotonic() * self._planned.scale

    # -- one answer ----------------------------------------------------------------------------

    async def _answer(self, asked: _Asked, receive: Receive, send: Send) -> None:
        known = self._planned.requests.get(asked.metadata.bench)
        if known is None:
            await _json(send, 400, {"error": {"message": "not planned", "code": "unknown"}})
            return
        prompt, output, z = known
        self._counter += 1
        stream_id = f"{asked.metadata.bench}/{self._counter}"  # a retry is a stream of its own
        rejected = self._provider.offer(stream_id, prompt, output, z, self._now())
        if rejected is not None:
            await self._reject(rejected, send)
            return
        stream = self._streams[stream_id] = _Stream(asyncio.get_running_loop())
        self.peak = max(self.peak, self._provider.inflight)
        self._arm()
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            if await self._deliver(asked, stream, gone, prompt, output, send):
                self.served += 1
            else:
                self.left += 1
        finally:
            gone.cancel()
            if not stream.ended.done():
                self._provider.cancel(stream_id, self._now())
                self._arm()
            del self._streams[stream_id]

    async def _deliver(
        self,
        asked: _Asked,
        stream: _Stream,
        gone: asyncio.Future[None],
        prompt: int,
        output: int,
        send: Send,
    ) -> bool:
        """False when the client left first."""
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
        }
        if not asked.stream:
            if not await _sooner(stream.ended, gone):
                return False
            message = {"role": "assistant", "content": WORD * min(output, 64)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            whole = {**_HEAD, "object": "chat.completion", "choices": [choice], "usage": usage}
            await _json(send, 200, whole, self._headers())
            return True
        if not await _sooner(stream.first, gone):
            return False
        await _begin(send, 200, b"text/event-stream", self._headers())
        await _event(send, _chunk({"role": "assistant", "content": WORD}))
        while not stream.ended.done():
            await asyncio.wait({stream.ended, gone}, timeout=EVENT_S)
            if gone.done():
                return False
            await _event(send, _chunk({"content": WORD}))
        await _event(send, _chunk({}, "stop"))
        if asked.stream_options is not None and asked.stream_options.include_usage:
            await _event(send, {**_HEAD, "choices": [], "usage": usage})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        return True

    async def _reject(self, rejected: Rejection, send: Send) -> None:
        await asyncio.sleep(self._planned.traits.reject_s / self._planned.scale)
        headers = self._headers()
        if rejected.retry_after_s is not None:
            wait_s = rejected.retry_after_s / self._planned.scale
            headers.append((b"retry-after-ms", str(max(1, round(wait_s * 1000))).encode()))
        error = {
            "message": "Rate limit reached.",
            "type": "requests",
            "code": "rate_limit_exceeded",
        }
        await _json(send, 429, {"error": error}, headers)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        limits = self._provider.limits(self._now())
        return [] if limits is None else _told(limits, self._planned.scale)

    # -- the one timer -------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self._provider.next_s
        if due_s != float("inf"):
            delay_s = max(0.0, due_s - self._now()) / self._planned.scale
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._step)

    def _step(self) -> None:
        """Every step that is due by now, each at its own time."""
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


_HEAD: dict[str, Any] = {
    "id": "chatcmpl-bench",
    "object": "chat.completion.chunk",
    "created": 1_760_000_000,
    "model": "m",
}


def _chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {**_HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def _told(limits: RateLimits, scale: float) -> list[tuple[bytes, bytes]]:
    """As OpenAI's headers. A limit a minute is one a `scale`-th of a minute here."""
    found = []
    for kind, limit, left, reset_s in (
        ("requests", limits.limit_requests, limits.remaining_requests, limits.reset_requests_s),
        ("tokens", limits.limit_tokens, limits.remaining_tokens, limits.reset_tokens_s),
    ):
        if limit is not None and left is not None and reset_s is not None:
            found += [
                (f"x-ratelimit-limit-{kind}", str(round(limit * scale))),
                (f"x-ratelimit-remaining-{kind}", str(left)),
                (f"x-ratelimit-reset-{kind}", f"{reset_s / scale:.3f}s"),
            ]
    return [(name.encode(), value.encode()) for name, value in found]


async def _sooner(wanted: asyncio.Future[None], gone: asyncio.Future[None]) -> bool:
    await asyncio.wait({wanted, gone}, return_when=asyncio.FIRST_COMPLETED)
    return wanted.done()


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _begin(
    send: Send, status: int, kind: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    all_headers = [(b"content-type", kind), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})


async def _event(send: Send, tree: dict[str, Any]) -> None:
    data = b"data: " + msgspec.json.encode(tree) + b"\n\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _json(
    send: Send, status: int, tree: Any, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = msgspec.json.encode(tree)
    length = [(b"content-length", str(len(body)).encode()), *(headers or [])]
    await _begin(send, status, b"application/json", length)
    await send({"type": "http.response.body", "body": body})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: all it needs comes by PUT /bench."""


def run(args: argparse.Namespace) -> int:
    """Serve on a free port until standard input closes; prints the port as one JSON line."""
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
