"""One answer's bytes on their way from the provider to the client, and how long each may take.

A provider that falls silent in mid-answer fails the attempt; a client that takes nothing ends
its call. Between the two lies the connection's write buffer (see api/protocol.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import TracebackType

from gateway.engine.reply import Reply
from gateway.engine.scope import StreamClock
from gateway.engine.trip import Trip
from gateway.settings.schema import Server
from gateway.upstream.client import SLOW_NEXT_BYTE, Answer, AttemptError
from gateway.upstream.providers import Target


class Passage:
    """A context manager: inside it the two clocks run, and an answer that one of them broke off
    fails as one that was too slow.

    `read` and `write` are called for every chunk: they hand on what is to be awaited, and put no
    coroutine of their own around it.
    """

    __slots__ = ("_clock", "_reply", "_server", "_silent", "_wrote", "answer", "target", "trip")

    def __init__(
        self, answer: Answer, target: Target, trip: Trip, reply: Reply, server: Server
    ) -> None:
        self.answer = answer
        self.target = target
        self.trip = trip
        self._reply = reply
        self._server = server
        self._silent = False
        self._wrote = False

    def __enter__(self) -> Passage:
        self._clock = StreamClock(
            asyncio.get_running_loop(),
            self.target.account.idle_timeout_s,
            self._server.write_timeout_s,
            self._fell_silent,
            self._reply.stalled,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        clock = self._clock
        del self._clock  # it calls back here: as a circle, both would wait for the collector
        clock.stop()
        if self._silent and isinstance(error, AttemptError):
            raise AttemptError(SLOW_NEXT_BYTE) from None

    def read(self) -> Awaitable[bytes]:
        """The next bytes, b"" at the end. Raises AttemptError."""
        if self._wrote:
            self._wrote = False
            self._clock.reading()
        return self.answer.read_some()

    def write(self, body: bytes) -> Awaitable[None]:
        """On to the client; more will come. To be awaited before the next `read`."""
        self._wrote = True
        self._clock.writing()
        return self._reply.part(body)

    def _fell_silent(self) -> None:
        self._silent = True
        self.answer.abort()
