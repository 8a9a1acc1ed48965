"""The listening side: uvicorn's HTTP protocol with a gateway's bounds.

What uvicorn leaves open and a gateway must not:
- the bytes between provider and client: the transport's write buffer is raised to about a
  megabyte a stream (so that a slow reader does not hold a provider's slot) and lowered for
  everybody as connections grow, so that all of them together stay within a bound;
- a client that takes nothing: `TCP_USER_TIMEOUT` ends it even after the answer is complete;
- a client that sends its header drop by drop, or connects and says nothing;
- error texts of the server itself, which are to look like OpenAI's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.api.problems import problem
from gateway.errors import GatewayError, InvalidRequest, Unavailable
from gateway.settings.schema import Server

HEADER_TIMEOUT_S = 20.0
MAX_HEADER_BYTES = 64 * 1024
MAX_HEADERS = 200
MIN_BUFFER_BYTES = 16 * 1024
KERNEL_BUFFER_BYTES = 128 * 1024


class Buffers:
    """The write-buffer mark of every connection, so that all marks together stay bounded."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._open: set[asyncio.Transport] = set()
        self._mark = server.stream_buffer_bytes

    def __len__(self) -> int:
        return len(self._open)

    def add(self, transport: asyncio.Transport) -> None:
        self._open.add(transport)
        if not self._adjust():
            transport.set_write_buffer_limits(high=self._mark)

    def remove(self, transport: asyncio.Transport) -> None:
        self._open.discard(transport)
        self._adjust()

    def held(self) -> int:
        """Bytes that wait for slow clients right now."""
        return sum(t.get_write_buffer_size() for t in self._open)

    def _adjust(self) -> bool:
        """Halve the mark until every connection's fits the bound; True when it moved."""
        share = self.server.buffer_memory_bytes // max(len(self._open), 1)
        mark = self.server.stream_buffer_bytes
        while mark > share and mark > MIN_BUFFER_BYTES:
            mark //= 2
        if mark == self._mark:
            return False
        self._mark = mark
        for transport in self._open:
            transport.set_write_buffer_limits(high=mark)
        return True


class GatewayProtocol(HttpToolsProtocol):
    """See the head of this file. `buffers` is set on the class by `protocol_for`."""

    buffers: Buffers
    _receipt: asyncio.TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        server = self.buffers.server
        self.buffers.add(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError, AttributeError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                # Left alone, the kernel grows this to megabytes nobody has counted.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER_BYTES)
                sock.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(server.write_timeout_s * 1000)
                )
        if len(self.buffers) > server.max_connections:
            self._refuse(Unavailable("Too many connections.", code="too_many_connections"))
            return
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self.buffers.remove(self.transport)
        self._stop_receipt()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self.scope["state"]["connection"] = self
        self._receipt = self.loop.call_later(HEADER_TIMEOUT_S, self._late)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_receipt()
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES or len(self.headers) > MAX_HEADERS:
            raise ValueError("request header too large")

    def _stop_receipt(self) -> None:
        if self._receipt is not None:
            self._receipt.cancel()
            self._receipt = None

    def _late(self) -> None:
        error = InvalidRequest("The request header did not arrive in time.", code="request_timeout")
        error.status = 408
        self._refuse(error)

    def send_400_response(self, msg: str) -> None:
        if self._header_bytes > MAX_HEADER_BYTES or len(self.headers or ()) > MAX_HEADERS:
            error = InvalidRequest("The request header is too large.", code="headers_too_large")
            error.status = 431
        else:
            error = InvalidRequest("This is not a valid HTTP request.", code="invalid_http")
        self._refuse(error)

    def _refuse(self, error: GatewayError) -> None:
        status, headers, body = problem(error)
        lines = [b"HTTP/1.1 %d %s\r\n" % (status, error.type.encode())]
        lines += [name + b": " + value + b"\r\n" for name, value in headers]
        self.transport.write(b"".join([*lines, b"connection: close\r\n\r\n", body]))
        self.transport.close()

    def abort(self) -> None:
        """Drop the connection and what it has not taken."""
        self.transport.abort()

    def _unsupported_upgrade_warning(self) -> None:
        """A WebSocket upgrade is answered as the plain request it also is."""


def protocol_for(buffers: Buffers) -> type[Any]:
    """The protocol class uvicorn is given, bound to one set of buffers."""
    return type("BoundGatewayProtocol", (GatewayProtocol,), {"buffers": buffers})
