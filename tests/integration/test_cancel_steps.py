"""A client that leaves at each single step of the loop: the core's invariants hold and no permit,
lease, provider stream or task is left.

The engine, core, accounts, relay and client are the real ones on a real loop; only the HTTP
transport (a seam) is a script, so that each step of the loop is the same in every run.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from gateway.api.auth import Tenants
from gateway.api.plane import DataPlane
from gateway.api.problems import write_problem
from gateway.api.routing import RoutingTable
from gateway.app import fresh_core
from gateway.balance.accounts import Accounts
from gateway.engine.engine import Engine
from gateway.engine.exchange import Exchange, StreamEnd
from gateway.engine.failsafe import Build
from gateway.engine.relay import Relay
from gateway.predict.process.child_client import ChildLink
from gateway.predict.process.predictor import Predictor
from gateway.schedule.events import Action, Event, Finished
from gateway.schedule.live_job import PROMPT_RATIO
from gateway.schedule.routes import routes
from gateway.schedule.scheduler import Scheduler
from gateway.settings.load import build
from gateway.settings.schema import Settings
from gateway.types import QUANTILE_LEVELS, Job, JobRecord, Outcome, Rung, Workload
from gateway.upstream.connection_pool import ConnectionPool
from gateway.upstream.http_client import UpstreamClient
from gateway.upstream.provider_connection import ProviderConnection
from gateway.upstream.providers import target
from gateway.upstream.request_head import Origin
from tests.kit.client import WiredClient
from tests.kit.steps import chunk, event
from tests.kit.wire import Wire

SETTINGS = {
    "accounts": [
        {
            "name": "a",
            "base_url": "http://provider/v1",
            "api_key": "env:K",
            "models": ["m"],
            "initial_concurrency": 1,
            "max_concurrency": 1,
        }
    ],
    "tenants": [{"name": "t", "anonymous": True}],
}
WORKLOAD = Workload(10, 50.0, 90.0, (50.0,) * len(QUANTILE_LEVELS), 0.9, 1, 1, 0, 1, Rung.HEURISTIC)
EVENTS = [event(chunk({"content": "a"})), event(chunk({}, "stop")) + b"data: [DONE]\n\n"]
WHOLE = b'{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'


class ScriptedWire(Wire):
    """A server's end of one connection: a part of the answer at each step of the loop in which it
    is read; where it `breaks`, a reset after the last."""

    def __init__(
        self, parts: list[bytes], connection: ProviderConnection, *, breaks: bool = False
    ) -> None:
        super().__init__()
        self._parts = parts
        self._connection = connection
        self._breaks = breaks

    @property
    def busy(self) -> bool:
        """A request was sent, and its answer neither read to the end nor given up."""
        return bool(self.written) and not (self.aborted or self._connection.usable)

    def write(self, data: Any) -> None:
        super().write(data)
        asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        if self.aborted or not (self._parts or self._breaks):
            return
        if not self._parts:
            self._connection.connection_lost(ConnectionResetError("reset"))
            return
        if not self.paused:
            self._connection.data_received(self._parts.pop(0))
        asyncio.get_running_loop().call_soon(self._step)


class Provider:
    """Dials connections whose other end is a script, behind the real pool and parser. `parts`,
    where given, are the bytes of every answer; it `breaks` after them or not."""

    def __init__(self, stream: bool, statuses: list[int]) -> None:
        self._stream = stream
        self._statuses = statuses
        self.wires: list[ScriptedWire] = []
        self.parts: list[bytes] | None = None
        self.breaks = False

    @property
    def open(self) -> int:
        """Answers under way."""
        return sum(wire.busy for wire in self.wires)

    async def dial(
        self, origin: Origin, new: Callable[[], ProviderConnection]
    ) -> ProviderConnection:
        await asyncio.sleep(0)
        status = self._statuses.pop(0) if self._statuses else 200
        if status != 200:
            kind, parts = b"application/json", [b'{"error":{}}']
        elif self._stream:
            kind, parts = b"text/event-stream", EVENTS
        else:
            kind, parts = b"application/json", [WHOLE[:20], WHOLE[20:]]
        head = b"HTTP/1.1 %d X\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"
        chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
        answer = self.parts or [head % (status, kind), *chunks, b"0\r\n\r\n"]
        connection = new()
        self.wires.append(ScriptedWire(list(answer), connection, breaks=self.breaks))
        connection.connection_made(self.wires[-1])
        return connection


class House:
    """Engine, relay and a scripted provider."""

    def __init__(self, stream: bool, statuses: list[int], core: Build = fresh_core) -> None:
        settings: Settings = build(SETTINGS, "test")
        self.settings = settings
        self.stream = stream
        self.provider = Provider(stream, statuses)
        self.predictor = Predictor(settings.predict, Path("nowhere"), connect=no_child)
        self.engine = Engine(core(settings, None), fresh_core)
        self.relay = Relay(
            self.engine,
            UpstreamClient(ConnectionPool(dial=self.provider.dial)),
            {"a": target(settings.accounts[0], "key")},
            settings.server,
            write_problem,
            predictor=self.predictor,
            prices={},
        )

    def exchange(self, job_id: str, client: WiredClient | None = None) -> Exchange:
        route = routes(self.settings.accounts)["m"]
        job = Job(
            id=job_id,
            tenant="t",
            model="m",
            pool=route.pool,
            accounts=route.accounts,
            workload=WORKLOAD,
            arrived_s=self.engine.clock(),
        )
        return Exchange(
            job=job,
            connection=(client or WiredClient()).cycle,
            route="/v1/chat/completions",
            method="POST",
            path="/chat/completions",
            query=b"",
            headers=[],
            body=msgspec.json.encode({"model": "m"}),
            stream=self.stream,
            wants_usage=False,
            stream_end=StreamEnd.CHOICES if self.stream else StreamEnd.ANY,
        )

    def check_empty(self) -> None:
        """Assert that no permit, lease, job or provider stream is left."""
        self.engine.check()
        assert self.engine.jobs == 0
        assert self.relay.open == 0
        assert self.provider.open == 0
        snapshot = self.engine.snapshot()
        assert [a.inflight for a in snapshot.accounts] == [0]
        for cls in snapshot.pools[0].classes.values():
            assert (cls.running, cls.waiting, cls.inflight_tokens) == (0, 0, 0)
        assert snapshot.submitted == sum(snapshot.ended.values())


async def no_child() -> ChildLink:
    """For a predictor that is never started."""
    raise AssertionError


async def leave_at(step: int, stream: bool, statuses: list[int], how: str) -> JobRecord | None:
    """Run one call beside another, let its client leave after `step` loop steps; the record."""
    house = House(stream, list(statuses))
    client = WiredClient()
    # The slot's other user: it queues behind or before, and must be served whatever happens.
    other = asyncio.ensure_future(house.relay.run(house.exchange("other")))
    task = asyncio.ensure_future(house.relay.run(house.exchange("one", client)))
    for _ in range(step):
        await asyncio.sleep(0)
    finished = task.done()
    if how == "disconnect":
        client.leave()
    else:
        task.cancel()
    await asyncio.wait([task, other])
    house.check_empty()
    assert other.result().outcome is Outcome.OK
    house.engine.close()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return task.result() if finished else None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("statuses", [[], [500], [200, 500]])
@pytest.mark.parametrize("how", ["disconnect", "cancel"])
def test_leaving_at_any_step_leaves_nothing(stream: bool, statuses: list[int], how: str) -> None:
    """Left at any step, from the first to the one after the last, a request leaves no permit,
    lease, stream or task."""
    step = 0
    while True:
        record = asyncio.run(leave_at(step, stream, statuses, how))
        if record is not None:
            assert record.outcome is Outcome.OK
            break
        step += 1
    assert step > 10  # the call really had steps to leave at


def charged(house: House) -> float:
    """Tokens charged to the one tenant for its work."""
    core = house.engine.core
    (pool,) = core.pools.values()
    return sum(share.counter for share in pool.shares_of(core.tenant("t")))


@pytest.mark.parametrize(
    ("leaves", "owed"),
    [
        (True, 1 + PROMPT_RATIO * WORKLOAD.prompt_tokens),  # the one event it was sent
        (False, 2 + PROMPT_RATIO * WORKLOAD.prompt_tokens),  # the twin: the forecast was 50
    ],
)
def test_abandoned_stream_is_charged_for_the_tokens_that_came(leaves: bool, owed: float) -> None:
    """A tenant's share is charged the tokens that came, not those that were forecast."""

    async def main() -> None:
        house = House(True, [])
        client = WiredClient()
        client.wire.on_write = client.leave if leaves else None
        record = await house.relay.run(house.exchange("one", client))
        assert record.outcome is (Outcome.CANCELLED if leaves else Outcome.OK)
        house.check_empty()
        assert charged(house) == pytest.approx(owed)
        house.engine.close()

    asyncio.run(main())


