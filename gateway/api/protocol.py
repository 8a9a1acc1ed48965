"""One client connection: HTTP/1.1 by llhttp, with the bounds a gateway needs.

uvicorn's server makes the connections and ends them; request_cycle.py writes the answers. Here:
- a client that takes nothing: `TCP_USER_TIMEOUT` ends it even after the answer is complete;
- a client that sends its header drop by drop, or connects and sends nothing: the sweep of
  client_connections.py ends it;
- a client that sends its next request before this one is answered (HTTP pipelining). Reading
  would have to stop, and then a client that leaves goes unnoticed. So the answer under way is
  finished, later bytes are dropped, and the connection closes (RFC 9112 §9.3.2 allows it);
- an Upgrade to another protocol (clients that offer h2c). The parser takes the body for that
  protocol's first bytes, so a second parser that knows the framing reads it as the body;
- errors of the server itself have OpenAI's form.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from math import inf
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.api.client_connections import ClientConnections
from gateway.api.client_flow import ClientFlow
from gateway.api.problems import problem
from gateway.api.received_head import Address, received_head
from gateway.api.request_cycle import RequestCycle
from gateway.errors import GatewayError, InvalidRequest, Unavailable

HEADER_TIMEOUT_S = 20.0
MAX_HEADER_BYTES = 64 * 1024
MAX_HEADERS = 200
MAX_SILENT_BYTES = 128 * 1024  # that bring neither the end of a request nor any of a body
KERNEL_BUFFER_BYTES = 128 * 1024
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class GatewayProtocol(asyncio.Protocol):
    """One client connection; the head of this file has its rules.

    `protocol_for` sets `connections` on a subclass, since uvicorn makes the instances.
    """

    __slots__ = (
        "_addresses",
        "_application",
        "_cycle",
        "_header_bytes",
        "_headers",
        "_in_header",
        "_loop",
        "_parser",
        "_pipelined",
        "_silent",
        "_state",
        "_url",
        "due_s",
        "flow",
        "transport",
    )
    connections: ClientConnections
    transport: asyncio.Transport
    flow: ClientFlow

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._application = config.loaded_app  # an Application of request_cycle.py
        self._state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = _parser(self)
        self._addresses: tuple[Address | None, Address | None] = (None, None)  # client's, ours
        self._cycle: RequestCycle | None = None  # of the request that is not answered yet
        self._pipelined = False  # nothing more is read of a client that pipelined
        self.due_s = inf
        # The request that is being read.
        self._in_header = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._header_bytes = 0
        self._silent = 0  # bytes since the last that brought something on

    # -- the transport's side --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self.flow = ClientFlow(self.transport)
        self._state.connections.add(cast(Any, self))
        self.connections.add(self)
        server = self.connections.server
        self._addresses = (_address(transport, "peername"), _address(transport, "sockname"))
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
        if len(self.connections) > server.max_connections:
            self._refuse(Unavailable("Too many connections.", code="too_many_connections"))
            return
        self.due_s = self._loop.time() + server.keepalive_s

    def data_received(self, data: bytes) -> None:
        if self._pipelined:
            return
        self._silent += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if not self._pipelined:
                self._refuse_unreadable()
        else:
            # The parser copies a value with each piece of it, and tells of whole headers alone.
            if self._silent > MAX_SILENT_BYTES and not self._pipelined:
                self._refuse_unreadable()

    def eof_received(self) -> None:
        """A client that ends its side has left: the transport closes."""

    def pause_writing(self) -> None:
        self.flow.write_paused = True

    def resume_writing(self) -> None:
        self.flow.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(cast(Any, self))
        self.connections.remove(self)
        if self._cycle is not None:
            self._cycle.lose()
        self.flow.resume_writing()
        self._cycle = None  # both hold callbacks of this connection: else reference cycles
        del self._parser

    # -- the server's side -----------------------------------------------------------------------

    def shutdown(self) -> None:
        """Close once the answer under way is complete."""
        if self._cycle is None:
            self.transport.close()
        else:
            self._cycle.close_after()

    def overdue(self) -> None:
        """End a connection whose client did not send its request in time."""
        self.due_s = inf
        if self._pipelined:
            return
        if not self._in_header:
            self.transport.close()
            return
        error = InvalidRequest("The request header did not arrive in time.", code="request_timeout")
        error.status = 408
        self._refuse(error)

    def _answered(self) -> None:
        """Await the next request: the answer to this one is complete, and its header, which may be
        large, is not held while the connection is idle."""
        self._cycle = None
        self._headers = []
        self._state.total_requests += 1
        self.due_s = self._loop.time() + self.connections.server.keepalive_s

    # -- the parser's side -----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._cycle is not None:
            self._cycle.close_after()
            self._pipelined = True
            return
        # Only a request ends the wait for one: a stray line break, or the rest of a refused
        # body, must not leave a connection without an end.
        within_s = min(HEADER_TIMEOUT_S, self.connections.server.keepalive_s)
        self.due_s = self._loop.time() + within_s
        self._in_header = True
        self._url = b""
        self._headers = []
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        if self._in_header:
            self._url += url
            self._header_bytes += len(url)
            if self._header_bytes > MAX_HEADER_BYTES:
                raise ValueError("request header too large")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_header:  # a trailer, or a pipelined request's
            return
        self._headers.append((name.lower(), value))
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES or len(self._headers) > MAX_HEADERS:
            raise ValueError("request header too large")

    def on_headers_complete(self) -> None:
        if not self._in_header:
            return
        self._in_header = False
        self.due_s = inf
        parser = self._parser
        version = parser.get_http_version()
        method = parser.get_method().decode("ascii")
        head = received_head(method, self._url, self._headers, version, *self._addresses)
        is_new = version != "1.0"
        cycle = self._cycle = RequestCycle(
            head,
            self.flow,
            self._answered,
            keep_alive=is_new and parser.should_keep_alive(),
            expects_continue=is_new and head.fields.get(b"expect", b"").lower() == b"100-continue",
        )
        tasks = self._state.tasks
        tasks.add(self._loop.create_task(cycle.run(self._application, tasks)))

    def on_body(self, body: bytes) -> None:
        self._silent = 0
        if not self._pipelined and self._cycle is not None:
            self._cycle.feed(body)

    def on_message_complete(self) -> None:
        self._silent = 0
        # At an upgrade only the head is complete, and its body follows.
        if not self._pipelined and self._cycle is not None and not self._parser.should_upgrade():
            self._cycle.feed_end()

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Continue with a parser that has this request's framing and no Upgrade header."""
        after = _UpgradeCallbacks(self)
        self._parser = _parser(after)
        framing = [b"%s: %s\r\n" % (k, v) for k, v in self._headers if k in _FRAMING]
        try:
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing))
        except httptools.HttpParserError:
            self._refuse_unreadable()
            return
        after.replaying = False
        if after.complete:  # a request without a body
            self.on_message_complete()
        if rest:
            self.data_received(rest)

    def _refuse_unreadable(self) -> None:
        """Refuse a request that the parser cannot read, or one with too large a header."""
        if (
            self._header_bytes > MAX_HEADER_BYTES
            or len(self._headers) > MAX_HEADERS
            or self._silent > MAX_SILENT_BYTES
        ):
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


def _parser(callbacks: GatewayProtocol | _UpgradeCallbacks) -> httptools.HttpRequestParser:
    parser = httptools.HttpRequestParser(callbacks)
    # So that what follows a request with `connection: close` is no error.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def _address(transport: asyncio.BaseTransport, name: str) -> Address | None:
    """Host and port; None where the connection has none."""
    address = transport.get_extra_info(name)
    if not isinstance(address, list | tuple) or len(address) < 2:
        return None
    return str(address[0]), int(address[1])


def protocol_for(connections: ClientConnections) -> type[Any]:
    """The protocol class for uvicorn, bound to one set of connections."""
    return type(
        "BoundGatewayProtocol", (GatewayProtocol,), {"__slots__": (), "connections": connections}
    )
