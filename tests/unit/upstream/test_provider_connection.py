"""One connection's parsing and life: what providers may send, and what becomes of it.

aiohttp is the oracle: what its client reads of an answer ours reads too, and what it refuses is
refused. Bytes are cut everywhere, since a socket may cut them so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import monotonic

import aiohttp
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.upstream.answer_parser import MAX_HEAD_BYTES, PIECE_BYTES
from gateway.upstream.http_client import ProviderAnswer
from gateway.upstream.provider_connection import (
    HIGH_BYTES,
    ConnectionBroken,
    FirstByteTimeout,
    ProviderConnection,
    Sink,
)
from tests.kit.wire import Wire

pytestmark = pytest.mark.anyio

REQUEST = b"GET / HTTP/1.1\r\nhost: provider\r\n\r\n"


class Ends:
    """A connection, its wire, and what its pool was told."""

    def __init__(self) -> None:
        self.released: list[ProviderConnection] = []
        self.gone: list[ProviderConnection] = []
        loop = asyncio.get_running_loop()
        self.connection = ProviderConnection(loop, self.released.append, self.gone.append)
        self.wire = Wire()
        self.connection.connection_made(self.wire)

    def begin(self, head: bytes = REQUEST, body: bytes = b"", *, head_only: bool = False) -> None:
        self.connection.send(head, body, head_only=head_only)


@dataclass(frozen=True)
class Read:
    """An answer as a client read it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    broken: bool = False


async def ours(pieces: Sequence[bytes], *, end: bool, head_only: bool = False) -> Read | None:
    """Our reading of these pieces, then perhaps the connection's end; None: refused."""
    ends = Ends()
    ends.begin(head_only=head_only)
    connection = ends.connection
    for piece in pieces:
        connection.data_received(piece)
        if ends.wire.aborted:
            break
    if end and not ends.wire.aborted:
        connection.eof_received()
        connection.connection_lost(None)
    body = b""
    try:
        await connection.head(0.01)
        while chunk := await asyncio.wait_for(connection.read_some(), 0.05):
            body += chunk
    except (ConnectionBroken, FirstByteTimeout, TimeoutError):
        if not connection.status:
            return None
        return Read(connection.status, _headers(connection.headers), body, broken=True)
    return Read(connection.status, _headers(connection.headers), body)


