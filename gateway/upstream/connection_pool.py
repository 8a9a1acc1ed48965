"""Connections to providers, kept by origin and used newest first.

A connection that served goes back on top of its origin's stack; one that has been idle for
`IDLE_S`, or for as long as the provider's `keep-alive` header allows, is closed by a sweep. Before
a kept connection is used its socket is looked at: a provider that has closed it meanwhile is
noticed without losing the request.

A request is sent again, on a fresh connection, only where that cannot do anything twice: nothing
of it was written, or its method is idempotent and no byte of an answer came.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohappyeyeballs
import httpx

from gateway.upstream.provider_connection import ConnectionBroken, ProviderConnection
from gateway.upstream.providers import Headers
from gateway.upstream.request_head import Origin

IDLE_S: Final = 20.0
SWEEP_S: Final = 5.0
DNS_TTL_S: Final = 60.0
HAPPY_EYEBALLS_S: Final = 0.25
MAX_NAMES: Final = 1024  # host names whose addresses are kept
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})
_OUR_OWN: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)

AddressInfo = tuple[int, int, int, str, Any]


class ConnectFailed(Exception):
    """No connection could be made; the message says why in plain words."""


class ConnectTimeout(ConnectFailed):
    """No connection in time."""


class OutOfDescriptors(Exception):
    """This machine has no descriptor, memory or port left: no provider's fault."""


NewConnection = Callable[[], ProviderConnection]
Dial = Callable[[Origin, NewConnection], Awaitable[ProviderConnection]]


