"""The listening side: uvicorn's HTTP protocol with a gateway's bounds.

What uvicorn leaves open and a gateway must not:
- the bytes between provider and client: the transport's write buffer is raised to about a
  megabyte a stream (so that a slow reader does not hold a provider's slot) and lowered for
  everybody as connections grow, so that all of them together stay within a bound;
- a client that takes nothing: `TCP_USER_TIMEOUT` ends it even after the answer is complete;
- a client that sends its header drop by drop, or connects and says nothing;
- a client that sends its next request before this one is answered (HTTP pipelining): reading
  would have to stop, and with it the notice that the client left. The answer under way is
  finished, what came after it is dropped, and the connection closes, as RFC 9112 §9.3.2 allows;
- an Upgrade we do not speak (clients that offer h2c): the parser takes the body for the other
  protocol's first bytes, so a second parser that knows the framing reads it as the body it is;
- error texts of the server itself, which are to look like OpenAI's.
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
    _deaf = False  # the client pipelined: nothing more of it is read

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

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if not self._deaf:
                self.send_400_response("")

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            self._deaf = True
            return
        # Only a request ends the wait for one: a stray line break, or the rest of a refused
        # body, must not leave a connection without any timer.
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self._header_bytes = 0
        self.scope["state"]["connection"] = self
        within_s = min(HEADER_TIMEOUT_S, self.buffers.server.keepalive_s)
        self._receipt = self.loop.call_later(within_s, self._late)

    def on_url(self, url: bytes) -> None:
        if not self._deaf:
            self._count(len(url))
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._deaf:
            self._count(len(name) + len(value))
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        self._stop_receipt()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        # At an upgrade the head alone is complete; its body is still to come.
        if not self._deaf and not self.parser.should_upgrade():
            super().on_message_complete()

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on with a parser that was told this request's framing and nothing of upgrades."""
        after = _AfterHead(self)
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

    def _stop_receipt(self) -> None:
        if self._receipt is not None:
            self._receipt.cancel()
            self._receipt = None

    def _late(self) -> None:
        if self._deaf:
            return
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


class _AfterHead:
    """Callbacks of the second parser: silent for the head it is told, the protocol's after.

    Spelled out, since the parser binds what it finds when it is made.
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


def protocol_for(buffers: Buffers) -> type[Any]:
    """The protocol class uvicorn is given, bound to one set of buffers."""
    return type("BoundGatewayProtocol", (GatewayProtocol,), {"buffers": buffers})
