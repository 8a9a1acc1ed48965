"""The flow of bytes from and to one client: each direction pauses where its taker is slow."""

from __future__ import annotations

import asyncio


class ClientFlow:
    """Both directions of one connection. Belongs to the connection, over all its requests."""

    __slots__ = ("_reading_paused", "_waiter", "transport", "write_paused")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.write_paused = False
        self._reading_paused = False
        self._waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        paused = "paused" if self.write_paused else "open"
        return f"<ClientFlow {paused}, {self.transport.get_write_buffer_size()} bytes unread>"

    def pause_reading(self) -> None:
        """Read no more of the client."""
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read of the client again."""
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def resume_writing(self) -> None:
        """Tell the one that waits that more may be written, or that nobody reads any more."""
        self.write_paused = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def drained(self) -> None:
        """Wait until more may be written. One waits at a time."""
        if not self.write_paused:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
