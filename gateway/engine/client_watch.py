"""The client of a relayed request (`Connection`), and the scope that ends with it (`ClientWatch`).

`ClientWatch` is a structured scope like `asyncio.timeout`: the client's leaving cancels what runs
inside, and the scope swallows exactly that cancellation. The connection itself tells it; no task
waits for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from types import TracebackType
from typing import Protocol

from gateway.upstream.providers import Headers


class Connection(Protocol):
    """The client's side of one request. Nothing here but `drained` awaits anything, and nothing is
    written any more for a client that has left."""

    def when_left(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` once, when the client leaves before its answer is complete; at once where
        it has left."""

    def start(self, status: int, headers: Headers) -> None:
        """Set the head; it is written with the first bytes of the body."""

    def write(self, chunk: bytes) -> bool:
        """Write some of the body, framed, straight to the client's transport. False: the client is
        slow, and no more should be written until it has drained."""

    def finish(self, chunk: bytes = b"") -> None:
        """Write the last bytes of the body and end the response."""

    def drained(self) -> Awaitable[None]:
        """Wait until the client has taken enough or has left."""

    def break_off(self) -> None:
        """End the response short of its end, such that the client can tell."""

    def abort(self) -> None:
        """Drop the connection with the bytes that the client has not taken."""


class CancelReason(StrEnum):
    """The reason for which a request was cancelled before its last byte."""

    LEFT = "left"  # the client closed the connection
    STALLED = "stalled"  # the client took nothing for too long
    SHUTDOWN = "shutdown"  # the gateway stops


class ClientWatch:
    """Cancels its body when the client leaves, or when `cancel` is called.

    `reason`: the reason of the cancellation; None after a normal end.
    """

    __slots__ = ("_cancelling", "_connection", "_open", "_task", "reason")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.reason: CancelReason | None = None
        self._open = False

    async def __aenter__(self) -> ClientWatch:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._open = True
        self._connection.when_left(self._left)
        return self

    def _left(self) -> None:
        self.cancel(CancelReason.LEFT)

    def cancel(self, reason: CancelReason) -> None:
        """Cancel the body, once; does nothing after `close`."""
        if self._open and self.reason is None:
            self.reason = reason
            self._task.cancel()

    def close(self) -> None:
        """The answer is complete: from here on a disconnect does not matter."""
        self._open = False

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._open = False
        self._connection.when_left(None)
        if self.reason is None:
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
