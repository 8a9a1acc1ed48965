"""The load: bare Protocol clients in a process of their own, as cheap as they can be.

Two shapes. Closed loop: `--concurrency` connections, each sends its next request when the
last is answered: how much fits through. Open loop: requests leave at `--rate` a second
whatever comes back (Poisson gaps), each timed from the moment in which it *should* have
left, so that a stall is not hidden by the generator waiting for it (coordinated omission).

`per_s` counts answers in the measured seconds. `each_per_s` adds the connections' own rates, from
the first request to the end of the last answer, which is awaited: streams that all begin at once
end in waves, and a count over some seconds would catch a wave more or less.

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
from contextlib import suppress
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
PATIENCE_S = 20.0  # for the last answers
WORD = b'"delta": {"content"'


def requests(options: argparse.Namespace) -> Iterator[bytes]:
    """Endless distinct requests, as bytes."""
    chance, number, words = random.Random(options.seed), 0, WORDS.split()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {options.host}:{options.port}\r\n"
        f"authorization: Bearer {options.key}\r\ncontent-type: application/json\r\n"
        "content-length: "
    ).encode()
    tree = {"model": options.model, "stream": options.stream, "messages": "@"}
    if options.pace:
        tree["user"] = f"pace-{options.pace}"
    around = json.dumps(tree).encode().split(b'"@"')
    while True:
        number += 1
        text = chance.choice(FORMS).format(*chance.sample(words, 3)) + f" ({options.seed}-{number})"
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
        self.answers = 0
        self.last_s = 0.0  # end of the last answer
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
        self._requests = requests(options)
        self._total_s: list[float] = []
        self._first_s: list[float] = []
        self._failed = 0
        self._answered = 0  # warm-up and all
        self._cut = 0
        self._measuring = False
        self._running = True
        self._ending = False  # no further request leaves
        self._connections: list[Connection] = []
        self._idle: deque[Connection] = deque()
        self._waiting: deque[float] = deque()  # open loop: due times without a connection
        self._under_way = 0
        self._quiet = asyncio.Event()  # nothing is under way any more

    async def run(self) -> dict[str, Any]:
        for _ in range(self._o.concurrency):
            await self._connect()
        began_s = time.perf_counter()
        open_loop = asyncio.create_task(self._open()) if self._o.rate else None
        if open_loop is None:
            self._start_all()
        await asyncio.sleep(self._o.warm_up)
        self._measuring, cpu_s, from_s = True, time.process_time(), time.perf_counter()
        if self._o.once:
            await self._all_answered(self._o.seconds)
        else:
            await asyncio.sleep(self._o.seconds)
        self._running = False
        self._measuring = not self._o.warm_up and open_loop is None
        wall_s = time.perf_counter() - from_s
        cpu_share = (time.process_time() - cpu_s) / wall_s
        if open_loop is not None:
            open_loop.cancel()
        await self._all_answered(PATIENCE_S)
        return self._report(began_s, wall_s, cpu_share)

    async def _all_answered(self, within_s: float) -> None:
        self._ending = True
        if self._under_way:
            with suppress(TimeoutError):  # told: what is still under way is in the report
                await asyncio.wait_for(self._quiet.wait(), within_s)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self), self._o.host, self._o.port
        )
        self._connections.append(connection)
        self._idle.append(connection)

    def _start_all(self) -> None:
        """All connections' first requests, evenly over `--spread` seconds."""
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        for number, connection in enumerate(self._connections):
            after_s = number * self._o.spread / len(self._connections)
            if after_s:
                self._under_way += 1
                loop.call_later(after_s, self._first, connection, now + after_s)
            else:
                self._next(connection, now)
        self._idle.clear()

    def _first(self, connection: Connection, due_s: float) -> None:
        self._under_way -= 1
        self._next(connection, due_s)

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
        self._under_way += 1
        connection.send(next(self._requests), due_s)

    def answered(self, connection: Connection, ok: bool) -> None:
        now = time.perf_counter()
        connection.answers += 1
        connection.last_s = now
        self._answered += 1
        if ok and self._o.words and connection.answer.count(WORD) != self._o.words:
            ok = False
            self._cut += 1
        self._failed += not ok
        if self._measuring and ok:
            self._total_s.append(now - connection.due_s)
            self._first_s.append(connection.first_s - connection.due_s)
        self._under_way -= 1
        if self._ending:
            if not self._under_way:
                self._quiet.set()
        elif not self._o.rate:
            self._next(connection, now)
        elif self._waiting:
            self._next(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        elif self._running:
            self._under_way -= 1
        if self._running:
            self._failed += 1

    def _report(self, began_s: float, wall_s: float, cpu_share: float) -> dict[str, Any]:
        each = (c.answers / (c.last_s - began_s) for c in self._connections if c.answers)
        return {
            "requests": len(self._total_s),
            "failed": self._failed,
            "answered": self._answered,
            "cut": self._cut,
            "per_s": len(self._total_s) / max(wall_s, 1e-9),
            "each_per_s": sum(each),
            "total_ms": quantiles(self._total_s),
            "first_ms": quantiles(self._first_s),
            "unsent": len(self._waiting) + self._under_way,
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
    parser.add_argument("--pace", default="", help="FIRST-GAP-EVENTS, in ms (mock_upstream.py)")
    parser.add_argument("--once", action="store_true", help="one request a connection")
    parser.add_argument("--spread", type=float, default=0.0, help="seconds over which they start")
    parser.add_argument("--words", type=int, default=0, help="events with text of a whole stream")
    parser.add_argument("--warm-up", type=float, default=WARM_UP_S)
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
