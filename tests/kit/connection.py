"""One accepted socket of the scripted provider: requests one after the other, by script."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from tests.kit import steps
from tests.kit.http1 import Malformed, Request, parse_request
from tests.kit.moment import Moment
from tests.kit.steps import EVENTS, JSON, Step

if TYPE_CHECKING:
    from tests.kit.provider import ScriptedProvider


class Exchange:
    """One request and what became of it. Times are monotonic seconds, in Moments.

    `peer_closed` is marked only when the peer left *before* the script had ended:
    closing an idle kept-alive connection says nothing about a request.
    """

    def __init__(self, number: int, request: Request, accepted_s: float) -> None:
        self.number = number
        self.request = request
        self.accepted_s = accepted_s  # when the connection was accepted
        self.arrived = Moment(f"request {number} arrived")
        self.first_byte = Moment(f"first byte of answer {number}")
        self.peer_closed = Moment(f"peer closed during request {number}")
        self.finished = Moment(f"script {number} ended")  # for any reason
        self.closed_by_rst = False
        self.bytes_sent = 0  # handed to the transport

    @property
    def method(self) -> str:
        return self.request.method

    @property
    def path(self) -> str:
        return self.request.path

    @property
    def headers(self) -> dict[str, str]:
        return dict(self.request.headers)

    def json(self) -> Any:
        return self.request.json()


class Left(Exception):
    """The peer is gone, or the script cut the connection."""


class Connection(asyncio.Protocol):
    """One accepted socket: requests one after the other, each by its script."""

    def __init__(self, provider: ScriptedProvider) -> None:
        self.provider = provider
        self.task: asyncio.Task[None] | None = None
        self.exchange: Exchange | None = None
        self._buffer = b""
        self._changed = asyncio.Event()  # more bytes, room to write, or the end
        self._gone = False
        self._paused = False
        self._chunked = False
        self._head_sent = False

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport
        loop = asyncio.get_running_loop()
        self._accepted_s = time.monotonic()
        self.provider.connections += 1
        self.provider.open_connections += 1
        self.provider.live.add(self)
        self.task = loop.create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._changed.set()

    def eof_received(self) -> None:
        self._peer_left(rst=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self.provider.open_connections -= 1
        self.provider.live.discard(self)
        self._peer_left(rst=exc is not None)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._changed.set()

    def abort(self) -> None:
        """The provider itself stops: nobody is to blame."""
        self._gone = True
        self.transport.abort()
        self._changed.set()

    def _peer_left(self, *, rst: bool) -> None:
        if self._gone:  # known already, or closed by this side
            return
        self._gone = True
        if self.exchange is not None and not self.exchange.finished:
            self.exchange.closed_by_rst = rst
            self.exchange.peer_closed.mark()
        self._changed.set()

    # the script

    async def _serve(self) -> None:
        try:
            while not self._gone:
                request = await self._next_request()
                self.exchange, script = self.provider.begin(request, self._accepted_s)
                try:
                    await self._run(script)
                finally:
                    self.exchange.finished.mark()
        except (Left, Malformed):
            pass
        except Exception as fault:
            self.provider.failures.append(fault)
        finally:
            self._gone = True
            self.transport.close()

    async def _next_request(self) -> Request:
        while (parsed := parse_request(self._buffer)) is None:
            await self._change()
        request, self._buffer = parsed
        self._head_sent = self._chunked = False
        return request

    async def _change(self) -> None:
        self._changed.clear()
        if self._gone:
            raise Left
        await self._changed.wait()
        if self._gone:
            raise Left

    async def _run(self, script: Sequence[Step]) -> None:
        for step in script:
            if self._gone:
                raise Left
            await self._do(step)
        if self._chunked:
            await self._write(b"0\r\n\r\n")

    async def _do(self, step: Step) -> None:
        match step:
            case steps.Respond():
                await self._respond(step)
            case steps.Head(status, headers, length):
                await self._head(status, headers, length)
            case steps.Send(data):
                await self._body(data)
            case steps.Stream(events, done, status, headers):
                if not self._head_sent:
                    await self._head(status, {**EVENTS, **headers}, None)
                for payload in [*events, *(["[DONE]"] if done else [])]:
                    await self._body(steps.event(payload))
            case steps.Raw(data):
                self._head_sent = True
                await self._write(data)
            case steps.Wait(gate):
                await self._wait_for(self.provider.gate(gate))
            case steps.Drip(data, size, every_s):
                for at in range(0, len(data), size):
                    await self._body(data[at : at + size])
                    await self._pause(every_s)
            case steps.Cut(rst):
                self._cut(rst)
            case steps.Hang():
                while True:
                    await self._change()

    async def _respond(self, step: steps.Respond) -> None:
        body = step.body if step.json is None else msgspec.json.encode(step.json)
        headers = {**JSON, **step.headers, **({"connection": "close"} if step.close else {})}
        await self._head(step.status, headers, None if step.chunked else len(body))
        await self._body(body)
        if step.close:
            raise Left

    async def _head(self, status: int, headers: dict[str, str], length: int | None) -> None:
        framing = {"transfer-encoding": "chunked"} if length is None else {}
        if length is not None:
            framing = {"content-length": str(length)}
        self._chunked, self._head_sent = length is None, True
        lines = [f"HTTP/1.1 {status} Scripted"]
        lines += [f"{name}: {value}" for name, value in {**headers, **framing}.items()]
        await self._write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def _body(self, data: bytes) -> None:
        if not self._head_sent:
            await self._head(200, dict(EVENTS), None)
        if data:
            framed = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
            await self._write(framed)

    async def _write(self, data: bytes) -> None:
        while self._paused:
            await self._change()
        if self._gone or self.exchange is None:
            raise Left
        self.transport.write(data)
        self.exchange.bytes_sent += len(data)
        self.exchange.first_byte.mark()

    async def _wait_for(self, gate: Moment) -> None:
        opened = asyncio.ensure_future(gate.reached(timeout_s=60))
        opened.add_done_callback(lambda _: self._changed.set())
        try:
            while not opened.done():
                await self._change()
            opened.result()
        finally:
            opened.cancel()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await self._change()

    def _cut(self, rst: bool) -> None:
        self._gone = True
        if rst:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self.transport.close()
        raise Left
