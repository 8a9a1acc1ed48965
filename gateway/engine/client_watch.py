"""The scope of a relayed request: its client may leave, and then its body is cancelled.

`ClientWatch` is a structured scope like `asyncio.timeout`: the client's disconnect cancels what
runs inside, and the scope swallows exactly that cancellation. ASGI reports a disconnect only to
a pending `receive`, so a task waits for it as long as the scope is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from types import TracebackType
from typing import Any

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class CancelReason(StrEnum):
    """The reason for which a request was cancelled before its last byte."""

    LEFT = "left"  # the client closed the connection
    STALLED = "stalled"  # the client took nothing for too long
    SHUTDOWN = "shutdown"  # the gateway stops


class ClientWatch:
    """Cancels its body when the client leaves, or when `cancel` is called.

    `reason`: the reason of the cancellation; None after a normal end.
    """

    __slots__ = ("_cancelling", "_open", "_receive", "_task", "_waiter", "reason")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.reason: CancelReason | None = None
        self._open = False

    async def __aenter__(self) -> ClientWatch:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._open = True
        self._waiter = asyncio.ensure_future(self._wait_for_disconnect())
        return self

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
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
        self._waiter.cancel()
        del self._waiter  # its frame holds this scope: else a reference cycle
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