async def aiohttps(data: bytes, *, end: bool, method: str = "GET") -> Read | None:
    """aiohttp's reading of the same bytes from a real socket; None: refused."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        if end:
            writer.close()
        else:
            await reader.read()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                method,
                f"http://127.0.0.1:{port}/",
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=0.3),
            ) as response,
        ):
            headers = _headers([(k.lower(), v) for k, v in response.raw_headers])
            try:
                return Read(response.status, headers, await response.read())
            except (aiohttp.ClientError, TimeoutError):
                return Read(response.status, headers, b"", broken=True)
    except (aiohttp.ClientError, TimeoutError):
        return None
    finally:
        server.close()


def _headers(raw: Sequence[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in raw)


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"

CASES: dict[str, tuple[bytes, bool]] = {
    "length": (OK + b"content-length: 5\r\n\r\nhello", False),
    "empty": (OK + b"content-length: 0\r\n\r\n", False),
    "chunked": (CHUNKED + b"5\r\nhello\r\n6\r\n there\r\n0\r\n\r\n", False),
    "chunk extension": (CHUNKED + b"5;a=b\r\nhello\r\n0\r\n\r\n", False),
    "space after chunk size": (CHUNKED + b"5 \r\nhello\r\n0 \r\n\r\n", False),
    "upper-case chunk size": (CHUNKED + b"A\r\n0123456789\r\n0\r\n\r\n", False),
    "trailer": (CHUNKED + b"2\r\nhi\r\n0\r\nx-checksum: 1\r\n\r\n", False),
    "until the end": (OK + b"content-type: text/plain\r\n\r\nall of it", True),
    "until the end, nothing": (OK + b"\r\n", True),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nold", True),
    "no reason": (b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nok", False),
    "no reason and no space": (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", False),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", False),
    "304 with length": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", False),
    "100 before": (
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 2\r\n\r\nok",
        False,
    ),
    "103 with headers before": (
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK + b"content-length: 2\r\n\r\nok",
        False,
    ),
    "header twice": (OK + b"x-a: 1\r\nx-a: 2\r\ncontent-length: 0\r\n\r\n", False),
    "empty header": (OK + b"x-a:\r\ncontent-length: 0\r\n\r\n", False),
    "blanks around a value": (OK + b"x-a: \t b \t \r\ncontent-length: 0\r\n\r\n", False),
    "LF without CR": (b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok", False),
    "Latin-1 value": (OK + b"x-name: caf\xe9\r\ncontent-length: 0\r\n\r\n", False),
    "UTF-8 value": (OK + b"x-name: caf\xc3\xa9\r\ncontent-length: 0\r\n\r\n", False),
    "cut in the body": (OK + b"content-length: 50\r\n\r\nhello", True),
    "cut in a chunk": (CHUNKED + b"ff\r\nhello", True),
    "cut before the last chunk": (CHUNKED + b"5\r\nhello\r\n", True),
    "cut in the head": (OK + b"content-len", True),
    "nothing": (b"", True),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", True),
    "HTTP/2 preface": (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", True),
    "length no number": (OK + b"content-length: x\r\n\r\nhello", True),
    "negative length": (OK + b"content-length: -5\r\n\r\nhello", True),
    "two lengths": (OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello", True),
    "chunk size no number": (CHUNKED + b"zz\r\nhello\r\n0\r\n\r\n", True),
    "chunk size too large": (CHUNKED + b"f" * 20 + b"\r\nhello\r\n", True),
    "header without colon": (OK + b"nonsense\r\ncontent-length: 2\r\n\r\nok", True),
    "space in a header name": (OK + b"x a: 1\r\ncontent-length: 2\r\n\r\nok", True),
    "compressed": (OK + b"content-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x1f\x8b\x08", False),
}


@pytest.mark.parametrize("name", CASES)
async def test_answer_is_read_as_aiohttp_reads_it(name: str) -> None:
    """Status, headers and body are the oracle's, and so is whether the answer is good at all."""
    data, end = CASES[name]
    mine, oracle = await ours([data], end=end), await aiohttps(data, end=end)
    if mine is None or oracle is None or mine.broken or oracle.broken:
        assert (mine is None or mine.broken) == (oracle is None or oracle.broken)
    else:
        assert mine == oracle


@pytest.mark.parametrize("name", CASES)
async def test_answer_is_the_same_byte_by_byte(name: str) -> None:
    """The places at which the socket cuts the bytes change nothing."""
    data, end = CASES[name]
    pieces = [data[at : at + 1] for at in range(len(data))]
    assert await ours(pieces, end=end) == await ours([data], end=end)


@given(st.sampled_from(sorted(CASES)), st.data())
@hypothesis_settings(max_examples=150, deadline=None, database=None)
def test_answer_is_the_same_however_it_is_cut(name: str, data: st.DataObject) -> None:
    """Any cut of the bytes gives the same answer."""
    whole, end = CASES[name]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if a < b]

    async def both() -> tuple[Read | None, Read | None]:
        return await ours(pieces, end=end), await ours([whole], end=end)

    cut, uncut = asyncio.run(both())
    assert cut == uncut


@pytest.mark.parametrize("name", [n for n, (_, end) in CASES.items() if not end])
async def test_answer_that_loses_its_connection_at_any_byte_is_broken(name: str) -> None:
    """A reset at each byte: no head, or a broken body, and never a whole answer."""
    data, _ = CASES[name]
    whole = await ours([data], end=False)
    assert whole is not None
    for at in range(len(data)):
        cut = await ours([data[:at]], end=True)
        if cut is None or cut.broken:
            continue
        # An answer may be whole before its last byte only where nothing of it was left to say.
        assert cut == whole