class FaultyAtEnds(Scheduler):
    """A core that raises when a job ends well."""

    def handle(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, Finished) and event.outcome is Outcome.OK:
            raise RuntimeError("faulty")
        return super().handle(event, now)


def faulty_core(settings: Settings, old: Scheduler | None) -> Scheduler:
    return FaultyAtEnds(settings, Accounts(settings.accounts, settings.balance))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("core", [fresh_core, faulty_core])
def test_answer_is_written_before_its_request_is_settled(stream: bool, core: Build) -> None:
    """The client has its last byte before the scheduler works on the end of its request, which
    ends in the same step of the loop; a fault there takes nothing from the answer."""

    async def main() -> None:
        house = House(stream, [], core)
        client = WiredClient()
        jobs: list[int] = []
        client.wire.on_write = lambda: jobs.append(house.engine.jobs)
        record = await house.relay.run(house.exchange("one", client))
        assert jobs
        assert set(jobs) == {1}
        assert record.outcome is Outcome.OK
        assert record.usage is not None
        assert client.response().status == 200
        house.check_empty()
        house.engine.close()

    asyncio.run(main())


@pytest.mark.parametrize("statuses", [[], [500] * 9, [400]])
def test_body_is_freed_with_the_end_of_its_request(statuses: list[int]) -> None:
    """An answered and a refused request both free their body. (The scheduler may keep a refusal's
    error for minutes; the traceback in it must not keep the body alive, whose bytes are no longer
    counted.)"""

    async def main() -> None:
        house = House(False, list(statuses))
        exchange = house.exchange("one")
        body = exchange.body = bytes(1000)
        record = await house.relay.run(exchange)
        assert (record.outcome is Outcome.OK) is not bool(statuses)
        del exchange
        await asyncio.sleep(0)
        assert sys.getrefcount(body) == 2  # this frame's, and the call's own
        house.engine.close()

    asyncio.run(main())


