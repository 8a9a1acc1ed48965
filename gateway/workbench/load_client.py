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

import aiohttp
import msgspec
from msgspec import Struct

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
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers, trust_env=False
    ) as session:
        start_s, cpu_s = time.perf_counter(), time.process_time()
        tasks = []
        for timing in timings:
            pause_s = start_s + timing.planned.at_s - time.perf_counter()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            tasks.append(asyncio.ensure_future(_send(session, url, timing, start_s, ended)))
        await asyncio.gather(*tasks)
        wall_s = time.perf_counter() - start_s
    return LoadRun(timings, wall_s, (time.process_time() - cpu_s) / wall_s if wall_s else 0.0)


async def _send(
    session: aiohttp.ClientSession,
    url: str,
    timing: RequestTiming,
    start_s: float,
    ended: Callable[[], None],
) -> None:
    timing.left_s = time.perf_counter() - start_s
    try:
        async with session.post(url, data=timing.planned.body) as response:
            timing.status = response.status
            tail = b""
            async for chunk in response.content.iter_any():
                if timing.first_s != timing.first_s:
                    timing.first_s = time.perf_counter() - start_s
                tail = (tail + chunk)[-4096:]
            timing.is_complete = response.status == 200 and _has_end(response, tail)
            timing.output_tokens = _usage(tail)
            if not timing.is_complete:
                timing.error = tail[-200:].decode(errors="replace")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        timing.error = f"{type(error).__name__}: {error}"[:200]
    timing.ended_s = time.perf_counter() - start_s
    ended()


def _has_end(response: aiohttp.ClientResponse, tail: bytes) -> bool:
    if response.content_type == "text/event-stream":
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
