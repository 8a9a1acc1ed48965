"""One response on the wire: its framing, its writes, and its end."""

from __future__ import annotations

import asyncio

import pytest

from gateway.api.request_cycle import RequestCycle
from tests.kit.client import WiredClient
from tests.kit.http1 import Response

pytestmark = pytest.mark.anyio

PLAIN = [(b"content-type", b"text/plain")]


def framing(response: Response) -> tuple[str | None, str | None, str | None]:
    names = ("content-length", "transfer-encoding", "connection")
    length, coding, connection = (response.header(name) for name in names)
    return length, coding, connection


@pytest.mark.parametrize(
    ("version", "status", "parts", "expected"),
    [
        ("1.1", 200, [b"whole"], ("5", None, None)),
        ("1.1", 200, [b""], ("0", None, None)),
        ("1.1", 200, [b"a", b"b"], (None, "chunked", None)),
        ("1.1", 200, [b"", b"b"], (None, "chunked", None)),
        ("1.0", 200, [b"whole"], ("5", None, "close")),
        ("1.0", 200, [b"a", b"b"], (None, None, "close")),
        ("1.1", 204, [b""], (None, None, None)),
        ("1.1", 304, [b"ignored"], (None, None, None)),
    ],
)
async def test_response_is_framed_for_its_client(
    version: str, status: int, parts: list[bytes], expected: tuple[str | None, ...]
) -> None:
    """A body that is known whole has its length, another one is chunked for HTTP/1.1 and ends with
    the connection for HTTP/1.0; 204 and 304 have neither length nor body."""
    ends = WiredClient("GET", version=version, keep_alive=version != "1.0")
    ends.cycle.start(status, PLAIN)
    for part in parts[:-1]:
        ends.cycle.write(part)
    ends.cycle.finish(parts[-1])
    response = ends.response()
    assert framing(response) == expected
    assert response.body == (b"" if status in (204, 304) else b"".join(parts))
    assert ends.wire.closed is (version == "1.0")
    assert ends.completed == 1


@pytest.mark.parametrize(
    ("headers", "parts", "length"),
    [
        ([(b"content-length", b"1234")], [b""], "1234"),
        ([], [b"whole"], "5"),
        ([], [b""], None),
        ([], [b"a", b"b"], None),
    ],
)
async def test_answer_to_head_has_the_length_and_no_body(
    headers: list[tuple[bytes, bytes]], parts: list[bytes], length: str | None
) -> None:
    """An answer to HEAD has the length that a GET would have, where it is known, and no body."""
    ends = WiredClient("HEAD")
    ends.cycle.start(200, headers)
    for part in parts[:-1]:
        ends.cycle.write(part)
    ends.cycle.finish(parts[-1])
    assert framing(ends.response(bodiless=True)) == (length, None, None)
    assert not ends.wire.closed


async def test_head_and_whole_body_are_one_write() -> None:
    """A response whose body is known goes out in one write, and a stream's head goes with its
    first chunk."""
    whole, stream = WiredClient("GET"), WiredClient("GET")
    whole.cycle.start(200, PLAIN)
    whole.cycle.finish(b"whole")
    assert whole.wire.writes == 1
    stream.cycle.start(200, PLAIN)
    stream.cycle.write(b"one")
    assert stream.wire.writes == 1
    stream.cycle.write(b"two")
    stream.cycle.finish(b"three")
    assert stream.wire.writes == 3


@pytest.mark.parametrize("body", [b"long", b"longer"])
async def test_body_against_its_length_is_an_error(body: bytes) -> None:
    """A body that is shorter or longer than the length it was given is an error, and the
    connection closes."""

    async def application(cycle: RequestCycle) -> None:
        await cycle.send({"type": "http.response.start", "status": 200,
                    "headers": [(b"content-length", b"5")]})  # fmt: skip
        await cycle.send({"type": "http.response.body", "body": body, "more_body": False})

    ends = WiredClient("GET")
    await ends.cycle.run(application, set())
    assert ends.wire.closed
    assert body not in ends.wire.written


@pytest.mark.parametrize(
    ("version", "aborted"),
    [("1.1", False), ("1.0", True)],
)
async def test_application_that_raises_in_mid_answer_breaks_the_connection(
    version: str, aborted: bool
) -> None:
    """The client can tell a broken answer from a whole one: no last chunk comes, or the connection
    that would end the body is aborted."""

    async def application(cycle: RequestCycle) -> None:
        await cycle.send({"type": "http.response.start", "status": 200, "headers": PLAIN})
        await cycle.send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError

    ends = WiredClient("GET", version=version, keep_alive=version != "1.0")
    await ends.cycle.run(application, set())
    assert ends.wire.written.endswith(b"half") or ends.wire.written.endswith(b"half\r\n")
    assert (ends.wire.aborted, ends.wire.closed) == (aborted, not aborted)