async def test_reset_is_no_end_of_a_body() -> None:
    """A body without a length is whole where its connection was closed, not where it was reset."""
    ends = Ends()
    ends.begin()
    ends.connection.data_received(OK + b"\r\nhalf")
    ends.connection.connection_lost(ConnectionResetError())
    await ends.connection.head(1.0)
    assert await ends.connection.read_some() == b"half"
    with pytest.raises(ConnectionBroken):
        await ends.connection.read_some()


async def test_head_answer_has_no_body() -> None:
    """The length of an answer to HEAD announces nothing, and the connection can serve again."""
    data = OK + b"content-length: 500\r\n\r\n"
    assert await ours([data], end=False, head_only=True) == await aiohttps(
        data, end=False, method="HEAD"
    )
    ends = Ends()
    ends.begin(head_only=True)
    ends.connection.data_received(data)
    assert await ends.connection.read_some() == b""
    assert ends.released == [ends.connection]


async def test_body_of_an_answer_to_head_ends_the_connection() -> None:
    """Nobody asked for it: what of it is still to come would be read as the next answer."""
    ends = Ends()
    ends.begin(head_only=True)
    ends.connection.data_received(OK + b"content-length: 5\r\n\r\nhe")
    assert await ends.connection.read_some() == b""
    assert not ends.released
    assert ends.wire.aborted


async def test_connection_serves_again_after_a_whole_answer() -> None:
    """The second answer is its own: no status, header or byte of the first."""
    ends = Ends()
    for number in (b"1", b"2"):
        ends.begin()
        ends.connection.data_received(
            OK + b"x-n: " + number + b"\r\ncontent-length: 1\r\n\r\n" + number
        )
        await ends.connection.head(1.0)
        assert ends.connection.headers[0] == (b"x-n", number)
        assert await ends.connection.read_some() == number
        assert await ends.connection.read_some() == b""
    assert ends.released == [ends.connection] * 2
    assert not ends.wire.aborted


async def test_connection_is_released_only_when_its_answer_was_read() -> None:
    """Complete is not enough: until the last byte is read its bytes are here."""
    ends = Ends()
    ends.begin()
    ends.connection.data_received(OK + b"content-length: 2\r\n\r\nok")
    await ends.connection.head(1.0)
    assert ends.connection.complete
    assert not ends.released
    assert ends.connection.read_whole(2) == b"ok"
    assert ends.released == [ends.connection]


@pytest.mark.parametrize(
    "data",
    [
        OK + b"connection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        OK + b"content-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        OK + b"content-length: 2\r\n\r\nok and more",
    ],
    ids=["close", "HTTP/1.0", "a second answer", "more than its length"],
)
async def test_connection_is_dropped_after_an_answer_that_ends_it(data: bytes) -> None:
    """Not kept: the provider closes it, or sent what nobody asked for. The answer stands."""
    ends = Ends()
    ends.begin()
    ends.connection.data_received(data)
    await ends.connection.head(1.0)
    assert ends.connection.read_whole(2) == b"ok"
    assert not ends.released
    assert ends.wire.aborted


async def test_early_answer_is_read_and_ends_the_connection() -> None:
    """A provider that answers before it has the whole request reads no more of it."""
    ends = Ends()
    ends.begin(body=b"x" * 1000)
    ends.wire.unsent = 500
    ends.connection.data_received(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
    await ends.connection.head(1.0)
    assert ends.connection.status == 413
    assert await ends.connection.read_some() == b""
    assert not ends.released
    assert ends.wire.aborted


async def test_unasked_bytes_end_an_idle_connection() -> None:
    """A provider that speaks first, such as with a 408 at its own time-out, is not heard."""
    ends = Ends()
    ends.connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert ends.wire.aborted
    assert not ends.connection.usable


@pytest.mark.parametrize(
    "flood",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n",
    ],
    ids=["100", "103"],
)
async def test_endless_interim_answers_are_refused(flood: bytes) -> None:
    """They are skipped, but only so many bytes of them."""
    ends = Ends()
    ends.begin()
    sent = 0
    while not ends.wire.aborted:
        ends.connection.data_received(flood)
        sent += len(flood)
        assert sent < MAX_HEAD_BYTES + 1000
    with pytest.raises(ConnectionBroken):
        await ends.connection.head(1.0)


