"""All clients' connections together: their buffers, and those that are overdue."""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.api.client_connections import MIN_BUFFER_BYTES, ClientConnections
from tests.kit.wire import Wire
from tests.unit.settings.trees import valid

pytestmark = pytest.mark.anyio

SERVER = replace(valid().server, stream_buffer_bytes=2**20, buffer_memory_bytes=2**21)


class LimitedWire(Wire):
    """A wire that keeps its limit."""

    limit = 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limit = high or 0


class Client:
    """A connection without a protocol; `ended` counts how often it was told to end."""

    def __init__(self, due_s: float = inf) -> None:
        self.wire = LimitedWire()
        self.transport: asyncio.Transport = self.wire
        self.due_s = due_s
        self.ended = 0

    def overdue(self) -> None:
        self.due_s = inf
        self.ended += 1


def connected(count: int, **server: Any) -> tuple[ClientConnections, list[Client]]:
    connections = ClientConnections(replace(SERVER, **server))
    clients = [Client() for _ in range(count)]
    for client in clients:
        connections.add(client)
    return connections, clients


@pytest.mark.parametrize(
    ("count", "limit"), [(1, 2**20), (2, 2**20), (3, 2**19), (5, 2**18), (1000, MIN_BUFFER_BYTES)]
)
async def test_buffers_of_all_connections_stay_within_their_bound(count: int, limit: int) -> None:
    """Each connection's limit is halved until all of them fit, down to the least that works."""
    _, clients = connected(count)
    assert {client.wire.limit for client in clients} == {limit}


async def test_limit_grows_when_connections_close() -> None:
    """Those that stay get back what the closed ones held."""
    connections, clients = connected(5)
    for client in clients[1:]:
        connections.remove(client)
    assert clients[0].wire.limit == 2**20
    assert len(connections) == 1


async def test_held_bytes_are_those_of_all_connections() -> None:
    """Unread bytes are counted over all connections that are open."""
    connections, clients = connected(3)
    for client in clients:
        client.wire.unsent = 10
    connections.remove(clients[0])
    assert connections.held() == 20


async def test_sweep_ends_what_is_overdue_alone() -> None:
    """A connection is ended once its time has come, once; one of which nothing is awaited never."""
    connections, (late, later, never) = connected(3)
    late.due_s, later.due_s = 10.0, 11.0
    for now in (9.0, 10.0, 10.5, 10.9):
        connections.sweep(now)
    assert (late.ended, later.ended, never.ended) == (1, 0, 0)
