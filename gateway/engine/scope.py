"""Two small scopes around a relayed request: the client may leave, and time may run out.

`ClientWatch` is a structured scope like `asyncio.timeout`: inside it, the client's
disconnect cancels the body, and the scope swallows exactly that cancellation. ASGI tells
of a disconnect only to who listens, so a task listens for as long as the scope is open.
`StreamClock` is one timer a stream, re-armed only when it fires, instead of one time-out
a chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from types import TracebackType
from typing import Any

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Ended(StrEnum):
    """Why a scope was cancelled from outside."""

    LEFT = "left"  # the client closed the connection
    STALLED = "stalled"  # the client took nothing for too long
    SHUTDOWN = "shutdown"  # the gateway stops


class ClientWatch:
    """Cancels its body when the client leaves. `ended` says why, None after a normal end."""

    __slots__ = ("_cancelling", "_listener", "_open", "_receive", "_task", "ended")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended: Ended | None = None
        self._open = False

    async def __aenter__(self) -> ClientWatch:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._open = True
        self._listener = asyncio.ensure_future(self._listen())
        return self

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.end(Ended.LEFT)

    def end(self, why: Ended) -> None:
        """Cancel the body, once; nothing after `close`."""
        if self._open and self.ended is None:
            self.ended = why
            self._task.cancel()

    def close(self) -> None:
        """The answer is complete: from here on a disconnect is no concern of this scope."""
        self._open = False

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._open = False
        self._listener.cancel()
        del self._listener  # its end holds this scope: a circle, else
        if self.ended is None:
            return False
        # Take back our own cancellation; one from elsewhere goes on its way.
        ours = self._task.uncancel() <= self._cancelling
        if kind is None and ours:
            # Cancelled, but the body ended before the cancellation reached it: let it
            # arrive here instead of at whatever is awaited next.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                pass
            return True
        return ours and kind is asyncio.CancelledError


class StreamClock:
    """Watches one stream's two waits: for the provider's next bytes, for the client to take some.

    Args:
        idle_s, write_s: how long each wait may last.
        on_idle, on_stall: called once when it lasted longer.
    """

    __slots__ = (
        "_handle",
        "_idle_s",
        "_loop",
        "_on_idle",
        "_on_stall",
        "_since",
        "_write_s",
        "_writing",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        idle_s: float,
        write_s: float,
        on_idle: Callable[[], None],
        on_stall: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._idle_s, self._write_s = idle_s, write_s
        self._on_idle, self._on_stall = on_idle, on_stall
        self._since = loop.time()
        self._writing = False
        self._handle = loop.call_later(min(idle_s, write_s), self._fire)

    def reading(self) -> None:
        self._since = self._loop.time()
        self._writing = False

    def writing(self) -> None:
        self._since = self._loop.time()
        self._writing = True

    def stop(self) -> None:
        self._handle.cancel()

    def _fire(self) -> None:
        limit = self._write_s if self._writing else self._idle_s
        over = self._loop.time() - self._since - limit
        if over < 0:
            self._handle = self._loop.call_later(
                min(-over, self._idle_s, self._write_s), self._fire
            )
        elif self._writing:
            self._on_stall()
        else:
            self._on_idle()
