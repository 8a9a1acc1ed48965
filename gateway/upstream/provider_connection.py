"""One HTTP/1.1 connection to a provider: a request, its answer, and perhaps the next request.

asyncio's transport reads and writes, answer_parser.py parses. Rules:

1. One exchange at a time. The connection goes back to the pool when the answer's last byte was
   read, and only if the request was sent whole, the answer allows it and nothing came after it.
2. A reader gives a sink, which is called with what has come as soon as it comes, without a turn of
   the event loop between. Where it refuses more, at most `HIGH_BYTES` of an answer wait for it;
   then the socket is not read any more.
3. `abort` is synchronous and wakes the reader.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import monotonic
from typing import Final, cast

from gateway.upstream.answer_parser import PIECE_BYTES, AnswerParser, InvalidAnswer
from gateway.upstream.providers import Headers
from gateway.upstream.service_time import ServiceTime

HIGH_BYTES: Final = 64 * 1024

Sink = Callable[[bytes], bool]
"""Takes some of a body, at most PIECE_BYTES; False: it wants no more for now."""


class ConnectionBroken(Exception):
    """The exchange failed; the message says how.

    `untouched`: the provider sent nothing of an answer. `unsent`: not one byte of the request was
    written. `stale`: the connection had served before and was untouched: it may have been closed
    before the request came.
    """

    def __init__(self, reason: str, *, untouched: bool = False, unsent: bool = False) -> None:
        super().__init__(reason)
        self.untouched = untouched
        self.unsent = unsent
        self.stale = False


class FirstByteTimeout(Exception):
    """No head of an answer came in time."""


class ProviderConnection(asyncio.Protocol):
    """See the head of this file.

    Args:
        release: takes the connection back once an exchange has ended well.
        gone: is called when the connection is lost, with the connection.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        release: Callable[[ProviderConnection], None],
        gone: Callable[[ProviderConnection], None],
    ) -> None:
        self._loop = loop
        self._release = release
        self._gone = gone
        self._transport: asyncio.Transport | None = None
        self._answer = AnswerParser()
        self._waiter: asyncio.Future[bool] | None = None  # True: the sink wants no more
        self._sink: Sink | None = None  # while its reader waits
        self._timer: asyncio.TimerHandle | None = None
        self._size = 0  # of the request
        self._paused = False
        self.service = ServiceTime()  # of the latest exchange
        self._keep = False
        self._in_exchange = False
        self._closed = False
        self._lost = False  # `gone` was called
        self.error: ConnectionBroken | None = None
        self.served = 0  # exchanges begun
        self.idle_until_s = 0.0  # loop time; while in the pool

    # ---- the pool's and the reader's side

    @property
    def usable(self) -> bool:
        """True where a request may be sent: open, and no exchange under way."""
        transport = self._transport
        return not (
            self._closed or self._in_exchange or transport is None or transport.is_closing()
        )

    @property
    def status(self) -> int:
        """The answer's status; 0 before the final head."""
        return self._answer.status

    @property
    def headers(self) -> Headers:
        """The answer's headers, names in lower case."""
        return self._answer.headers

    @property
    def complete(self) -> bool:
        """True where the answer is here to its last byte."""
        return self._answer.complete

    def fileno(self) -> int:
        """The socket's descriptor; -1 where there is none."""
        if self._transport is None:
            return -1
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        return -1 if sock is None else sock.fileno()

    def send(self, head: bytes, body: bytes, *, head_only: bool) -> None:
        """Begin an exchange. `head` ends with the empty line."""
        transport = self._transport
        assert transport is not None
        assert not self._in_exchange
        self._in_exchange = True
        self.served += 1
        self._keep = True
        self._answer.begin(head_only=head_only)
        self._size = len(head) + len(body)
        if len(body) <= PIECE_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        self.service = ServiceTime()

    async def head(self, timeout_s: float) -> None:
        """Wait for the final head: then `status` and `headers` are set.

        Raises FirstByteTimeout, ConnectionBroken. Cancelled, it drops the connection.
        """
        answer = self._answer
        if not answer.status and self.error is None:
            self._timer = self._loop.call_later(timeout_s, self._late)
            try:
                await self._wait()
            except BaseException:
                self.abort()
                raise
            finally:
                self._timer.cancel()
                self._timer = None
        if not answer.status:
            assert self.error is not None
            raise self.error

    async def pour(self, sink: Sink) -> bool:
        """Give `sink` the body as it comes, until it refuses more (True) or the body ends (False).

        Raises ConnectionBroken, and whatever `sink` raises.
        """
        answer = self._answer
        while True:
            while answer.held:
                if not sink(self._take()):
                    return True
            if answer.complete:
                self._end()
                return False
            if self.error is not None:
                raise self.error
            self._sink = sink
            try:
                if await self._wait():
                    return True
            finally:
                self._sink = None

    async def read_some(self) -> bytes:
        """The next bytes of the body, at most `PIECE_BYTES`; b"" at its end.

        Raises ConnectionBroken.
        """
        read = b""

        def keep(piece: bytes) -> bool:
            nonlocal read
            read = piece
            return False

        await self.pour(keep)
        return read

    def read_whole(self, limit: int) -> bytes | None:
        """The rest of the body where it is all here and no longer than `limit`; else None."""
        answer = self._answer
        if not answer.complete or answer.held > limit:
            return None
        body = answer.take_all()
        self._end()
        return body

    def abort(self) -> None:
        """End the exchange now: what was not read is dropped, and with it the connection unless
        the answer is here to its last byte and nobody waits for it."""
        if self._answer.complete and self._waiter is None:
            self._answer.take_all()
            self._end()
        elif self._in_exchange:
            self._fail("aborted")

    def close(self) -> None:
        """Drop a connection whatever it does."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    def _take(self) -> bytes:
        piece = self._answer.take()
        if self._paused and self._answer.held <= HIGH_BYTES // 2:
            self._resume()
        return piece

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self.service.resumed()
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    async def _wait(self) -> bool:
        assert self._waiter is None
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _wake(self, *, refused: bool = False) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(refused)

    def _deliver(self) -> None:
        """Give the sink what has come, and wake its reader where there is something to do."""
        waiter, sink = self._waiter, self._sink
        if waiter is None or waiter.done():
            return
        refused = False
        if sink is not None:
            try:
                while self._answer.held and not refused:
                    refused = not sink(self._take())
            except Exception as error:  # the reader's own
                if not waiter.done():
                    waiter.set_exception(error)
                return
            if not refused and not self._answer.complete:
                return
        self._wake(refused=refused)

    def _end(self) -> None:
        """The reader has it all: to the pool, or away."""
        if not self._in_exchange:
            return
        self._in_exchange = False
        if self._keep and self._answer.reusable and self.usable:
            self._resume()
            self._release(self)
        else:
            self.close()

    def _late(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(FirstByteTimeout())

    def _fail(self, reason: str, *, unsent: bool = False) -> None:
        if self.error is None and not self._answer.complete:
            untouched = self._answer.untouched
            self.error = ConnectionBroken(reason, untouched=untouched, unsent=unsent)
        self._in_exchange = False
        self.close()
        self._wake()

    # ---- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if not self._in_exchange or answer.complete:
            # Bytes that nobody asked for, or after the answer: this connection serves no more.
            self._keep = False
            if not self._in_exchange:
                self.close()
            return
        self.service.heard_s = monotonic()
        try:
            answer.feed(data)
        except InvalidAnswer as error:
            self._fail(str(error))
            return
        transport = self._transport
        assert transport is not None
        if answer.complete and transport.get_write_buffer_size():
            # A provider that answers before it has the request whole does not read the rest.
            self._keep = False
        if answer.status:
            self._deliver()
        if answer.held > HIGH_BYTES and not self._paused and not answer.complete:
            self._paused = True
            self.service.paused()
            transport.pause_reading()

    def eof_received(self) -> bool:
        self._finish("the provider closed the connection", clean=True)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        reason = "the provider closed the connection" if exc is None else _words(exc)
        self._finish(reason, clean=exc is None)
        self._transport = None
        if not self._lost:
            self._lost = True
            self._answer.close()
            self._gone(self)

    def _finish(self, reason: str, *, clean: bool) -> None:
        """Take the end of the connection: a clean one may end an answer, a reset breaks it."""
        answer = self._answer
        if not self._in_exchange or answer.complete:
            self._keep = False
            return
        if clean:
            answer.end()
        if answer.complete:
            self._wake()
            return
        unsent = False
        if self._transport is not None:
            unsent = self._transport.get_write_buffer_size() >= self._size > 0
        self._fail(reason, unsent=unsent)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
