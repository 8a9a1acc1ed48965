"""The load: bare Protocol clients in a process of their own, as cheap as they can be.

Two shapes. Closed loop: `--concurrency` connections, each sends its next request when the
last is answered: how much fits through. Open loop: requests leave at `--rate` a second
whatever comes back (Poisson gaps), each timed from the moment in which it *should* have
left, so that a stall is not hidden by the generator waiting for it (coordinated omission).

Every request has a prompt of its own, drawn from a seeded generator, so that no cache
along the way answers for the work measured. The generator reports its own CPU share: well
below 1.0 it was not the bottleneck. Prints one JSON object, or writes it to `--out`: with every
single time it is megabytes long, and a line of that length does not pass every pipe whole.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

WORDS = (
    "river signal copper garden window history market silver theory engine planet village "
    "bridge winter letter music pattern ocean forest journey tower lantern harvest mirror"
)
FORMS = (
    "Explain how {} and {} are related to {}.",
    "In one word: does {} need {} more than {}?",
    "List 5 reasons why {} changed {} before {}.",
    "Write a short essay about {}, {} and {}.",
    "What would {} be without {} or {}?",
)
WARM_UP_S = 1.0


def requests(host: str, key: str, model: str, stream: bool, seed: int) -> Iterator[bytes]:
    """Endless distinct requests, as bytes."""
    chance, number, words = random.Random(seed), 0, WORDS.split()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
        "content-type: application/json\r\ncontent-length: "
    ).encode()
    around = json.dumps({"model": model, "stream": stream, "messages": "@"}).encode().split(b'"@"')
    while True:
        number += 1
        text = chance.choice(FORMS).format(*chance.sample(words, 3)) + f" ({seed}-{number})"
        messages = b'[{"role": "user", "content": "' + text.encode() + b'"}]'
        body = around[0] + messages + around[1]
        yield head + str(len(body)).encode() + b"\r\n\r\n" + body


class Hearer(Protocol):
    """Whose connections they are."""

    def answered(self, connection: Connection, ok: bool) -> None: ...

    def lost(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """One request at a time; tells `load` when the first bytes and the whole are here."""

    def __init__(self, load: Hearer) -> None:
        self._load = load
        self._buffer = b""
        self.due_s = 0.0
        self.first_s = 0.0
        self.lost = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    @property
    def answer(self) -> bytes:
        """Result of the last request, so far."""
        return self._buffer

    def send(self, data: bytes, due_s: float) -> None:
        self.due_s, self.first_s, self._buffer = due_s, 0.0, b""
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if self.first_s == 0.0 and self._body_began():
            self.first_s = time.perf_counter()
        if self._whole():
            self._load.answered(self, self._buffer.startswith(b"HTTP/1.1 200"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._load.lost(self)

    def _body_began(self) -> bool:
        head_end = self._buffer.find(b"\r\n\r\n")
        return head_end >= 0 and len(self._buffer) > head_end + 4

    def _whole(self) -> bool:
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return False
        head = self._buffer[:head_end].lower()
        at = head.find(b"content-length:")
        if at >= 0:
            length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            return len(self._buffer) >= head_end + 4 + length
        return self._buffer.endswith(b"0\r\n\r\n")


class Load:
    """A run against one address; the same measuring for both loops."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._o = options
        self._requests = requests(
            f"{options.host}:{options.port}", options.key, options.model, options.stream,
            options.seed,
        )  # fmt: skip
        self._total_s: list[float] = []
        self._first_s: list[float] = []
        self._failed = 0
        self._answered = 0  # warm-up and all
        self._measuring = False
        self._running = True
        self._idle: deque[Connection] = deque()
        self._waiting: deque[float] = deque()  # open loop: due times without a connection
        self._connections = 0

    async def run(self) -> dict[str, Any]:
        for _ in range(self._o.concurrency):
            await self._connect()
        began = asyncio.create_task(self._open()) if self._o.rate else None
        if began is None:
            while self._idle:
                self._next(self._idle.popleft(), time.perf_counter())
        await asyncio.sleep(WARM_UP_S)
        self._measuring, cpu_s, from_s = True, time.process_time(), time.perf_counter()
        await asyncio.sleep(self._o.seconds)
        self._measuring, self._running = False, False
        wall_s = time.perf_counter() - from_s
        cpu_share = (time.process_time() - cpu_s) / wall_s
        if began is not None:
            began.cancel()
        return self._report(wall_s, cpu_share)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self), self._o.host, self._o.port
        )
        self._connections += 1
        self._idle.append(connection)

    async def _open(self) -> None:
        """Send on time; where no connection is idle the request waits, its clock running."""
        chance = random.Random(self._o.seed)
        due = time.perf_counter()
        while True:
            due += chance.expovariate(self._o.rate)
            pause = due - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            if self._idle:
                self._next(self._idle.popleft(), due)
            else:
                self._waiting.append(due)

    def _next(self, connection: Connection, due_s: float) -> None:
        connection.send(next(self._requests), due_s)

    def answered(self, connection: Connection, ok: bool) -> None:
        now = time.perf_counter()
        self._answered += 1
        if self._measuring:
            self._failed += not ok
            if ok:
                self._total_s.append(now - connection.due_s)
                self._first_s.append(connection.first_s - connection.due_s)
        if not self._running:
            return
        if not self._o.rate:
            self._next(connection, now)
        elif self._waiting:
            self._next(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        if self._running:
            self._connections -= 1
            self._failed += 1
            if connection in self._idle:
                self._idle.remove(connection)

    def _report(self, wall_s: float, cpu_share: float) -> dict[str, Any]:
        return {
            "requests": len(self._total_s),
            "failed": self._failed,
            "answered": self._answered,
            "per_s": len(self._total_s) / wall_s,
            "total_ms": quantiles(self._total_s),
            "first_ms": quantiles(self._first_s),
            "unsent": len(self._waiting),
            "cpu_share": cpu_share,
            **({"all_ms": self._all_ms()} if self._o.all else {}),
        }

    def _all_ms(self) -> dict[str, list[float]]:
        """Every single time, for whoever pools several runs."""
        both = (("total_ms", self._total_s), ("first_ms", self._first_s))
        return {name: [round(1000 * s, 3) for s in seconds] for name, seconds in both}


def quantiles(seconds: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds, by linear interpolation; empty gives NaN."""
    ordered = sorted(seconds)

    def at(q: float) -> float:
        if not ordered:
            return float("nan")
        place = q * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return 1000 * (ordered[low] + (place - low) * (ordered[high] - ordered[low]))

    return {"p50": at(0.5), "p99": at(0.99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", default="none")
    parser.add_argument("--model", default="mock-model")
    parser.add_argument("--concurrency", type=int, default=16, help="connections")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: closed loop")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="report every single time, too")
    parser.add_argument("--out", type=Path, help="a file for the report")
    options = parser.parse_args()
    import uvloop

    report = json.dumps(uvloop.run(Load(options).run()))
    if options.out is None:
        print(report)
    else:
        options.out.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