def test_stream_that_stalls_teaches_no_pace() -> None:
    """A stream stalled by its client does not count for the provider's pace, and its tenant, which
    held the slot, is charged the forecast."""

    async def main() -> None:
        house = House(True, [])
        house.relay.server = replace(house.settings.server, write_timeout_s=0.01)
        client = WiredClient()
        client.flow.write_paused = True  # it takes nothing
        record = await house.relay.run(house.exchange("one", client))
        assert record.outcome is Outcome.STALLED
        assert record.usage is not None  # known all the same
        house.check_empty()
        (pool,) = house.engine.core.pools.values()
        assert pool.pace.completions == 0
        assert charged(house) == 50 + int(PROMPT_RATIO * WORKLOAD.prompt_tokens)
        house.engine.close()

    asyncio.run(main())


def test_lost_stream_would_be_seen() -> None:
    """The twin: a provider stream that nobody closes makes the check fail."""

    async def main() -> None:
        house = House(True, [])
        pool = ConnectionPool(dial=house.provider.dial)
        within = {"connect_timeout_s": 1.0, "first_byte_timeout_s": 1.0}
        lost = await pool.request(
            Origin("http", "p", 80), "GET", b"GET / HTTP/1.1\r\n\r\n", b"", **within
        )
        with pytest.raises(AssertionError):
            house.check_empty()
        lost.abort()
        house.check_empty()

    asyncio.run(main())


def holds_itself(*_: object) -> None:
    circle: list[object] = []
    circle.append(circle)


def circles(calls: int, stream: bool, end: str, *, spoiled: bool) -> int:
    """The number of objects that only the collector can free after so many requests in turn."""
    body = msgspec.json.encode({"model": "m", "messages": [{"role": "user"}], "stream": stream})

    async def main() -> int:
        house = House(stream, [400] * (calls + 1) if end == "refused there" else [])
        if end == "refused here":
            house.engine.drain()
        settings = house.settings
        routing = RoutingTable(Tenants(settings), routes(settings.accounts), settings.server, 100)
        plane = DataPlane(routing, house.engine, house.relay, house.predictor)
        plane.learn = holds_itself if spoiled else None

        async def one() -> None:
            client = WiredClient(body=body)
            await plane(client.cycle)
            assert client.completed == 1

        await one()
        gc.collect()
        gc.disable()
        try:
            for _ in range(calls):
                await one()
            return gc.collect()
        finally:
            gc.enable()
            house.check_empty()
            house.engine.close()

    return asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("end", ["served", "refused there", "refused here"])
def test_request_is_freed_without_the_garbage_collector(stream: bool, end: str) -> None:
    """The memory of a request, of a refused one too, is freed at its end without the garbage
    collector, which runs seldom in service."""
    assert circles(20, stream, end, spoiled=False) < 20
    assert circles(20, stream, end, spoiled=True) >= 20
