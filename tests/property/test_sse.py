"""CONTRIBUTING.md's property 7: any cut of an event stream gives the same events, and a meter on it
the same bytes, usage and end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby, pairwise
from typing import Any

from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.upstream.sse import Piece, Splitter
from gateway.upstream.stream_meter import StreamMeter

QUICK = hypothesis_settings(max_examples=300, deadline=None, database=None)
MAX_BYTES = 48

# Raw streams: mostly what makes cuts hard, and events around the bound.
SHREDS = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"data: ", b"x", b":", b"x" * 40]
)
RAW = st.lists(SHREDS | st.binary(max_size=4), max_size=40).map(b"".join)


def _event(body: Any, end: bytes, name: bytes) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return name + b"data: " + data + end + end


USAGE = st.none() | st.fixed_dictionaries(
    {"prompt_tokens": st.integers(0, 99), "completion_tokens": st.integers(0, 99)}
)
CHOICES = st.just([]) | st.fixed_dictionaries(
    {
        "delta": st.just({}) | st.fixed_dictionaries({"content": st.text(max_size=30)}),
        "finish_reason": st.sampled_from([None, "stop", "length"]),
    }
).map(lambda choice: [choice])
CHUNKS = st.fixed_dictionaries(
    {"id": st.just("c")},
    optional={
        "choices": CHOICES,
        "usage": USAGE,
        "error": st.none() | st.just({"message": "late", "code": "500"}),
    },
)
RESPONSES = st.builds(
    lambda status, usage: {"type": "t", "response": {"status": status, "usage": usage}},
    st.sampled_from(["in_progress", "completed", "failed"]),
    st.none() | st.fixed_dictionaries({"input_tokens": st.integers(0, 9)}),
)
EVENTS = st.builds(
    _event,
    CHUNKS | RESPONSES | st.sampled_from([b"[DONE]", b"no JSON", b'{"usage"']),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.sampled_from([b"", b"event: e\n", b": ping\n", b"\n", b"\xef\xbb\xbf"]),
)
STREAMS = st.lists(EVENTS, max_size=8).map(b"".join)
CUTS = st.lists(st.integers(0, 2000), max_size=30)


def _cut(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({cut % (len(stream) + 1) for cut in cuts} | {0, len(stream)})
    return [stream[a:b] for a, b in pairwise(places)]


def _events(chunks: Iterable[bytes], max_bytes: int) -> tuple[list[tuple[bool, bytes]], bytes]:
    """Whole events one by one, pieces joined; and everything that came, in order."""
    splitter = Splitter(max_bytes)
    got = [event for chunk in chunks for event in splitter.feed(chunk)] + [splitter.rest()]
    events: list[tuple[bool, bytes]] = []
    for in_pieces, group in groupby(got, lambda event: isinstance(event, Piece)):
        members = list(group)
        events += [(True, b"".join(members))] if in_pieces else [(False, e) for e in members if e]
    return events, b"".join(got)


@QUICK
@given(stream=RAW, cuts=CUTS)
@example(stream=b"x\n\n\n", cuts=[3])
@example(stream=b"data: 1\r\n\r\ndata: 2", cuts=[10])
@example(stream=b"x" * 60 + b"\r\n\r\nx", cuts=[62])
def test_splitter_gives_the_same_events_whatever_the_cut(stream: bytes, cuts: list[int]) -> None:
    """Property 7, over streams of line ends and fragments, events beyond the bound included."""
    whole, everything = _events([stream], MAX_BYTES)
    assert everything == stream
    assert _events(_cut(stream, cuts), MAX_BYTES) == (whole, stream)
    assert _events([stream[i : i + 1] for i in range(len(stream))], MAX_BYTES) == (whole, stream)


@QUICK
@given(stream=STREAMS, cuts=CUTS, hide=st.booleans(), bound=st.sampled_from([64, 2**20]))
def test_meter_reads_and_writes_the_same_whatever_the_cut(
    stream: bytes, cuts: list[int], hide: bool, bound: int
) -> None:
    """The client gets the same bytes, and the gateway counts the same, at every cut."""

    def run(chunks: Iterable[bytes]) -> tuple[Any, ...]:
        meter = StreamMeter(hide_usage=hide, max_event_bytes=bound)
        out = b"".join([*[meter.feed(chunk) for chunk in chunks], meter.rest()])
        return out, meter.usage, meter.finish_reason, meter.error, meter.done, meter.content_events

    assert run(_cut(stream, cuts)) == run([stream])


@QUICK
@given(stream=STREAMS | RAW, cuts=CUTS)
def test_meter_that_hides_nothing_changes_nothing(stream: bytes, cuts: list[int]) -> None:
    """Without something to hide, what is relayed is what was received, byte for byte."""
    meter = StreamMeter(hide_usage=False, max_event_bytes=MAX_BYTES)
    out = [meter.feed(chunk) for chunk in _cut(stream, cuts)]
    assert b"".join([*out, meter.rest()]) == stream


@QUICK
@given(junk=st.binary(max_size=200), hide=st.booleans())
@example(junk=b'data: {"usage": ' + b"[" * 100_000 + b"\n\n", hide=True)
@example(junk=b'data: {"usage": 1, "\xff": 2}\n\n', hide=True)
@example(junk=b'data: {"error": "\xff"}\n\n', hide=True)
@example(junk=b'data: {"usage": {"prompt_tokens": 1e999}}\n\n', hide=True)
def test_meter_survives_whatever_a_provider_writes(junk: bytes, hide: bool) -> None:
    """No bytes of a provider raise: a stream is never broken by reading it."""
    meter = StreamMeter(hide_usage=hide)
    for start in (b"", b"data: ", b'data: {"usage":', b'data: {"error":', b'data: {"response":'):
        meter.feed(start + junk + b"\n\n")
    meter.rest()