@pytest.mark.parametrize(
    ("first", "flood"),
    [
        (OK, b"x-a: " + b"b" * 100 + b"\r\n"),
        (OK + b"x-a: ", b"b" * 1000),
        (OK, b"a" * 1000),
        (CHUNKED + b"2\r\nhi\r\n0\r\n", b"x-trailer: " + b"b" * 100 + b"\r\n"),
        (CHUNKED + b"2;", b"e" * 1000),
    ],
    ids=["headers", "a value", "a name", "trailers", "a chunk extension"],
)
async def test_endless_head_is_refused(first: bytes, flood: bytes) -> None:
    """Heads, trailers and chunk extensions are bounded, in one piece or many."""
    ends = Ends()
    ends.begin()
    ends.connection.data_received(first)
    sent = 0
    while not ends.wire.aborted:
        ends.connection.data_received(flood)
        sent += len(flood)
        assert sent < MAX_HEAD_BYTES + 2000
    with pytest.raises(ConnectionBroken):
        await _read_all(ends.connection)


async def _read_all(connection: ProviderConnection) -> None:
    await connection.head(1.0)
    while await connection.read_some():
        pass


async def test_upgrade_nobody_asked_for_is_refused() -> None:
    """A 101 is no answer."""
    ends = Ends()
    ends.begin()
    ends.connection.data_received(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"
    )
    with pytest.raises(ConnectionBroken):
        await ends.connection.head(1.0)


async def test_reader_that_is_slow_stops_the_socket() -> None:
    """Past the bound nothing is read; when half of it is gone reading goes on."""
    ends = Ends()
    ends.begin()
    size = 3 * HIGH_BYTES
    ends.connection.data_received(OK + b"content-length: %d\r\n\r\n" % size)
    ends.connection.data_received(b"x" * (HIGH_BYTES + 1))
    assert ends.wire.paused
    while ends.wire.paused:
        assert await ends.connection.read_some()
    ends.connection.data_received(b"x" * (size - HIGH_BYTES - 1))
    read = 0
    while chunk := await ends.connection.read_some():
        read += len(chunk)
    assert read < size
    assert not ends.wire.paused
    assert ends.released == [ends.connection]


async def test_pieces_are_bounded() -> None:
    """However much one read of the socket brings, the relay gets it in pieces."""
    ends = Ends()
    ends.begin()
    ends.connection.data_received(OK + b"content-length: 200000\r\n\r\n" + b"x" * 200_000)
    sizes = []
    while chunk := await ends.connection.read_some():
        sizes.append(len(chunk))
    assert sum(sizes) == 200_000
    assert max(sizes) == PIECE_BYTES


async def pouring(ends: Ends, sink: Sink) -> asyncio.Task[bool]:
    """A chunked answer whose reader waits for its body."""
    ends.begin()
    ends.connection.data_received(CHUNKED)
    await ends.connection.head(1.0)
    task = asyncio.ensure_future(ends.connection.pour(sink))
    await asyncio.sleep(0)
    return task


async def test_sink_is_called_in_the_call_that_brings_the_bytes() -> None:
    """No turn of the loop lies between the socket and the sink; the end wakes the reader."""
    ends = Ends()
    got: list[bytes] = []
    task = await pouring(ends, lambda piece: got.append(piece) is None)
    ends.connection.data_received(b"2\r\nab\r\n1\r\nc\r\n")
    assert got == [b"abc"]
    ends.connection.data_received(b"1\r\nd\r\n0\r\n\r\n")
    assert got == [b"abc", b"d"]
    assert await task is False
    assert ends.released == [ends.connection]


