"""The pool over real sockets: which connection serves, when one is made anew, what is told."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trustme

from gateway.upstream.connection_pool import (
    ConnectFailed,
    ConnectionPool,
    ConnectTimeout,
    NewConnection,
    OutOfDescriptors,
)
from gateway.upstream.provider_connection import (
    ConnectionBroken,
    FirstByteTimeout,
    ProviderConnection,
)
from gateway.upstream.request_head import Origin, first_lines, last_lines
from tests.kit.wire import Wire

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both loops: the gateway runs on uvloop where there is one."""
    return "asyncio", {"use_uvloop": request.param}


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Serve = Callable[["Served"], Awaitable[None]]


class Served:
    """One connection as the server sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.requests: list[bytes] = []

    async def request(self) -> bytes:
        """The next request's head and body; b"" where the client has left."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        body = b""
        for line in head.split(b"\r\n"):
            if line.startswith(b"content-length: "):
                body = await self.reader.readexactly(int(line[16:]))
        self.requests.append(head + body)
        return head + body

    def reset(self) -> None:
        """Close by RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()


class Server:
    """A server that treats its connections, in order, as the test says; the last one's way is
    every later one's."""

    def __init__(self, *ways: Serve) -> None:
        self._ways = list(ways)
        self.connections: list[Served] = []
        self.origin = Origin("http", "127.0.0.1", 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served = Served(reader, writer)
        self.connections.append(served)
        way = self._ways[min(len(self.connections), len(self._ways)) - 1]
        try:
            await way(served)
        finally:
            writer.close()


@asynccontextmanager
async def running(*ways: Serve, **tls: Any) -> AsyncIterator[tuple[Server, ConnectionPool]]:
    server = Server(*ways)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, **tls)
    port = listening.sockets[0].getsockname()[1]
    server.origin = Origin("https" if tls else "http", "127.0.0.1", port)
    pool = ConnectionPool()
    try:
        yield server, pool
    finally:
        await pool.aclose()
        listening.close()


async def answers(served: Served) -> None:
    """Every request gets `OK`."""
    while await served.request():
        served.writer.write(OK)


async def ask(
    pool: ConnectionPool, origin: Origin, method: str = "POST", body: bytes = b"{}", **how: Any
) -> bytes:
    """One request, read to its end."""
    within = {"connect_timeout_s": 1.0, "first_byte_timeout_s": 1.0, **how}
    head = first_lines(origin, method, b"/v1/x", ()) + last_lines(method, (), len(body))
    connection = await pool.request(origin, method, head, body, **within)
    read = b""
    while chunk := await connection.read_some():
        read += chunk
    return read


async def test_request_arrives_as_it_was_given() -> None:
    """Head and body as they were made; nothing else."""
    head = b"POST /v1/chat?a=b HTTP/1.1\r\nhost: h\r\nx-one: 1\r\ncontent-length: 7\r\n\r\n"
    async with running(answers) as (server, pool):
        connection = await pool.request(
            server.origin,
            "POST",
            head,
            b'{"a":1}',
            connect_timeout_s=1.0,
            first_byte_timeout_s=1.0,
        )
        assert connection.status == 200
        assert await connection.read_some() == b"ok"
        assert server.connections[0].requests == [head + b'{"a":1}']


async def test_newest_connection_serves_first() -> None:
    """Two in parallel, then one after the other: the last that came back serves all of them."""
    async with running(answers) as (server, pool):
        await asyncio.gather(ask(pool, server.origin), ask(pool, server.origin))
        assert len(server.connections) == 2
        for _ in range(3):
            await ask(pool, server.origin)
        assert sorted(len(c.requests) for c in server.connections) == [1, 4]
        assert pool.idle == len(pool) == 2


async def test_origins_share_no_connection() -> None:
    """Another port is another server."""
    async with running(answers) as (one, pool), running(answers) as (other, _):
        await ask(pool, one.origin)
        await ask(pool, other.origin)
        assert [len(s.connections) for s in (one, other)] == [1, 1]


async def test_connection_closed_while_idle_is_not_used() -> None:
    """The provider's end is seen before the request is sent, for a POST, too."""

    async def once(served: Served) -> None:
        await served.request()
        served.writer.write(OK)

    async with running(once, answers) as (server, pool):
        assert await ask(pool, server.origin) == b"ok"
        await server.connections[0].writer.wait_closed()
        assert await ask(pool, server.origin) == b"ok"
        assert len(server.connections) == 2


