"""One HTTP exchange with one account: httpx's transport API on top of aiohttp.

`httpx.AsyncClient` is not used: its pool looks at every connection for every request, and its
layers (auth, redirects, cookies, hooks) do nothing for a gateway. The transport API
(`AsyncBaseTransport`) is public, so the library underneath can change and tests can pass in
another transport.

`Aiohttp` is httpx-aiohttp's transport with two changes. Errors keep their meaning; the original
reports a dropped connection as a connect timeout. An answer can be dropped at once, with its
socket and without awaiting, for a clean-up that awaits may itself be cancelled.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from multidict import CIMultiDict
from yarl import URL

from gateway.types import Outcome, Verdict
from gateway.upstream.providers import Failure, Headers, Target

CHUNK_BYTES = 64 * 1024


class Body(httpx.AsyncByteStream):
    """Bytes of an answer, as they arrive."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.headers = [(name.lower(), value) for name, value in response.raw_headers]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.read_some():
            yield chunk

    async def read_some(self) -> bytes:
        """The bytes that have arrived, or the next to arrive; b"" at the end of the answer."""
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise httpx.ReadError(type(error).__name__) from error

    async def aclose(self) -> None:
        self.abort()

    def abort(self) -> None:
        """Closes the socket unless the answer was read to its end."""
        self._response.close()


_reused: ContextVar[bool] = ContextVar("reused", default=False)


class _Connector(aiohttp.TCPConnector):
    """Notes in `_reused`, for the connecting task, whether its connection had served before."""

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> Any:
        connection = await super().connect(req, traces, timeout)
        protocol: Any = connection.protocol
        _reused.set(hasattr(protocol, "sagesched_served"))
        protocol.sagesched_served = True
        return connection


class Aiohttp(AiohttpTransport):
    """Transport of httpx-aiohttp with the two changes named at the head of this file."""

    _fresh: aiohttp.ClientSession | None = None

    def fresh(self) -> aiohttp.ClientSession:
        """A session whose connections serve once."""
        if self._fresh is None:
            self._fresh = _session(self.ssl_context, keep=False)
        return self._fresh

    async def aclose(self) -> None:
        await super().aclose()
        if self._fresh is not None:
            await self._fresh.close()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not isinstance(self.client, aiohttp.ClientSession):
            self.client = self.get_client()
        timeout = request.extensions["timeout"]
        content = request.stream.content  # type: ignore[union-attr]
        session = self.client
        try:
            while True:
                try:
                    response = await session.request(
                        request.method,
                        URL(str(request.url), encoded=True),
                        headers=CIMultiDict(request.headers.multi_items()),
                        data=content or None,
                        allow_redirects=False,
                        timeout=timeout,
                    )
                    break
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    # The provider had closed a kept-alive connection meanwhile. Nothing of this
                    # request was answered and no account is at fault: try once more, on a new
                    # connection.
                    if session is not self.client or not _reused.get():
                        raise
                    session = self.fresh()
        except TimeoutError as error:
            raise httpx.ConnectTimeout("connect") from error
        except aiohttp.ClientConnectorError as error:
            raise httpx.ConnectError(type(error).__name__) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            raise httpx.ReadError(type(error).__name__) from error
        except aiohttp.ClientError as error:
            raise httpx.RemoteProtocolError(type(error).__name__) from error
        return httpx.Response(response.status, stream=Body(response))


