"""The splitter's rules by example; tests/property/test_sse.py has every cut of every stream."""

from __future__ import annotations

import pytest

from gateway.upstream.sse import BOM, Piece, Splitter, data_of, event_of, with_data


def split(*chunks: bytes, max_bytes: int = 2**20) -> list[bytes]:
    splitter = Splitter(max_bytes)
    return [event for chunk in chunks for event in splitter.feed(chunk)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_splitter_ends_events_at_a_blank_line(end: bytes) -> None:
    """Two line ends in a row end an event, whichever kind they are; its bytes stay."""
    first, second = b"data: 1" + end + end, b"id: 7" + end + b"data: 2" + end + end
    assert split(first + second + b":") == [first, second]


@pytest.mark.parametrize("end", [b"\n\r", b"\r\n\n", b"\n\r\n", b"\r\r\n", b"\r\n\r"])
def test_splitter_takes_mixed_line_ends(end: bytes) -> None:
    """The standard lets one stream mix the three line ends."""
    assert split(b"data: 1" + end + b"data: 2\n\n") == [b"data: 1" + end, b"data: 2\n\n"]


def test_splitter_does_not_end_an_event_at_one_line_end() -> None:
    """CR LF is one line end, not two."""
    assert split(b"data: 1\r\ndata: 2\r\n") == []


def test_splitter_waits_for_the_other_half_of_a_line_end() -> None:
    """A chunk may end between CR and LF: the LF belongs to the event before it."""
    splitter = Splitter()
    assert splitter.feed(b"data: 1\r\n\r") == []
    assert splitter.feed(b"\ndata: 2") == [b"data: 1\r\n\r\n"]
    assert splitter.rest() == b"data: 2"


def test_splitter_gives_blank_lines_to_the_next_event() -> None:
    """An odd blank line must not depend on where the network cut the stream."""
    assert split(b"data: 1\n\n\n", b"data: 2\n\n") == [b"data: 1\n\n", b"\ndata: 2\n\n"]
    assert split(b"data: 1\n\n", b"\ndata: 2\n\n") == [b"data: 1\n\n", b"\ndata: 2\n\n"]


def test_splitter_cuts_several_events_of_one_chunk() -> None:
    """One write of the provider may hold several events and the start of another."""
    splitter = Splitter()
    assert splitter.feed(b": ping\n\ndata: 1\n\ndata: ") == [b": ping\n\n", b"data: 1\n\n"]
    assert splitter.feed(b"2\n\n") == [b"data: 2\n\n"]


def test_splitter_rest_is_what_no_end_closed() -> None:
    """The rest is handed over once, and the splitter starts anew."""
    splitter = Splitter()
    splitter.feed(b"data: 1\n\ndata: 2\n")
    assert splitter.rest() == b"data: 2\n"
    assert splitter.rest() == b""
    assert splitter.feed(b"\ndata: 3\n\n") == [b"\ndata: 3\n\n"]


def test_splitter_holds_no_more_than_its_bound() -> None:
    """An event without end comes in pieces: a provider must not fill the memory."""
    splitter = Splitter(max_bytes=100)
    sent = kept = 0
    for _ in range(1000):
        sent += 37
        kept += sum(len(piece) for piece in splitter.feed(b"x" * 37))
        assert sent - kept <= 100 + 37
    assert sent - kept == len(splitter.rest())


def test_splitter_marks_the_pieces_of_a_long_event() -> None:
    """A piece may look like an event and is none; the event after it is one again."""
    long = b"data: " + b"x" * 200 + b"\n\n"
    events = split(*(long[i : i + 9] for i in range(0, len(long), 9)), b"data: 1\n\n", max_bytes=50)
    pieces = [event for event in events if isinstance(event, Piece)]
    assert b"".join(pieces) == long
    assert events[len(pieces) :] == [b"data: 1\n\n"]


def test_splitter_marks_a_long_event_that_comes_at_once() -> None:
    """The bound on an event does not depend on the cut: whole or in parts, it is a piece."""
    (event,) = split(b"data: " + b"x" * 200 + b"\n\n", max_bytes=50)
    assert isinstance(event, Piece)
    (event,) = split(b"data: " + b"x" * 42 + b"\n\n", max_bytes=50)
    assert not isinstance(event, Piece)


def test_splitter_finds_the_end_of_a_long_event_between_pieces() -> None:
    """The bytes that may be half of an end are held back when a piece goes out."""
    assert split(b"data: " + b"x" * 60 + b"\r\n\r", b"\ndata: 1\n\n", max_bytes=50) == [
        b"data: " + b"x" * 60,
        b"\r\n\r\n",
        b"data: 1\n\n",
    ]


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),  # one space is the separator, the other is data
        (b"data: x\r\n\r\n", b"x"),
        (b"data: x\r\r", b"x"),
        (b"data: x", b"x"),
        (b"data: \n\n", b""),
        (b"data\n\n", b""),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\rdata: b\n\n", b"a\nb"),
        (b"event: e\nid: 1\ndata: x\n\n", b"x"),
        (b": comment\ndata: x\n\n", b"x"),
        (BOM + b"data: x\n\n", b"x"),
        (b"data: caf\xc3\xa9 \n\n", b"caf\xc3\xa9 "),
        (b": ping\n\n", None),
        (b"event: ping\n\n", None),
        (b"database: x\n\n", None),
        (b"\n\n", None),
        (b"", None),
    ],
)
def test_data_of_reads_the_data_lines_alone(event: bytes, data: bytes | None) -> None:
    """Data lines are joined with LF; comments, other fields and a BOM are no data."""
    assert data_of(event) == data


def test_event_of_is_read_back() -> None:
    """An event that the gateway writes is one whole event and reads as the data put in."""
    (event,) = split(event_of(b'{"a":1}'))
    assert data_of(event) == b'{"a":1}'


@pytest.mark.parametrize(
    ("event", "changed"),
    [
        (b"data: x\n\n", b"data: NEW\n\n"),
        (b"data:x\r\n\r\n", b"data: NEW\r\n\r\n"),
        (b"event: e\ndata: x\nid: 1\n\n", b"event: e\ndata: NEW\nid: 1\n\n"),
        (b": c\rdata: x\rdata: y\r\r", b": c\rdata: NEW\r\r"),
        (b"data: x", b"data: NEW"),
        (BOM + b"data: x\n\n", BOM + b"data: NEW\n\n"),
        (b"\ndata: x\n\n", b"\ndata: NEW\n\n"),
    ],
)
def test_with_data_leaves_the_other_lines(event: bytes, changed: bytes) -> None:
    """Event names, ids, comments and line ends stay as the provider wrote them."""
    assert with_data(event, b"NEW") == changed