class ConnectionPool:
    """All connections of a process; made on the running loop.

    Args:
        context: makes the TLS context when the first `https` origin is called.
        resolve: addresses of a host and port; `loop.getaddrinfo` where not given.
        dial: connects to an origin by the connection that its second argument makes; TCP and TLS
            where not given.
    """

    def __init__(
        self,
        context: Callable[[], ssl.SSLContext] = httpx.create_ssl_context,
        resolve: Callable[[str, int], Awaitable[list[AddressInfo]]] | None = None,
        dial: Dial | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._make_context = context
        self._context: ssl.SSLContext | None = None
        self._resolve = resolve or self._getaddrinfo
        self._dial = dial or self._open
        self._addresses: dict[tuple[str, int], tuple[float, list[AddressInfo]]] = {}
        self._idle: dict[Origin, deque[ProviderConnection]] = {}
        self._origins: dict[ProviderConnection, Origin] = {}  # of every open connection
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        """Open connections, idle ones included."""
        return len(self._origins)

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return sum(len(kept) for kept in self._idle.values())

    async def request(
        self,
        origin: Origin,
        method: str,
        head: bytes,
        body: bytes,
        *,
        connect_timeout_s: float,
        first_byte_timeout_s: float,
    ) -> ProviderConnection:
        """Send a request; the connection whose `status` and `headers` are the answer's. The caller
        reads it to its end or aborts it. Cancelling drops the connection.

        Args:
            method: the head's; it says whether the answer has a body.
            head: as request_head.py makes it, to the empty line.

        Raises:
            ConnectFailed, ConnectTimeout, OutOfDescriptors: nothing was sent.
            FirstByteTimeout: no head of an answer in time.
            ConnectionBroken: no valid answer.
        """
        while True:
            connection = self._take(origin)
            if connection is None:
                connection = await self._connect(origin, connect_timeout_s)
            connection.send(head, body, head_only=method == "HEAD")
            reused = connection.served > 1
            try:
                await connection.head(first_byte_timeout_s)
            except ConnectionBroken as error:
                again = error.unsent or (error.untouched and method in IDEMPOTENT)
                if not (reused and again):
                    error.stale = reused and error.untouched
                    raise
            else:
                return connection

    async def aclose(self) -> None:
        """Drop every connection; none can be made any more."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self._origins):
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # lets the transports close their sockets

    # ---- kept connections

    def _take(self, origin: Origin) -> ProviderConnection | None:
        kept = self._idle.get(origin)
        while kept:
            connection = kept.pop()
            if connection.usable and not _readable(connection.fileno()):
                return connection
            connection.close()
        return None

    def _release(self, connection: ProviderConnection) -> None:
        origin = self._origins.get(connection)
        if origin is None or self._closed:
            connection.close()
            return
        allowed_s = _keep_alive_s(connection.headers)
        if allowed_s <= 0:
            connection.close()
            return
        connection.idle_until_s = self._loop.time() + allowed_s
        self._idle.setdefault(origin, deque()).append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _gone(self, connection: ProviderConnection) -> None:
        origin = self._origins.pop(connection, None)
        kept = self._idle.get(origin) if origin is not None else None
        if kept is not None and connection in kept:
            kept.remove(connection)

    def _sweep(self) -> None:
        now = self._loop.time()
        for origin, kept in list(self._idle.items()):
            for connection in [c for c in kept if c.idle_until_s <= now]:
                kept.remove(connection)
                connection.close()
            if not kept:
                del self._idle[origin]
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep) if self._idle else None

    # ---- new connections

    async def _connect(self, origin: Origin, timeout_s: float) -> ProviderConnection:
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._dial(origin, self._new)
        except TimeoutError:
            self._addresses.pop((origin.host, origin.port), None)
            reason = f"no connection to {origin.host} within {timeout_s:g} s"
            raise ConnectTimeout(reason) from None
        except socket.gaierror as error:
            words = f"the name {origin.host} cannot be resolved: {error.strerror}"
            raise ConnectFailed(words) from None
        except ssl.SSLError as error:
            raise ConnectFailed(_tls_words(error)) from None
        except OSError as error:
            words = os.strerror(error.errno) if error.errno else str(error) or "no connection"
            if error.errno in _OUR_OWN:
                raise OutOfDescriptors(words) from None
            self._addresses.pop((origin.host, origin.port), None)
            raise ConnectFailed(words) from None
        if self._closed:
            connection.close()
            raise ConnectFailed("the gateway is stopping")
        if not connection.usable:  # lost while it was handed over
            reason = "the provider closed the connection"
            raise ConnectionBroken(reason, untouched=True, unsent=True)
        self._origins[connection] = origin
        return connection

    def _new(self) -> ProviderConnection:
        return ProviderConnection(self._loop, self._release, self._gone)

    async def _open(self, origin: Origin, new: NewConnection) -> ProviderConnection:
        infos = await self._look_up(origin.host, origin.port)
        sock = await aiohappyeyeballs.start_connection(
            infos,
            happy_eyeballs_delay=HAPPY_EYEBALLS_S,
            interleave=1,
            loop=self._loop,
            socket_factory=_new_socket,
        )
        tls: dict[str, Any] = {}
        if origin.scheme == "https":
            if self._context is None:
                self._context = self._make_context()
            tls = {"ssl": self._context, "server_hostname": origin.host}
        try:
            _, connection = await self._loop.create_connection(new, sock=sock, **tls)
        except BaseException:
            sock.close()
            raise
        return connection

    async def _look_up(self, host: str, port: int) -> list[AddressInfo]:
        key = (host, port)
        found = self._addresses.get(key)
        now = self._loop.time()
        if found is not None and found[0] > now:
            return found[1]
        infos: list[AddressInfo] = await self._resolve(host, port)
        if len(self._addresses) >= MAX_NAMES:
            self._addresses.clear()
        self._addresses[key] = (now + DNS_TTL_S, infos)
        return infos

    async def _getaddrinfo(self, host: str, port: int) -> list[AddressInfo]:
        return await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[return-value]


def _new_socket(address: AddressInfo) -> socket.socket:
    family, kind, proto, _, _ = address
    sock = socket.socket(family, kind, proto)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _readable(descriptor: int) -> bool:
    """True where an idle connection has bytes or its end to read: it can serve no more."""
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _keep_alive_s(headers: Headers) -> float:
    """Seconds for which the connection may be kept: the provider's word less a second of travel."""
    for name, value in headers:
        if name == b"keep-alive":
            for part in value.split(b","):
                key, _, number = part.strip().partition(b"=")
                if key.lower() == b"timeout" and number.strip().isdigit():
                    return min(IDLE_S, float(number) - 1.0)
    return IDLE_S


def _tls_words(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    return f"TLS failed: {error.reason or error}"
