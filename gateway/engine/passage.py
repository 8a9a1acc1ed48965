"""One answer's bytes on their way from the provider to the client, and how long each may take.

A provider that falls silent in mid-answer fails the attempt; a client that takes nothing ends
its call. Between the two lies the connection's write buffer (see api/listener.py).
"""

from __future__ import annotations

import asyncio

from gateway.engine.reply import Reply
from gateway.engine.scope import StreamClock
from gateway.engine.trip import Trip
from gateway.settings.schema import Server
from gateway.upstream.client import SLOW_NEXT_BYTE, Answer, AttemptFailed
from gateway.upstream.providers import Target


class Passage:
    """A context manager: the two clocks run inside it."""

    __slots__ = ("_clock", "_reply", "_server", "_silent", "answer", "target", "trip")

    def __init__(
        self, answer: Answer, target: Target, trip: Trip, reply: Reply, server: Server
    ) -> None:
        self.answer = answer
        self.target = target
        self.trip = trip
        self._reply = reply
        self._server = server
        self._silent = False

    def __enter__(self) -> Passage:
        self._clock = StreamClock(
            asyncio.get_running_loop(),
            self.target.account.idle_timeout_s,
            self._server.write_timeout_s,
            self._fell_silent,
            self._reply.stalled,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._clock.stop()

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises AttemptFailed."""
        try:
            return await self.answer.read_some()
        except AttemptFailed:
            if self._silent:
                raise AttemptFailed(SLOW_NEXT_BYTE) from None
            raise

    async def write(self, body: bytes) -> None:
        """On to the client: more will come."""
        self._clock.writing()
        await self._reply.part(body)
        self._clock.reading()

    def _fell_silent(self) -> None:
        self._silent = True
        self.answer.abort()