@pytest.mark.parametrize("begun", [True, False])
async def test_application_that_never_answers_is_an_internal_error(begun: bool) -> None:
    """An application that raises before anything was written, or returns without a response, has
    its client told in OpenAI's form."""

    async def application(cycle: RequestCycle) -> None:
        if begun:
            await cycle.send({"type": "http.response.start", "status": 200, "headers": PLAIN})
            raise ValueError

    ends = WiredClient("GET")
    await ends.cycle.run(application, set())
    response = ends.response()
    assert response.status == 500
    assert "error" in response.json()
    assert response.header("connection") == "close"


async def test_cancelled_application_tells_its_client_that_the_gateway_stops() -> None:
    """Only the server cancels one, at its end: no fault of the gateway."""

    async def application(cycle: RequestCycle) -> None:
        await asyncio.Event().wait()

    ends = WiredClient("GET")
    running = asyncio.ensure_future(ends.cycle.run(application, set()))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    response = ends.response()
    assert (response.status, response.json()["error"]["code"]) == (503, "shutdown")
    assert response.header("connection") == "close"


async def test_header_with_a_control_character_is_left_out() -> None:
    """No value can end its line: the header is not sent. A name that is none is an error."""
    ends = WiredClient("GET")
    bad = [(b"x-bad", b"1\r\nset-cookie: x"), (b"x-worse", b"a\nb"), (b"x-last", b"a\x01")]
    ends.cycle.start(200, [(b"X-Good", b"1\t2"), *bad])
    ends.cycle.finish(b"")
    assert ends.response().headers == [("x-good", "1\t2"), ("content-length", "0")]
    with pytest.raises(RuntimeError):
        WiredClient("GET").cycle.start(200, [(b"no name", b"1")])


async def test_messages_of_the_client_are_its_body_and_then_its_leaving() -> None:
    """`receive` gives what has come, then waits for more, then for the client to leave."""
    cycle = WiredClient("POST").cycle
    cycle.feed(b"one")
    assert await cycle.receive() == {"type": "http.request", "body": b"one", "more_body": True}
    rest = asyncio.ensure_future(cycle.receive())
    await asyncio.sleep(0)
    cycle.feed(b"two")
    cycle.feed_end()
    assert await rest == {"type": "http.request", "body": b"two", "more_body": False}
    left = asyncio.ensure_future(cycle.receive())
    await asyncio.sleep(0)
    assert not left.done()
    cycle.lose()
    assert await left == {"type": "http.disconnect"}


async def test_whole_body_is_given_once_and_only_when_it_is_here() -> None:
    """A body is handed over without waiting where all of it has come."""
    cycle = WiredClient("POST").cycle
    cycle.feed(b"one")
    assert cycle.whole_body() is None
    cycle.feed(b"two")
    cycle.feed_end()
    assert cycle.whole_body() == b"onetwo"
    assert cycle.whole_body() is None


async def test_large_body_is_read_no_faster_than_it_is_taken() -> None:
    """Reading pauses while much of a body waits, and goes on when it was taken."""
    ends = WiredClient("POST")
    ends.cycle.feed(bytes(100_000))
    assert ends.wire.paused
    await ends.cycle.receive()
    assert not ends.wire.paused


async def test_slow_client_holds_back_its_writer() -> None:
    """`write` says whether more may be written, and the writer hears when the client has taken
    enough, or has left."""
    ends = WiredClient("GET")
    ends.cycle.start(200, PLAIN)
    assert ends.cycle.write(b"one")
    ends.flow.write_paused = True
    assert not ends.cycle.write(b"two")
    waiting = asyncio.ensure_future(ends.cycle.drained())
    await asyncio.sleep(0)
    assert not waiting.done()
    ends.flow.resume_writing()
    await waiting
    ends.flow.write_paused = True
    waiting = asyncio.ensure_future(ends.cycle.drained())
    await asyncio.sleep(0)
    assert not waiting.done()
    ends.leave()
    await waiting


async def test_client_that_left_is_written_nothing() -> None:
    """After the client has left nothing is written and nobody waits. Its leaving is told once, to
    those who ask later at once; one that leaves after the end tells nothing."""
    ends, told = WiredClient("GET"), []
    ends.cycle.when_left(lambda: told.append(True))
    ends.cycle.start(200, PLAIN)
    ends.cycle.lose()
    ends.cycle.lose()
    assert told == [True]
    ends.cycle.when_left(lambda: told.append(False))
    assert told == [True, False]
    assert ends.cycle.write(b"one")
    ends.cycle.finish(b"two")
    assert ends.wire.written == b""
    after = WiredClient("GET")
    after.cycle.when_left(lambda: told.append(True))
    after.cycle.start(200, PLAIN)
    after.cycle.finish(b"")
    after.cycle.lose()
    assert told == [True, False]