class Content(httpx.AsyncByteStream):
    """A request body that is already bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.content


def open_transport() -> Aiohttp:
    """The process's one transport, for the running loop.

    Certificate authorities are certifi's, or those of SSL_CERT_FILE.
    """
    transport = Aiohttp(client=lambda: _session(transport.ssl_context, keep=True))
    return transport


def _session(context: ssl.SSLContext, *, keep: bool) -> aiohttp.ClientSession:
    pooling: dict[str, Any] = {"keepalive_timeout": 20.0} if keep else {"force_close": True}
    return aiohttp.ClientSession(
        connector=_Connector(
            limit=0,  # limits are the accounts' own
            ttl_dns_cache=60,
            ssl=context,
            socket_factory=_socket,
            **pooling,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept", "Content-Type"),
        read_bufsize=CHUNK_BYTES,
    )


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, proto, _, _ = address
    sock = socket.socket(family, kind, proto)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if proto == socket.IPPROTO_TCP or kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class AttemptError(Exception):
    """An attempt that brought no answer; `failure` has its verdict and its error."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class ProviderAnswer:
    """A provider's answer: its headers, and a body that may still be arriving."""

    __slots__ = ("_body", "headers", "status")

    def __init__(self, status: int, headers: Headers, body: Body) -> None:
        self.status = status
        self.headers = headers
        self._body = body

    async def read_some(self) -> bytes:
        """The next bytes; b"" at the end. Raises AttemptError if the provider breaks off."""
        try:
            return await self._body.read_some()
        except httpx.TransportError:
            raise AttemptError(BROKEN) from None

    async def read_up_to(self, limit: int) -> bytes:
        """The whole body, cut at `limit` bytes."""
        parts, size = [], 0
        while size < limit and (chunk := await self.read_some()):
            parts.append(chunk)
            size += len(chunk)
        return b"".join(parts)[:limit]

    def header(self, name: bytes) -> bytes | None:
        """The header `name`, in lower case; None where it is absent."""
        return next((v for k, v in self.headers if k == name), None)

    def abort(self) -> None:
        """Closes the socket unless the answer was read to its end."""
        self._body.abort()


def _failure(verdict: Verdict, status: int, code: str, message: str) -> Failure:
    timed_out = verdict is Verdict.TIMEOUT
    outcome = Outcome.UPSTREAM_TIMEOUT if timed_out else Outcome.UPSTREAM_ERROR
    return Failure(verdict, outcome, True, status, code, message)


BROKEN = _failure(Verdict.SERVER_ERROR, 502, "upstream_broken", "the provider broke off its answer")
UNREACHABLE = _failure(
    Verdict.UNREACHABLE, 502, "upstream_unreachable", "the provider could not be reached"
)
NO_ANSWER = _failure(
    Verdict.SERVER_ERROR, 502, "upstream_broken", "the provider closed the connection unanswered"
)
SLOW_CONNECT = _failure(
    Verdict.UNREACHABLE, 504, "upstream_timeout", "no connection to the provider in time"
)
SLOW_FIRST_BYTE = _failure(
    Verdict.TIMEOUT, 504, "upstream_timeout", "no first byte from the provider in time"
)
SLOW_NEXT_BYTE = _failure(
    Verdict.TIMEOUT, 504, "upstream_timeout", "the provider fell silent in mid-answer"
)


class UpstreamClient:
    """Client that sends requests to accounts.

    Args:
        transport: any httpx transport whose responses have a `Body` as their stream.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def send(
        self, to: Target, method: str, url: httpx.URL, headers: Headers, content: bytes
    ) -> ProviderAnswer:
        """Sends one attempt and waits for the answer's headers.

        Cancelling closes the connection. The caller owns the answer and must read it to its end
        or `abort()` it.

        Raises:
            AttemptError: no answer, or none in time.
        """
        account = to.account
        request = httpx.Request(
            method,
            url,
            headers=headers,
            stream=Content(content),
            extensions={
                "timeout": aiohttp.ClientTimeout(total=None, sock_connect=account.connect_timeout_s)
            },
        )
        try:
            async with asyncio.timeout(account.first_byte_timeout_s):
                response = await self._transport.handle_async_request(request)
        except httpx.ConnectTimeout:
            raise AttemptError(SLOW_CONNECT) from None
        except httpx.ConnectError:
            raise AttemptError(UNREACHABLE) from None
        except httpx.TransportError:
            raise AttemptError(NO_ANSWER) from None
        except TimeoutError:
            raise AttemptError(SLOW_FIRST_BYTE) from None
        body = response.stream
        assert isinstance(body, Body)
        return ProviderAnswer(response.status_code, body.headers, body)

    async def aclose(self) -> None:
        await self._transport.aclose()
