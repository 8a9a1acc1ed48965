"""Clients of the soak: each asks one thing after the other, at random, well and badly behaved."""

from __future__ import annotations

import argparse
import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from random import Random
from typing import NamedTuple

from tests.bench.gateways import MODEL
from tests.bench.load import WORD, Connection, requests
from tests.kit.gateway import TENANT_KEY

PATIENCE_S = 60.0
PAUSE_S = 0.2  # of a slow reader
SMALL_BUFFER = 4096
WORDS, MANY_WORDS = 21, 600
OK, LEFT, FAILED, REFUSED = "ok", "left", "failed", "refused"


class Kind(NamedTuple):
    """One sort of request.

    Args:
        share: of all, in per mille.
        ends: OK, LEFT (the client goes), FAILED (the provider does), REFUSED (a bad request).
        pace: load.py's.
        words: events with text of the whole answer.
        leaves_s: after so long, where it leaves.
    """

    share: int
    ends: str
    pace: str = ""
    words: int = 0
    leaves_s: float = 0.0
    slow: bool = False


KINDS: Mapping[str, Kind] = {
    "buffered": Kind(640, OK),
    "stream": Kind(200, OK, words=WORDS),
    "paced stream": Kind(60, OK, "5-2-21", words=WORDS),
    "slow reader": Kind(4, OK, f"1-0-{MANY_WORDS}", words=MANY_WORDS, slow=True),
    "leaves before the answer": Kind(26, LEFT, "200-0-0", leaves_s=0.01),
    "leaves in mid-stream": Kind(25, LEFT, "5-20-21", words=WORDS, leaves_s=0.04),
    "provider answers 500": Kind(8, FAILED, "fail-500"),
    "provider closes": Kind(8, FAILED, "fail-close"),
    "provider cuts a stream": Kind(9, FAILED, "fail-cut", words=WORDS),
    "bad request": Kind(20, REFUSED),
}


class Asked:
    """Requests left to send, and what became of those that were sent."""

    def __init__(self, port: int, count: int, seed: int) -> None:
        self.port = port
        self.left = count
        self.stopped = False
        self.sent: Counter[str] = Counter()  # by kind
        self.wrong: Counter[str] = Counter()  # answers that were not as they should be
        self._marks: dict[int, asyncio.Event] = {}
        self._random = Random(seed)
        self._requests = {name: self._of(name, number) for number, name in enumerate(KINDS)}

    def _of(self, name: str, number: int) -> Iterator[bytes]:
        kind = KINDS[name]
        options = argparse.Namespace(
            seed=number,
            host="127.0.0.1",
            port=self.port,
            key=TENANT_KEY,
            model=MODEL,
            stream=kind.words > 0,
            pace=kind.pace,
        )
        return requests(options)

    def mark(self, left: int) -> asyncio.Event:
        """Set as soon as no more are left."""
        mark = self._marks.setdefault(left, asyncio.Event())
        if self.left <= left:
            mark.set()
        return mark

    def stop(self) -> None:
        """Send no more."""
        self.left, self.stopped = 0, True
        for mark in self._marks.values():
            mark.set()

    def next(self) -> tuple[str, bytes] | None:
        """A kind and its request; None when all have been sent."""
        if self.left == 0:
            return None
        self.left -= 1
        if self.left in self._marks:
            self._marks[self.left].set()
        (name,) = self._random.choices(list(KINDS), [kind.share for kind in KINDS.values()])
        self.sent[name] += 1
        request = next(self._requests[name])
        if KINDS[name].ends == REFUSED:
            request = request.replace(b'"messages"', b'"massages"')
        return name, request

    def ended(self, ends: str) -> int:
        """Requests sent whose kind ends so."""
        return sum(n for name, n in self.sent.items() if KINDS[name].ends == ends)


class Client:
    """One connection at a time."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._connection: Connection | None = None
        self._over: asyncio.Future[bool] | None = None

    async def run(self) -> None:
        """Ask until all has been asked."""
        while (one := self._asked.next()) is not None:
            name, request = one
            try:
                await self._ask(name, KINDS[name], request)
            except (OSError, TimeoutError) as error:
                self._asked.wrong[f"{name}: {type(error).__name__}"] += 1
                self._drop(reset=False)
        self._drop(reset=False)

    async def _ask(self, name: str, kind: Kind, request: bytes) -> None:
        connection = self._connection or await self._connect()
        self._over = asyncio.get_running_loop().create_future()
        connection.send(request, 0.0)
        if kind.ends == LEFT:
            await asyncio.sleep(kind.leaves_s)
            self._drop(reset=self._asked.left % 2 == 0)
            return
        if kind.slow:
            connection.transport.pause_reading()
            await asyncio.sleep(PAUSE_S)
            connection.transport.resume_reading()
        ok = await asyncio.wait_for(self._over, PATIENCE_S)
        status, answer = connection.answer[9:12], connection.answer
        if kind.ends == OK and (not ok or answer.count(WORD) != kind.words):
            self._asked.wrong[f"{name}: {status.decode()}, {answer.count(WORD)} words"] += 1
        elif kind.ends in (FAILED, REFUSED) and ok and b'"error"' not in answer:
            self._asked.wrong[f"{name}: answered well"] += 1

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        here = socket.socket()
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        here.setblocking(False)
        await loop.sock_connect(here, ("127.0.0.1", self._asked.port))
        _, self._connection = await loop.create_connection(lambda: Connection(self), sock=here)
        return self._connection

    def _drop(self, *, reset: bool) -> None:
        connection, self._connection, self._over = self._connection, None, None
        if connection is not None and not connection.lost:
            if reset:
                there = connection.transport.get_extra_info("socket")
                there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.transport.abort()

    def answered(self, connection: Connection, ok: bool) -> None:
        self._end(connection, ok)

    def lost(self, connection: Connection) -> None:
        """The gateway closes after a bad request or a stream that was cut: both are an end."""
        if connection is self._connection:
            self._end(connection, False)
            self._connection = None

    def _end(self, connection: Connection, ok: bool) -> None:
        if connection is self._connection and self._over is not None and not self._over.done():
            self._over.set_result(ok)