async def test_sink_that_refuses_more_stops_the_socket() -> None:
    """Bytes that come after a sink refused are held up to the bound, and given when they are asked
    for again."""
    ends = Ends()
    got: list[bytes] = []
    task = await pouring(ends, lambda piece: bool(got.append(piece)))
    ends.connection.data_received(b"18000\r\n" + b"x" * 0x18000 + b"\r\n")
    assert await task is True
    assert [len(piece) for piece in got] == [PIECE_BYTES]
    assert await ends.connection.pour(lambda piece: bool(got.append(piece))) is True
    got.clear()
    task = asyncio.ensure_future(ends.connection.pour(lambda piece: bool(got.append(piece))))
    await asyncio.sleep(0)
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    ends.connection.data_received(b"1\r\na\r\n")
    ends.connection.data_received(chunk)
    assert await task is True
    assert got == [b"a"]
    ends.connection.data_received(chunk)
    assert not ends.wire.paused
    ends.connection.data_received(chunk + b"0\r\n")
    assert ends.wire.paused
    assert await ends.connection.pour(lambda piece: bool(got.append(piece))) is True
    assert not ends.wire.paused
    ends.connection.data_received(b"\r\n")
    assert await ends.connection.pour(lambda piece: got.append(piece) is None) is False
    assert len(b"".join(got)) == 1 + 3 * 0x8000
    assert max(map(len, got)) == PIECE_BYTES


async def test_fault_of_a_sink_is_its_readers() -> None:
    """The transport is not told: it would take the fault for its own and lose it."""

    def faulty(piece: bytes) -> bool:
        raise ZeroDivisionError

    ends = Ends()
    task = await pouring(ends, faulty)
    ends.connection.data_received(b"1\r\na\r\n")
    with pytest.raises(ZeroDivisionError):
        await task


async def test_cancelled_reader_gets_nothing_more() -> None:
    """Between a cancellation and its arrival bytes are held and given to nobody."""
    ends = Ends()
    got: list[bytes] = []
    task = await pouring(ends, lambda piece: got.append(piece) is None)
    task.cancel()
    ends.connection.data_received(b"1\r\na\r\n")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert got == []


@hypothesis_settings(max_examples=200, deadline=None, database=None)
@given(
    sizes=st.lists(st.integers(1, 70_000), max_size=6),
    cuts=st.lists(st.integers(0, 300_000), max_size=12),
    takes=st.lists(st.booleans(), max_size=12),
    breaks=st.booleans(),
)
def test_sink_gets_every_byte_in_order(
    sizes: list[int], cuts: list[int], takes: list[bool], breaks: bool
) -> None:
    """All bytes come, in bounded pieces, to the end or to the break of the connection, for any
    chunks, cuts and refusals."""
    body = bytes(n % 251 for size in sizes for n in range(size))
    data, at = b"", 0
    for size in sizes:
        data += b"%x\r\n" % size + body[at : at + size] + b"\r\n"
        at += size
    data += b"" if breaks else b"0\r\n\r\n"
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    got: list[bytes] = []
    wishes = iter(takes)

    def sink(piece: bytes) -> bool:
        got.append(piece)
        return next(wishes, True)

    async def read(ends: Ends) -> bool:
        while await ends.connection.pour(sink):
            pass
        return True

    async def scenario() -> bool:
        ends = Ends()
        ends.begin()
        ends.connection.data_received(CHUNKED)
        await ends.connection.head(1.0)
        task = asyncio.ensure_future(read(ends))
        for a, b in pairwise(places):
            ends.connection.data_received(data[a:b])
            await asyncio.sleep(0)
        if breaks:
            ends.connection.connection_lost(None)
        try:
            return await task
        except ConnectionBroken:
            return False

    assert asyncio.run(scenario()) is not breaks
    assert b"".join(got) == body
    assert all(0 < len(piece) <= PIECE_BYTES for piece in got)


async def test_abort_wakes_the_reader() -> None:
    """A reader that waits is told at once, and the socket is gone."""
    ends = Ends()
    ends.begin()
    ends.connection.data_received(OK + b"content-length: 5\r\n\r\n")
    await ends.connection.head(1.0)
    reading = asyncio.ensure_future(ends.connection.read_some())
    await asyncio.sleep(0)
    ends.connection.abort()
    with pytest.raises(ConnectionBroken):
        await reading
    assert ends.wire.aborted


