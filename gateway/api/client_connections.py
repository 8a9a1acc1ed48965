"""All connections of clients together: the memory their unread answers take, and the sweep that
ends those which are overdue.

The transport's write buffer is raised to about a megabyte a stream, so that a slow reader does
not hold a provider's slot, and lowered for every connection as connections grow, so that all of
them together stay within a bound.

A connection that waits for a request, or for the rest of a header, has a time by which it must
have come. One sweep a second looks for those that are late: a timer for each of them would be
made and cancelled with every request.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway.settings.schema import Server

MIN_BUFFER_BYTES = 16 * 1024
SWEEP_PERIOD_S = 1.0


class SweptConnection(Protocol):
    """A connection as the sweep sees it. `due_s` is loop time, infinite while nothing is awaited
    of the client."""

    transport: asyncio.Transport
    due_s: float

    def overdue(self) -> None: ...


class ClientConnections:
    """The open connections of one gateway."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._open: set[SweptConnection] = set()
        self._limit = server.stream_buffer_bytes
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def __repr__(self) -> str:
        return f"<ClientConnections {len(self)} with buffers of {self._limit} bytes>"

    def add(self, connection: SweptConnection) -> None:
        """Count a new connection and set its limit."""
        self._open.add(connection)
        if not self._adjust():
            connection.transport.set_write_buffer_limits(high=self._limit)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(SWEEP_PERIOD_S, self._swept, loop)

    def remove(self, connection: SweptConnection) -> None:
        """Forget a closed connection."""
        self._open.discard(connection)
        self._adjust()

    def held(self) -> int:
        """Bytes that wait for slow clients at this moment."""
        return sum(one.transport.get_write_buffer_size() for one in self._open)

    def _adjust(self) -> bool:
        """Halve the limit until those of all connections fit the bound. True where it changed."""
        share = self.server.buffer_memory_bytes // max(len(self._open), 1)
        limit = self.server.stream_buffer_bytes
        while limit > share and limit > MIN_BUFFER_BYTES:
            limit //= 2
        if limit == self._limit:
            return False
        self._limit = limit
        for connection in self._open:
            connection.transport.set_write_buffer_limits(high=limit)
        return True

    def sweep(self, now: float) -> None:
        """End the connections that are overdue at `now`, loop time."""
        for connection in [one for one in self._open if one.due_s <= now]:
            connection.overdue()

    def _swept(self, loop: asyncio.AbstractEventLoop) -> None:
        self.sweep(loop.time())
        # Without connections the timer rests, until `add`.
        again = bool(self._open)
        self._timer = loop.call_later(SWEEP_PERIOD_S, self._swept, loop) if again else None
