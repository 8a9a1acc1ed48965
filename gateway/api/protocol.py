"""uvicorn's HTTP protocol with the bounds a gateway needs.

uvicorn leaves these open:
- the bytes between provider and client. The transport's write buffer is raised to about a
  megabyte a stream, so that a slow reader does not hold a provider's slot, and lowered for
  every connection as connections grow, so that all of them together stay within a bound;
- a client that takes nothing. `TCP_USER_TIMEOUT` ends it even after the answer is complete;
- a client that sends its header drop by drop, or connects and sends nothing;
- a client that sends its next request before this one is answered (HTTP pipelining). Reading
  would have to stop, and then a client that leaves goes unnoticed. So the answer under way is
  finished, later bytes are dropped, and the connection closes (RFC 9112 §9.3.2 allows it);
- an Upgrade to another protocol (clients that offer h2c). The parser takes the body for that
  protocol's first bytes, so a second parser that knows the framing reads it as the body;
- error texts of the server itself, which are to have OpenAI's form.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.api.problems import problem
from gateway.errors import GatewayError, InvalidRequest, Unavailable
from gateway.settings.schema import Server

HEADER_TIMEOUT_S = 20.0
MAX_HEADER_BYTES = 64 * 1024
MAX_HEADERS = 200
MIN_BUFFER_BYTES = 16 * 1024
KERNEL_BUFFER_BYTES = 128 * 1024
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class WriteBuffers:
    """The write-buffer limit of every connection, such that all limits together stay bounded."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._open: set[asyncio.Transport] = set()
        self._limit = server.stream_buffer_bytes

    def __len__(self) -> int:
        return len(self._open)

    def __repr__(self) -> str:
        return f"<WriteBuffers {len(self)} connections of {self._limit} bytes>"

    def add(self, transport: asyncio.Transport) -> None:
        """Count a new connection and set its limit."""
        self._open.add(transport)
        if not self._adjust():
            transport.set_write_buffer_limits(high=self._limit)

    def remove(self, transport: asyncio.Transport) -> None:
        """Forget a closed connection."""
        self._open.discard(transport)
        self._adjust()

    def held(self) -> int:
        """Bytes that wait for slow clients at this moment."""
        return sum(t.get_write_buffer_size() for t in self._open)

    def _adjust(self) -> bool:
        """Halve the limit until those of all connections fit the bound. True where it changed."""
        share = self.server.buffer_memory_bytes // max(len(self._open), 1)
        limit = self.server.stream_buffer_bytes
        while limit > share and limit > MIN_BUFFER_BYTES:
            limit //= 2
        if limit == self._limit:
            return False
        self._limit = limit
        for transport in self._open:
            transport.set_write_buffer_limits(high=limit)
        return True


class GatewayProtocol(HttpToolsProtocol):
    """One client connection; the head of this file has its rules.

    `protocol_for` sets `buffers` on a subclass, since uvicorn makes the instances.
    """

    buffers: WriteBuffers
    _header_timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _pipelined = False  # nothing more is read of a client that pipelined

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        server = self.buffers.server
        self.buffers.add(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError, AttributeError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                # By itself the kernel grows this to megabytes that no bound here counts.
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
        self._stop_header_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._pipelined:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if not self._pipelined:
                self.send_400_response("")

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            self._pipelined = True
            return
        # Only a request ends the keep-alive timer: a stray line break, or the rest of a refused
        # body, must not leave a connection without a timer.
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self._header_bytes = 0
        self.scope["state"]["connection"] = self
        within_s = min(HEADER_TIMEOUT_S, self.buffers.server.keepalive_s)
        self._header_timer = self.loop.call_later(within_s, self._header_timeout)

    def on_url(self, url: bytes) -> None:
        if not self._pipelined:
            self._count(len(url))
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._pipelined:
            self._count(len(name) + len(value))
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._pipelined:
            return
        self._stop_header_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._pipelined:
            super().on_body(body)

    def on_message_complete(self) -> None:
        # At an upgrade only the head is complete, and its body follows.
        if not self._pipelined and not self.parser.should_upgrade():
            super().on_message_complete()

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Continue with a parser that has this request's framing and no Upgrade header."""
        after = _UpgradeCallbacks(self)
        self.parser = httptools.HttpRequestParser(after)
        framing = [b"%s: %s\r\n" % (k, v) for k, v in self.headers if k in _FRAMING]
        try:
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing))
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        after.replaying = False
        if after.complete:  # a request without a body
            self.on_message_complete()
        if rest:
            self.data_received(rest)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES or len(self.headers) > MAX_HEADERS:
            raise ValueError("request header too large")

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _header_timeout(self) -> None:
        if self._pipelined:
            return
        error = InvalidRequest("The request header did not arrive in time.", code="request_timeout")
        error.status = 408
        self._refuse(error)

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that the parser cannot read, or one with too large a header; `msg` is
        uvicorn's and not sent."""
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
        """Drop the connection with the bytes that the client has not taken."""
        self.transport.abort()


class _UpgradeCallbacks:
    """Callbacks of the second parser: silent while it reads the framing, then the protocol's.

    Each is spelled out, since the parser binds its callbacks when it is made.
    """

    def __init__(self, protocol: GatewayProtocol) -> None:
        self._protocol = protocol
        self.replaying = True
        self.complete = False

    def on_message_begin(self) -> None:
        if not self.replaying:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self.replaying:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.replaying:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self.replaying:
            self._protocol.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._protocol.on_body(body)

    def on_message_complete(self) -> None:
        if self.replaying:
            self.complete = True
        else:
            self._protocol.on_message_complete()


def protocol_for(buffers: WriteBuffers) -> type[Any]:
    """The protocol class for uvicorn, bound to one set of buffers."""
    return type("BoundGatewayProtocol", (GatewayProtocol,), {"buffers": buffers})
