"""Requests on the wire, cut anywhere: what the application gets of them, and what is refused."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.api.client_connections import ClientConnections
from gateway.api.protocol import MAX_HEADER_BYTES, MAX_HEADERS, GatewayProtocol, protocol_for
from gateway.api.request_cycle import RequestCycle
from tests.kit.http1 import parse_response
from tests.kit.wire import Wire
from tests.unit.settings.trees import valid

pytestmark = pytest.mark.anyio

Seen = tuple[str, bytes, bytes, bytes]  # method, path, query, body


class ServedWire(Wire):
    """A wire that a server's connection accepts; it counts as a Unix socket's, without options."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


class Served:
    """One connection of a server whose application answers with what it has got."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.wire = ServedWire()
        self.state = SimpleNamespace(connections=set(), tasks=set(), total_requests=0)
        kind = protocol_for(ClientConnections(valid().server))
        config: Any = SimpleNamespace(loaded_app=self._application)
        self.protocol: GatewayProtocol = kind(config, self.state, {})
        self.protocol.connection_made(self.wire)

    async def _application(self, client: RequestCycle) -> None:
        body, more = b"", True
        while more:
            message = await client.receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        head = client.head
        self.seen.append((head.method, head.path, head.query, body))
        client.start(200, [])
        client.finish(b"%d" % len(body))

    async def send(self, pieces: Iterable[bytes]) -> None:
        """Send pieces of requests, with time to answer after each."""
        for piece in pieces:
            if not self.wire.is_closing():
                self.protocol.data_received(piece)
            for _ in range(5):  # steps in which an application gets on with what there is
                await asyncio.sleep(0)

    @property
    def statuses(self) -> list[int]:
        """The statuses of the responses so far, without interim ones."""
        rest, found = self.wire.written, []
        while rest:
            parsed = parse_response(rest, closed=self.wire.closed)
            assert parsed is not None
            found.append(parsed[0].status)
            rest = parsed[1]
        return found


OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
POST = b"POST /v1/x HTTP/1.1\r\nhost: a\r\n"
ONE: Seen = ("POST", b"/v1/x", b"", b"body")
REQUESTS: dict[str, tuple[bytes, list[Seen]]] = {
    "get": (b"GET /v1/x?a=1 HTTP/1.1\r\nhost: a\r\n\r\n", [("GET", b"/v1/x", b"a=1", b"")]),
    "absolute": (b"GET http://a/v1/x HTTP/1.1\r\nhost: a\r\n\r\n", [("GET", b"/v1/x", b"", b"")]),
    "fragment": (b"GET /v1/x#y HTTP/1.1\r\nhost: a\r\n\r\n", [("GET", b"/v1/x", b"", b"")]),
    "length": (POST + b"content-length: 4\r\n\r\nbody", [ONE]),
    "chunked": (
        POST + b"transfer-encoding: chunked\r\n\r\n2\r\nbo\r\n2;x=y\r\ndy\r\n0\r\nt: r\r\n\r\n",
        [ONE],
    ),
    "upgrade": (POST + OFFER + b"content-length: 4\r\n\r\nbody", [ONE]),
    "upgrade, chunked": (
        POST + OFFER + b"transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        [ONE],
    ),
    "upgrade without a body": (POST + OFFER + b"\r\n", [("POST", b"/v1/x", b"", b"")]),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_request_is_the_same_however_it_is_cut(name: str) -> None:
    """Two requests in turn are the same to the application in one piece each, cut in two at any
    byte, and byte by byte."""
    raw, seen = REQUESTS[name]
    cuts = [[raw], [raw[i : i + 1] for i in range(len(raw))]]
    cuts += [[raw[:at], raw[at:]] for at in range(1, len(raw))]
    for pieces in cuts:
        served = Served()
        await served.send([*pieces, *pieces])
        assert served.seen == seen * 2, pieces
        assert served.statuses == [200, 200]
        assert not served.wire.is_closing()


@pytest.mark.parametrize("name", ["length", "chunked", "get"])
async def test_pipelined_request_is_dropped_however_it_is_cut(name: str) -> None:
    """Of two requests in one piece the first is answered, and the connection closes."""
    raw, seen = REQUESTS[name]
    for at in range(len(raw) + 1, 2 * len(raw) + 1):
        served = Served()
        await served.send([(raw + raw)[:at], (raw + raw)[at:]])
        assert served.seen == seen
        assert served.statuses == [200]
        assert served.wire.closed


@pytest.mark.parametrize("rest", [b"nonsense\r\n\r\n", b"\0", b"GET", b" "])
@pytest.mark.parametrize("name", REQUESTS)
async def test_nonsense_after_a_request_does_not_reach_into_its_answer(
    name: str, rest: bytes
) -> None:
    """The answer under way is finished, and the connection closes after it."""
    raw, seen = REQUESTS[name]
    served = Served()
    await served.send([raw + rest])
    assert served.seen == seen
    assert served.statuses == [200]
    assert served.wire.closed


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (POST + b"content-length: 4\r\ncontent-length: 5\r\n\r\n", 400),
        (POST + b"a b: c\r\n\r\n", 400),
        (POST + b"transfer-encoding: chunked\r\n\r\nx\r\n", 400),
        (POST + b"x: " + bytes(MAX_HEADER_BYTES).replace(b"\0", b"y") + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * MAX_HEADER_BYTES + b" HTTP/1.1\r\n\r\n", 431),
        (POST + b"x: y\r\n" * (MAX_HEADERS + 1) + b"\r\n", 431),
    ],
    ids=["none", "two framings", "two lengths", "a name", "a chunk", "a value", "a url", "many"],
)
async def test_unreadable_request_is_refused_and_closes(raw: bytes, status: int) -> None:
    """Bytes that are no HTTP, have two lengths or too large a head are refused and their connection
    is closed, in one piece or in many."""
    for size in (len(raw), 1000, 7):
        served = Served()
        await served.send(raw[i : i + size] for i in range(0, len(raw), size))
        assert served.wire.closed
        assert b"HTTP/1.1 %d " % status in served.wire.written
        assert served.seen == []


async def test_lost_connection_leaves_nothing_behind() -> None:
    """A connection lost in the middle of a body ends its application; it is counted no more."""
    served = Served()
    await served.send([POST + b"content-length: 4\r\n\r\nbo"])
    assert len(served.state.tasks) == 1
    served.protocol.connection_lost(None)
    await asyncio.wait(set(served.state.tasks))
    assert served.seen == []
    assert served.wire.written == b""
    assert not served.state.tasks
    assert not served.state.connections
    assert len(served.protocol.connections) == 0


async def test_shutdown_closes_after_the_answer_under_way() -> None:
    """An idle connection closes at once, a busy one with its answer, which says so."""
    idle, busy = Served(), Served()
    idle.protocol.shutdown()
    assert idle.wire.closed
    await busy.send([POST + b"content-length: 4\r\n\r\nbo"])
    busy.protocol.shutdown()
    assert not busy.wire.closed
    await busy.send([b"dy"])
    assert busy.wire.closed
    assert b"connection: close\r\n" in busy.wire.written


async def test_overdue_header_is_told() -> None:
    """A client whose header is late is answered 408; one that sent nothing is closed silently."""
    slow, silent = Served(), Served()
    await slow.send([POST])
    slow.protocol.overdue()
    assert slow.statuses == [408]
    silent.protocol.overdue()
    assert silent.wire.closed
    assert silent.wire.written == b""


async def consumer(client: RequestCycle) -> None:
    """An application that reads a body and keeps nothing."""
    message: dict[str, Any] = {"more_body": True}
    while message.get("more_body"):
        message = await client.receive()
    if message["type"] == "http.request":
        client.start(200, [])
        client.finish(b"")


async def uncollected(raw: bytes, *, spoiled: bool) -> int:
    """The number of objects that only the collector can free after twenty connections."""
    state = SimpleNamespace(connections=set(), tasks=set(), total_requests=0)
    kind = protocol_for(ClientConnections(valid().server))

    async def one() -> None:
        protocol = kind(SimpleNamespace(loaded_app=consumer), state, {})
        wire = ServedWire()
        protocol.connection_made(wire)
        protocol.data_received(raw)
        for _ in range(5):
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        if spoiled:
            wire.on_write = protocol.shutdown
        if state.tasks:
            await asyncio.wait(set(state.tasks))

    await one()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            await one()
        return gc.collect()
    finally:
        gc.enable()


@pytest.mark.parametrize("cut", [0, 1, 10])
@pytest.mark.parametrize("name", REQUESTS)
async def test_connection_is_freed_without_the_garbage_collector(name: str, cut: int) -> None:
    """The memory of a connection is freed with its end, whole requests or half ones; the twin has
    a reference cycle and is not."""
    raw = REQUESTS[name][0]
    assert await uncollected(raw[: len(raw) - cut], spoiled=False) < 20
    assert await uncollected(raw[: len(raw) - cut], spoiled=True) >= 20
