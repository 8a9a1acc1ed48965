"""httpx over the gateway's own connections, for whatever is not on the hot path."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx

from gateway.upstream.connection_pool import (
    ConnectFailed,
    ConnectionPool,
    ConnectTimeout,
    OutOfDescriptors,
)
from gateway.upstream.provider_connection import (
    ConnectionBroken,
    FirstByteTimeout,
    ProviderConnection,
)
from gateway.upstream.request_head import Origin, first_lines, last_lines

_OURS = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})
_NEVER_S = 86_400.0  # a time-out that httpx does not set


class PooledTransport(httpx.AsyncBaseTransport):
    """A transport for `httpx.AsyncClient`. Bodies of requests are read whole before they are sent;
    closing it closes the pool."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request. Raises httpx's transport errors."""
        timeout: dict[str, Any] = request.extensions.get("timeout", {})
        body = await request.aread()
        origin, method = Origin.of(request.url), request.method
        headers = [
            (name, value) for name, value in request.headers.raw if name.lower() not in _OURS
        ]
        head = first_lines(origin, method, request.url.raw_path, headers)
        try:
            connection = await self._pool.request(
                origin,
                method,
                head + last_lines(method, (), len(body)),
                body,
                connect_timeout_s=timeout.get("connect") or _NEVER_S,
                first_byte_timeout_s=timeout.get("read") or _NEVER_S,
            )
        except ConnectTimeout as error:
            raise httpx.ConnectTimeout(str(error)) from error
        except (ConnectFailed, OutOfDescriptors) as error:
            raise httpx.ConnectError(str(error)) from error
        except FirstByteTimeout as error:
            raise httpx.ReadTimeout("no answer in time") from error
        except ConnectionBroken as error:
            raise httpx.RemoteProtocolError(str(error)) from error
        return httpx.Response(
            connection.status, headers=connection.headers, stream=_Body(connection)
        )

    async def aclose(self) -> None:
        """Close the pool."""
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    """An answer's bytes as they come."""

    def __init__(self, connection: ProviderConnection) -> None:
        self._connection: ProviderConnection | None = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None:
            try:
                chunk = await self._connection.read_some()
            except ConnectionBroken as error:
                raise httpx.ReadError(str(error)) from error
            if not chunk:
                self._connection = None  # it may serve another request from now on
                return
            yield chunk

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
