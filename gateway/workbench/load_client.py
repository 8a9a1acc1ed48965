"""Open-loop load over real HTTP: requests leave when they are due, whatever comes back.

Each is timed from the moment at which it should have left, so that a stall of the target or of
this process is part of the latency and not hidden by it (coordinated omission). Their lateness is
reported beside it, and the share of a core that this process used: near 1 the load measured
itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import httpx
import msgspec
from msgspec import Struct

from gateway.upstream.connection_pool import (
    ConnectFailed,
    ConnectionPool,
    OutOfDescriptors,
)
from gateway.upstream.provider_connection import (
    ConnectionBroken,
    FirstByteTimeout,
    ProviderConnection,
)
from gateway.upstream.request_head import Origin, first_lines, last_lines
from gateway.workbench.figures import NAN

TIMEOUT_S = 1800.0


class PlannedRequest(Struct, frozen=True):
    """One request, due `at_s` seconds after the start."""

    at_s: float
    body: bytes


class RequestTiming(Struct):
    """Outcome of one request, in seconds since the start; NaN where it never got so far."""

    planned: PlannedRequest
    left_s: float = NAN
    first_s: float = NAN  # the first byte
    ended_s: float = NAN
    status: int = 0  # 0: no answer
    is_complete: bool = False  # 200, and to its end without an error
    output_tokens: int | None = None  # by the answer's usage
    error: str = ""

    @property
    def latency_s(self) -> float:
        """Seconds from when it was due to its end."""
        return self.ended_s - self.planned.at_s

    @property
    def late_s(self) -> float:
        """Seconds by which it left later than due."""
        return self.left_s - self.planned.at_s


class LoadRun(Struct):
    """All timings, in the order of the requests."""

    timings: list[RequestTiming]
    wall_s: float
    cpu_share: float  # of one core, of this process


async def send_all(
    url: str,
    requests: Sequence[PlannedRequest],
    headers: dict[str, str],
    ended: Callable[[], None] = lambda: None,
    timeout_s: float = TIMEOUT_S,
) -> LoadRun:
    """Send every request when it is due; `ended` is called as each ends."""
    timings = [RequestTiming(request) for request in requests]
    pool = ConnectionPool()
    target = _Target(httpx.URL(url), headers, timeout_s)
    try:
        start_s, cpu_s = time.perf_counter(), time.process_time()
        tasks = []
        for timing in timings:
            pause_s = start_s + timing.planned.at_s - time.perf_counter()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            tasks.append(asyncio.ensure_future(_send(pool, target, timing, start_s, ended)))
        await asyncio.gather(*tasks)
        wall_s = time.perf_counter() - start_s
    finally:
        await pool.aclose()
    return LoadRun(timings, wall_s, (time.process_time() - cpu_s) / wall_s if wall_s else 0.0)


class _Target:
    """The endpoint, as each request needs it."""

    def __init__(self, url: httpx.URL, headers: dict[str, str], timeout_s: float) -> None:
        self.origin = Origin.of(url)
        self.timeout_s = timeout_s
        lines = [
            (name.lower().encode("ascii"), value.encode("latin-1"))
            for name, value in {"content-type": "application/json", **headers}.items()
        ]
        self.first_lines = first_lines(self.origin, "POST", url.raw_path, lines)


async def _send(
    pool: ConnectionPool,
    target: _Target,
    timing: RequestTiming,
    start_s: float,
    ended: Callable[[], None],
) -> None:
    timing.left_s = time.perf_counter() - start_s
    connection: ProviderConnection | None = None
    body = timing.planned.body
    try:
        async with asyncio.timeout(target.timeout_s):
            connection = await pool.request(
                target.origin,
                "POST",
                target.first_lines + last_lines("POST", (), len(body)),
                body,
                connect_timeout_s=target.timeout_s,
                first_byte_timeout_s=target.timeout_s,
            )
            await _read(connection, timing, start_s)
    except (ConnectFailed, ConnectionBroken, FirstByteTimeout, OutOfDescriptors, OSError) as error:
        timing.error = f"{type(error).__name__}: {error}"[:200]
        if connection is not None:
            connection.abort()
    timing.ended_s = time.perf_counter() - start_s
    ended()


async def _read(connection: ProviderConnection, timing: RequestTiming, start_s: float) -> None:
    timing.status, headers = connection.status, connection.headers
    tail = b""
    while chunk := await connection.read_some():
        if timing.first_s != timing.first_s:
            timing.first_s = time.perf_counter() - start_s
        tail = (tail + chunk)[-4096:]
    timing.is_complete = timing.status == 200 and _has_end(headers, tail)
    timing.output_tokens = _usage(tail)
    if not timing.is_complete:
        timing.error = tail[-200:].decode(errors="replace")


def _has_end(headers: list[tuple[bytes, bytes]], tail: bytes) -> bool:
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    if kind.startswith(b"text/event-stream"):
        return tail.rstrip().endswith(b"data: [DONE]") and b'"error":' not in tail
    return True


def _usage(tail: bytes) -> int | None:
    at = tail.rfind(b'"completion_tokens":')
    if at < 0:
        return None
    digits = tail[at + 20 : at + 40].split(b",")[0].split(b"}")[0].strip()
    return int(digits) if digits.isdigit() else None


def chat_body(
    model: str,
    messages: object,
    *,
    stream: bool,
    bench: str | None = None,
    max_tokens: int | None = None,
) -> bytes:
    """A chat request as bytes; a stream ends with its usage.

    Args:
        bench: the request's number in the table of the bench's provider.
    """
    body: dict[str, object] = {"model": model, "messages": messages, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if bench is not None:
        body["metadata"] = {"bench": bench}
    return msgspec.json.encode(body)
