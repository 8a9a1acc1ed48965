"""A stream relayed step by step: however the network cuts it, whenever its client is slow or its
provider breaks off, the client gets every whole event once, in order, and one end.

The parts are the real ones, as in test_cancel_steps.py; only the two transports are scripts.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise

import msgspec
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.types import JobRecord, Outcome
from tests.integration.test_cancel_steps import House
from tests.kit.client import WiredClient
from tests.kit.steps import chunk, event

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = [event(chunk({}, "stop")), b"data: [DONE]\n\n"]
TEXTS = st.lists(st.integers(0, 40_000).map(lambda size: "x" * size), max_size=6)
CHUNKS = list(range(0, 200_000, 9_000))
CUTS = st.lists(st.integers(0, 200_000), max_size=30)
# Steps of the loop in which the client takes all it has (even places) or is slow (odd ones).
PAUSES = st.lists(st.integers(1, 25), max_size=6).map(
    lambda runs: [bool(n % 2) for n, run in enumerate(runs) for _ in range(run)]
)


async def relayed(
    parts: list[bytes], pauses: list[bool], *, breaks: bool
) -> tuple[JobRecord, WiredClient]:
    """One stream; at each step of the loop its client is slow (True) or takes all it has."""
    house = House(True, [])
    house.provider.parts, house.provider.breaks = parts, breaks
    client = WiredClient()
    exchange = house.exchange("one", client)
    exchange.wants_usage = True
    task = asyncio.ensure_future(house.relay.run(exchange))
    slow_since: int | None = None
    for slow in pauses:
        await asyncio.sleep(0)
        if not slow:
            slow_since = None
            client.flow.resume_writing()
        elif slow_since is None:
            slow_since = client.wire.writes
            client.flow.write_paused = True
        else:  # the write that finds it slow, and the last bytes, which wait for nobody
            assert client.wire.writes <= slow_since + 2
    client.flow.resume_writing()
    record = await task
    house.check_empty()
    house.engine.close()
    return record, client


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


@hypothesis_settings(max_examples=100, deadline=None, database=None)
@given(texts=TEXTS, cuts=CUTS, pauses=PAUSES, lost=st.none() | st.integers(0, 200_000))
@example(texts=["x" * 9_000] * 20, cuts=CHUNKS, pauses=[False] * 12 + [True] * 40, lost=None)
@example(texts=["x" * 9_000] * 20, cuts=CHUNKS, pauses=[True] * 40, lost=150_000)
def test_stream_arrives_whole_and_once(
    texts: list[str], cuts: list[int], pauses: list[bool], lost: int | None
) -> None:
    """Whole, or up to the event in which its provider was lost and with one error in the end."""
    events = [*[event(chunk({"content": text})) for text in texts], *END]
    data = HEAD + b"".join(b"%x\r\n%s\r\n" % (len(e), e) for e in events)
    if lost is None:
        data += b"0\r\n\r\n"
    else:
        data = data[: lost % (len(data) - len(END[1]))]
    parts = [part for part in cut(data, cuts) if part] or [b""]
    record, client = asyncio.run(relayed(parts, pauses, breaks=lost is not None))
    response = client.response()
    assert client.completed == 1
    if lost is None:
        assert (record.outcome, record.finish_reason) == (Outcome.OK, "stop")
        assert response.body == b"".join(events)
        return
    assert record.outcome is Outcome.UPSTREAM_ERROR
    if response.status != 200:  # not one event came
        assert events[0] not in data
        return
    *came, error = [part + b"\n\n" for part in response.body.removesuffix(b"\n\n").split(b"\n\n")]
    assert came == events[: len(came)]
    assert len(came) == sum(b"".join(events[: n + 1]) in _body(data) for n in range(len(events)))
    assert msgspec.json.decode(error.removeprefix(b"data: "))["error"]["code"] == "upstream_broken"


def _body(data: bytes) -> bytes:
    """The bytes of a chunked body, as far as they have come."""
    rest, body = data[len(HEAD) :], b""
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body