async def closes_at_the_second(served: Served) -> None:
    """Takes a second request and answers it with a reset."""
    await served.request()
    served.writer.write(OK)
    await served.request()
    served.reset()


async def test_idempotent_request_is_sent_again_on_a_fresh_connection() -> None:
    """A GET on a kept connection that breaks unanswered has done no harm."""
    async with running(closes_at_the_second, answers) as (server, pool):
        assert await ask(pool, server.origin, "GET", b"") == b"ok"
        assert await ask(pool, server.origin, "GET", b"") == b"ok"
        assert [len(c.requests) for c in server.connections] == [2, 1]


async def test_post_that_was_written_is_not_sent_again() -> None:
    """The provider may have done what it asks for: the caller decides."""
    async with running(closes_at_the_second, answers) as (server, pool):
        assert await ask(pool, server.origin) == b"ok"
        with pytest.raises(ConnectionBroken):
            await ask(pool, server.origin)
        assert len(server.connections) == 1


async def test_fresh_connection_that_breaks_is_not_tried_again() -> None:
    """Only a kept connection can have been stale."""

    async def resets(served: Served) -> None:
        await served.request()
        served.reset()

    async with running(resets) as (server, pool):
        with pytest.raises(ConnectionBroken):
            await ask(pool, server.origin, "GET", b"")
        assert len(server.connections) == 1


async def test_connection_that_is_lost_before_its_request_is_broken() -> None:
    """A server that accepts and closes at once is a broken exchange, of which nothing was sent;
    the pool forgets the connection."""

    async def lost(origin: Origin, new: NewConnection) -> ProviderConnection:
        connection = new()
        connection.connection_made(Wire())
        connection.connection_lost(None)
        return connection

    pool = ConnectionPool(dial=lost)
    with pytest.raises(ConnectionBroken) as caught:
        await ask(pool, Origin("http", "provider.test", 80))
    assert caught.value.untouched
    assert caught.value.unsent
    assert len(pool) == 0


async def test_idle_time_of_the_provider_is_heeded() -> None:
    """`keep-alive: timeout=1` leaves no time to use it again."""

    async def brief(served: Served) -> None:
        while await served.request():
            served.writer.write(
                b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=1, max=100\r\ncontent-length: 2\r\n\r\nok"
            )

    async with running(brief) as (server, pool):
        await ask(pool, server.origin)
        await ask(pool, server.origin)
        assert len(server.connections) == 2


async def test_first_byte_timeout_drops_the_connection() -> None:
    """No answer in time; the provider sees the client leave."""
    left = asyncio.Event()

    async def silent(served: Served) -> None:
        await served.request()
        assert not await served.reader.read()
        left.set()

    async with running(silent) as (server, pool):
        with pytest.raises(FirstByteTimeout):
            await ask(pool, server.origin, first_byte_timeout_s=0.05)
        await asyncio.wait_for(left.wait(), 5)
        assert len(pool) == 0


async def test_cancelled_request_drops_the_connection() -> None:
    """At the provider, too."""
    arrived, left = asyncio.Event(), asyncio.Event()

    async def silent(served: Served) -> None:
        await served.request()
        arrived.set()
        await served.reader.read()
        left.set()

    async with running(silent) as (server, pool):
        asking = asyncio.ensure_future(ask(pool, server.origin))
        await arrived.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(left.wait(), 5)


async def test_refused_connection_says_why() -> None:
    """In plain words, at once."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        pool = ConnectionPool()
        with pytest.raises(ConnectFailed, match="refused"):
            await ask(pool, Origin("http", "127.0.0.1", held.getsockname()[1]))
        await pool.aclose()


async def test_name_that_cannot_be_resolved_says_why() -> None:
    """With the name."""

    async def unknown(host: str, port: int) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    pool = ConnectionPool(resolve=unknown)
    with pytest.raises(ConnectFailed, match=r"nowhere\.invalid.*not known"):
        await ask(pool, Origin("http", "nowhere.invalid", 80))
    await pool.aclose()


async def test_connection_that_is_not_made_in_time_says_so() -> None:
    """The resolver's time counts."""

    async def hangs(host: str, port: int) -> Any:
        await asyncio.Event().wait()

    pool = ConnectionPool(resolve=hangs)
    with pytest.raises(ConnectTimeout):
        await ask(pool, Origin("http", "slow.invalid", 80), connect_timeout_s=0.05)
    await pool.aclose()


