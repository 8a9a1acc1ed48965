"""httpx over our connections: what its users rely on."""

from __future__ import annotations

import socket

import httpx
import pytest

from gateway.upstream.connection_pool import ConnectionPool
from gateway.upstream.httpx_transport import PooledTransport
from tests.kit.provider import ScriptedProvider
from tests.kit.steps import Cut, Head, Respond, Send

pytestmark = pytest.mark.anyio


async def test_client_gets_status_headers_and_body(provider: ScriptedProvider) -> None:
    """And the provider the request as it was made, its headers in order."""
    provider.enqueue([Respond(status=201, json={"a": 1}, headers={"x-b": "2"})])
    async with httpx.AsyncClient(transport=PooledTransport(ConnectionPool())) as client:
        answer = await client.post(provider.base_url + "/x?y=z", json={"q": "é"})
    assert (answer.status_code, answer.json(), answer.headers["x-b"]) == (201, {"a": 1}, "2")
    request = (await provider.request(0)).request
    assert (request.method, request.path) == ("POST", "/v1/x?y=z")
    assert request.body == '{"q":"é"}'.encode()


async def test_client_streams_and_reuses_the_connection(provider: ScriptedProvider) -> None:
    """Two streamed answers, one connection."""
    async with httpx.AsyncClient(transport=PooledTransport(ConnectionPool())) as client:
        for _ in range(2):
            provider.enqueue([Head(), Send(b"one"), Send(b"two")])
            async with client.stream("GET", provider.base_url) as answer:
                assert b"".join([part async for part in answer.aiter_bytes()]) == b"onetwo"
    assert provider.connections == 1


async def test_stream_that_is_cut_is_a_read_error(provider: ScriptedProvider) -> None:
    """The part that came before the cut is not taken for the whole."""
    provider.enqueue([Head(length=10), Send(b"half"), Cut()])
    async with httpx.AsyncClient(transport=PooledTransport(ConnectionPool())) as client:
        with pytest.raises(httpx.ReadError):
            await client.get(provider.base_url)


async def test_errors_are_httpx_s_own(provider: ScriptedProvider) -> None:
    """A refused connection, a silent provider, an answer that never began."""
    async with httpx.AsyncClient(transport=PooledTransport(ConnectionPool())) as client:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            with pytest.raises(httpx.ConnectError, match="refused"):
                await client.get(f"http://127.0.0.1:{held.getsockname()[1]}/")
        provider.enqueue([Cut()])
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(provider.base_url)
