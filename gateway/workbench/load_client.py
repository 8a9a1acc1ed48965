"""Open-loop load over real HTTP: requests leave when they are due, whatever comes back.

Each is timed from the moment at which it *should* have left, so that a stall of the target, or
of this process, is part of the latency and not hidden by it (coordinated omission). How late
they really left is reported beside it, and the share of a core this process used: near 1 the
load measured itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import aiohttp
import msgspec
from msgspec import Struct

TIMEOUT_S = 1800.0


class Shot(Struct, frozen=True):
    """One request, due `at_s` seconds after the start."""

    at_s: float
    body: bytes
    id: str = ""


class Hit(Struct):
    """What came back. Seconds since the start; NaN where it never came so far."""

    shot: Shot
    left_s: float = float("nan")
    first_s: float = float("nan")
    ended_s: float = float("nan")
    status: int = 0  # 0: no answer
    whole: bool = False  # 200, and to its end without an error
    output_tokens: int | None = None  # as the answer's usage says
    error: str = ""

    @property
    def latency_s(self) -> float:
        return self.ended_s - self.shot.at_s

    @property
    def late_s(self) -> float:
        """How much later than due it left."""
        return self.left_s - self.shot.at_s


class Volley(Struct):
    """All hits, in the order of the shots."""

    hits: list[Hit]
    wall_s: float
    cpu_share: float


async def fire(
    url: str,
    shots: Sequence[Shot],
    headers: dict[str, str],
    told: Callable[[], None] = lambda: None,
    timeout_s: float = TIMEOUT_S,
) -> Volley:
    """Send all; `told` is called as each ends."""
    hits = [Hit(shot) for shot in shots]
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers, trust_env=False
    ) as session:
        start_s, cpu_s = time.perf_counter(), time.process_time()
        tasks = []
        for hit in hits:
            pause_s = start_s + hit.shot.at_s - time.perf_counter()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            tasks.append(asyncio.ensure_future(_one(session, url, hit, start_s, told)))
        await asyncio.gather(*tasks)
        wall_s = time.perf_counter() - start_s
    return Volley(hits, wall_s, (time.process_time() - cpu_s) / wall_s if wall_s else 0.0)


async def _one(
    session: aiohttp.ClientSession, url: str, hit: Hit, start_s: float, told: Callable[[], None]
) -> None:
    hit.left_s = time.perf_counter() - start_s
    try:
        async with session.post(url, data=hit.shot.body) as response:
            hit.status = response.status
            tail = b""
            async for chunk in response.content.iter_any():
                if hit.first_s != hit.first_s:
                    hit.first_s = time.perf_counter() - start_s
                tail = (tail + chunk)[-4096:]
            hit.whole = response.status == 200 and _is_whole(response, tail)
            hit.output_tokens = _usage(tail)
            if not hit.whole:
                hit.error = tail[-200:].decode(errors="replace")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        hit.error = f"{type(error).__name__}: {error}"[:200]
    hit.ended_s = time.perf_counter() - start_s
    told()


def _is_whole(response: aiohttp.ClientResponse, tail: bytes) -> bool:
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
    """A request's bytes; a stream ends with its usage. `bench` is its number in the table of
    the bench's provider."""
    body: dict[str, object] = {"model": model, "messages": messages, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if bench is not None:
        body["metadata"] = {"bench": bench}
    return msgspec.json.encode(body)