async def test_abort_keeps_a_connection_whose_answer_is_whole() -> None:
    """Nothing more will come of it: the connection can serve the next request."""
    ends = Ends()
    ends.begin()
    ends.connection.data_received(OK + b"content-length: 2\r\n\r\nok")
    await ends.connection.head(1.0)
    ends.connection.abort()
    assert ends.released == [ends.connection]
    assert not ends.wire.aborted


async def test_abort_keeps_no_connection_that_is_being_read() -> None:
    """An answer's reader, woken by the end but not yet running, would read the next exchange's."""
    ends, taken = Ends(), b""

    def sink(piece: bytes) -> bool:
        nonlocal taken
        taken += piece
        return True

    ends.begin()
    ends.connection.data_received(OK + b"content-length: 2\r\n\r\n")
    reading = asyncio.ensure_future(ends.connection.pour(sink))
    await asyncio.sleep(0)
    ends.connection.data_received(b"ok")
    ends.connection.abort()
    assert not ends.released
    assert ends.wire.aborted
    assert not await reading
    assert taken == b"ok"


async def test_first_byte_is_waited_for_no_longer_than_allowed() -> None:
    """Interim answers do not count; the connection is dropped."""
    ends = Ends()
    ends.begin()
    ends.connection.data_received(b"HTTP/1.1 100 Continue\r\n\r\n")
    with pytest.raises(FirstByteTimeout):
        await ends.connection.head(0.01)
    assert ends.wire.aborted


async def test_cancelled_wait_drops_the_connection() -> None:
    """A connection whose waiter was cancelled is not kept: no request owns its answer."""
    ends = Ends()
    ends.begin()
    waiting = asyncio.ensure_future(ends.connection.head(5.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ends.wire.aborted


@pytest.mark.parametrize(
    ("answer", "unsent", "expected"),
    [(b"", 0, (True, False)), (b"", 1_000_000, (True, True)), (b"HTTP/1.1 2", 0, (False, False))],
    ids=["sent", "not sent", "half a head"],
)
async def test_broken_exchange_says_what_had_been_done(
    answer: bytes, unsent: int, expected: tuple[bool, bool]
) -> None:
    """A broken exchange tells if a byte of an answer came and if one of the request went."""
    ends = Ends()
    ends.begin(body=b"{}")
    ends.wire.unsent = unsent
    if answer:
        ends.connection.data_received(answer)
    ends.connection.connection_lost(ConnectionResetError("reset"))
    with pytest.raises(ConnectionBroken) as caught:
        await ends.connection.head(1.0)
    assert (caught.value.untouched, caught.value.unsent) == expected
    assert ends.gone == [ends.connection]


async def test_connection_times_the_provider_and_not_its_reader() -> None:
    """Service time runs from the request to the answer's latest bytes, however late they are read,
    and stands still while the reader leaves the socket unread."""
    ends = Ends()
    before_s = monotonic()
    ends.begin()
    sent_s = monotonic()
    ends.connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n")
    _spend(0.002)
    paused_s = monotonic()
    ends.connection.data_received(b"x" * 150_000)
    heard_s = monotonic()
    assert ends.wire.paused
    _spend(0.005)
    assert 0.002 < ends.connection.service.seconds < heard_s - before_s
    resumed_s = monotonic()
    answer = ProviderAnswer(ends.connection)
    while ends.wire.paused:
        await answer.read_some()
    ends.connection.data_received(b"x" * 50_000)
    end_s = monotonic()
    unread_s = resumed_s - heard_s
    assert ends.connection.service.seconds <= end_s - before_s - unread_s
    assert ends.connection.service.seconds > paused_s - sent_s
    _spend(0.005)
    while await answer.read_some():
        pass
    assert answer.service_s <= end_s - before_s - unread_s
    ends.begin()
    assert ends.connection.service.seconds == 0.0
    assert answer.service_s > 0.0


def _spend(seconds: float) -> None:
    until_s = monotonic() + seconds
    while monotonic() < until_s:
        pass
