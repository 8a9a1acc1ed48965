"""Given requests, in order, at Poisson times, whatever comes back: open loop.

    python -m tests.bench.row_load --port N --rate 200 --file BODIES --watch PID,PID

BODIES has one request body a line. Each request finds a connection of its own, a new one where
none is idle. Prints one JSON object: the gateway's id and the status of each request, and the
share of a core that this process and each watched one took, from the first to the last send.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from pathlib import Path
from typing import Any

from tests.bench.cores import cpu_s
from tests.bench.load import Connection

IDLE = 64  # connections opened beforehand
PATIENCE_S = 120.0  # for the last answers
REQUEST_ID = re.compile(rb"\r\nx-request-id: ([!-~]+)\r\n", re.IGNORECASE)


class RowLoad:
    """One run; hears its connections."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._o = options
        bodies = Path(options.file).read_bytes().splitlines()
        self._requests = [request(options, body) for body in bodies]
        self._ids: list[str | None] = [None] * len(bodies)
        self._statuses = [0] * len(bodies)  # 0: none came
        self._asked: dict[Connection, int] = {}
        self._idle: list[Connection] = []
        self._left = len(bodies)
        self._done = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        for _ in range(IDLE):
            self._idle.append(await self._connect())
        pids = [int(pid) for pid in self._o.watch.split(",") if pid]
        began_s, own_s = time.perf_counter(), time.process_time()
        before_s = [cpu_s(pid) for pid in pids]
        await self._send_all()
        wall_s = time.perf_counter() - began_s
        shares = [(cpu_s(pid) - then) / wall_s for pid, then in zip(pids, before_s, strict=True)]
        own_share = (time.process_time() - own_s) / wall_s
        try:
            await asyncio.wait_for(self._done.wait(), PATIENCE_S)
        except TimeoutError:
            pass  # told: their status is 0
        return {
            "ids": self._ids,
            "statuses": self._statuses,
            "seconds": wall_s,
            "own_share": own_share,
            "shares": shares,
        }

    async def _send_all(self) -> None:
        chance, due, opening = random.Random(self._o.seed), time.perf_counter(), set()
        for number in range(len(self._requests)):
            due += chance.expovariate(self._o.rate)
            pause = due - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            if self._idle:
                self._ask(self._idle.pop(), number, due)
            else:
                task = asyncio.create_task(self._ask_anew(number, due))
                opening.add(task)
                task.add_done_callback(opening.discard)
        await asyncio.gather(*opening)

    async def _ask_anew(self, number: int, due: float) -> None:
        self._ask(await self._connect(), number, due)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self), "127.0.0.1", self._o.port
        )
        return connection

    def _ask(self, connection: Connection, number: int, due: float) -> None:
        self._asked[connection] = number
        connection.send(self._requests[number], due)

    def answered(self, connection: Connection, ok: bool) -> None:
        number = self._asked.pop(connection)
        self._statuses[number] = int(connection.answer[9:12])
        found = REQUEST_ID.search(connection.answer)
        self._ids[number] = found[1].decode() if found else None
        self._idle.append(connection)
        self._end_one()

    def lost(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        if self._asked.pop(connection, None) is not None:
            self._end_one()

    def _end_one(self) -> None:
        self._left -= 1
        if not self._left:
            self._done.set()


def request(options: argparse.Namespace, body: bytes) -> bytes:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{options.port}\r\n"
        f"authorization: Bearer {options.key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def run(options: argparse.Namespace) -> dict[str, Any]:
    return await RowLoad(options).run()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", default="none")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--file", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--watch", default="", help="process ids, with commas between")
    import uvloop

    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
