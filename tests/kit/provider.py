"""A provider that does exactly what the test wrote, on a real socket.

Why a server of our own and not a framework's: tests of a gateway are about what
frameworks hide. Where exactly the body was cut, whether the peer closed by FIN or RST
and when, how many bytes it really took. So this one speaks HTTP/1.1 by hand over
asyncio, does one request's script step by step (`tests.kit.steps`), and writes down
when each thing happened as a `Moment` that tests can await.

    with ScriptedProvider() as provider:          # a thread of its own: sync and async tests
        provider.enqueue([Head(), Send(b"data: "), Wait("go"), Cut(rst=True)])
        ...
        exchange = await provider.request(0)      # the first request is here
        await exchange.peer_closed.reached(0.1)   # the gateway left within 100 ms

Each request takes the next queued script, and the default (`provider.default`, a short
answer) where the queue is empty. `provider.route` may name a script per request first.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from tests.kit import steps
from tests.kit.connection import Connection, Exchange
from tests.kit.http1 import Request
from tests.kit.moment import Moment
from tests.kit.steps import Script, Step


class ScriptedProvider:
    """See the head of the file. Every public method may be called from any thread."""

    def __init__(self) -> None:
        self.default: Script = steps.hello
        self.route: Callable[[Request], Script | None] | None = None
        self.exchanges: list[Exchange] = []
        self.failures: list[BaseException] = []  # faults of scripts; raised on leaving
        self.connections = 0  # accepted so far
        self.open_connections = 0
        self.host, self.port = "127.0.0.1", 0
        self._scripts: deque[Script] = deque()
        self._gates: dict[str, Moment] = {}
        self._awaited: dict[int, Moment] = {}
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self.live: set[Connection] = set()
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None

    # ── what tests say ────────────────────────────────────────────────────────

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}/v1"

    def enqueue(self, *scripts: Script) -> None:
        """Scripts for the next requests, in order of arrival."""
        self._scripts.extend(scripts)

    def answer(self, text: str = "Hello there.", usage: tuple[int, int] = (9, 3)) -> None:
        """The next request gets a chat completion."""
        self.enqueue(steps.answer(text, usage))

    def stream(
        self, tokens: Sequence[str] = ("Hello", " there", "."), usage: tuple[int, int] | None = None
    ) -> None:
        """The next request gets a streamed chat completion."""
        self.enqueue(steps.stream(tokens, usage))

    def error(self, status: int, **how: Any) -> None:
        """The next request gets an error (`steps.error`)."""
        self.enqueue(steps.error(status, **how))

    def gate(self, name: str) -> Moment:
        """The moment that `Wait(name)` waits for; open it by `.mark()`."""
        with self._lock:
            return self._gates.setdefault(name, Moment(f"gate {name}"))

    def arrival(self, number: int) -> Moment:
        """The moment at which request `number` (from 0) is here in full."""
        with self._lock:
            if number < len(self.exchanges):
                return self.exchanges[number].arrived
            return self._awaited.setdefault(number, Moment(f"request {number} arrived"))

    def wait_request(self, number: int = 0, timeout_s: float = 5.0) -> Exchange:
        """Block until request `number` is here. Not from the provider's own loop."""
        self.arrival(number).wait(timeout_s)
        return self.exchanges[number]

    async def request(self, number: int = 0, timeout_s: float = 5.0) -> Exchange:
        """As `wait_request`, on the running loop."""
        await self.arrival(number).reached(timeout_s)
        return self.exchanges[number]

    @property
    def open_exchanges(self) -> list[Exchange]:
        """Requests whose script is still running."""
        return [e for e in self.exchanges if not e.finished]

    def refuse_connections(self) -> None:
        """Close the listening socket: connecting is refused. Open connections stay."""
        self._call(self._close_listener())

    def accept_connections(self) -> None:
        """Listen again on the same port."""
        self._call(self._listen())

    # ── life ─────────────────────────────────────────────────────────────────

    def __enter__(self) -> ScriptedProvider:
        ready = Moment("provider listens")
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(ready)), name="scripted-provider", daemon=True
        )
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(5)
        self._raise_failures(exc)

    def _raise_failures(self, exc: tuple[object, ...]) -> None:
        if self.failures and not any(exc):
            raise AssertionError(f"the provider failed: {self.failures[0]!r}") from self.failures[0]

    async def _main(self, ready: Moment) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await self._listen()
        ready.mark()
        await self._stop.wait()
        await self._close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None, "the provider is not running"
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close_listener(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _close(self) -> None:
        await self._close_listener()
        tasks = [c.task for c in self.live if c.task is not None]
        for connection in list(self.live):
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ── called by connections, on the loop ───────────────────────────────────

    def begin(self, request: Request, accepted_s: float) -> tuple[Exchange, Sequence[Step]]:
        with self._lock:
            exchange = Exchange(len(self.exchanges), request, accepted_s)
            exchange.arrived = self._awaited.pop(exchange.number, exchange.arrived)
            self.exchanges.append(exchange)
        script = self.route(request) if self.route is not None else None
        if script is None:
            script = self._scripts.popleft() if self._scripts else self.default
        exchange.arrived.mark()
        return exchange, script(request) if callable(script) else script