async def test_addresses_are_kept_and_forgotten_when_they_fail() -> None:
    """One look-up serves many connections; one that refused is looked up again."""
    asked: list[str] = []
    port = 0

    async def look_up(host: str, _: int) -> Any:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    pool = ConnectionPool(resolve=look_up)
    origin = Origin("http", "provider.test", 80)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with pytest.raises(ConnectFailed):
            await ask(pool, origin)
    async with running(answers) as (server, _):
        port = server.origin.port
        await asyncio.gather(*(ask(pool, origin) for _ in range(4)))
        await ask(pool, origin)
    await pool.aclose()
    assert asked.count("provider.test") <= 1 + 4
    assert len(asked) < 6


async def test_second_address_is_tried_when_the_first_refuses() -> None:
    """A name with several addresses serves while one of them does."""
    async with running(answers) as (server, _):
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))

            async def two(host: str, port: int) -> Any:
                return [
                    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", number))
                    for number in (held.getsockname()[1], server.origin.port)
                ]

            pool = ConnectionPool(resolve=two)
            assert await ask(pool, Origin("http", "two.test", 80)) == b"ok"
            await pool.aclose()


async def test_lack_of_descriptors_is_no_providers_fault() -> None:
    """Told apart from a connection that a provider refuses."""
    async with running(answers) as (server, pool):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as probe:
            lowest = probe.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            with pytest.raises(OutOfDescriptors):
                await ask(pool, server.origin)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert await ask(pool, server.origin) == b"ok"


async def test_closed_pool_makes_no_connection() -> None:
    """And drops those it has."""
    async with running(answers) as (server, pool):
        await ask(pool, server.origin)
        await pool.aclose()
        assert len(pool) == 0
        with pytest.raises(ConnectFailed):
            await ask(pool, server.origin)


def test_errors_of_ours_are_those_that_no_provider_can_cause() -> None:
    """Refused, unreachable and reset are a provider's."""
    from gateway.upstream.connection_pool import _OUR_OWN

    assert errno.ECONNREFUSED not in _OUR_OWN
    assert errno.EHOSTUNREACH not in _OUR_OWN


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority of this run."""
    return trustme.CA()


def server_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    authority.configure_trust(context)
    return context


async def test_https_is_spoken_and_kept(authority: trustme.CA) -> None:
    """A certificate of a trusted authority and of this name; the connection serves again."""
    async with running(answers, ssl=server_context(authority, "127.0.0.1")) as (server, _):
        pool = ConnectionPool(context=lambda: client_context(authority))
        for _ in range(2):
            assert await ask(pool, server.origin) == b"ok"
        assert len(server.connections) == 1
        await pool.aclose()


async def test_https_connection_closed_while_idle_is_not_used(authority: trustme.CA) -> None:
    """The provider's end is seen through TLS, too."""

    async def once(served: Served) -> None:
        await served.request()
        served.writer.write(OK)

    context = server_context(authority, "127.0.0.1")
    async with running(once, answers, ssl=context) as (server, _):
        pool = ConnectionPool(context=lambda: client_context(authority))
        assert await ask(pool, server.origin) == b"ok"
        await server.connections[0].writer.wait_closed()
        assert await ask(pool, server.origin) == b"ok"
        assert len(server.connections) == 2
        await pool.aclose()


@pytest.mark.parametrize(
    ("name", "trusted", "words"),
    [
        ("127.0.0.1", False, "certificate verify failed: (self-signed|unable to get)"),
        ("127.0.0.2", True, "certificate verify failed: IP address mismatch"),
    ],
    ids=["unknown authority", "another name"],
)
async def test_certificate_that_is_not_good_says_why(
    authority: trustme.CA, name: str, trusted: bool, words: str
) -> None:
    """In the words of the check; nothing was sent."""
    async with running(answers, ssl=server_context(authority, name)) as (server, _):
        context = client_context(authority) if trusted else httpx.create_ssl_context()
        pool = ConnectionPool(context=lambda: context)
        with pytest.raises(ConnectFailed, match=words):
            await ask(pool, server.origin)
        assert all(not c.requests for c in server.connections)
        await pool.aclose()


async def test_server_without_tls_says_why(authority: trustme.CA) -> None:
    """An `https` URL on a plain port."""

    async def plain(served: Served) -> None:
        served.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await served.reader.read()

    async with running(plain) as (server, _):
        pool = ConnectionPool(context=lambda: client_context(authority))
        with pytest.raises(ConnectFailed, match="TLS failed"):
            await ask(pool, Origin("https", "127.0.0.1", server.origin.port), connect_timeout_s=5)
        await pool.aclose()
