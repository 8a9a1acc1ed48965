"""Reading of bodies, and the memory they share."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.api.body import BodyMemory, BodyShare, ClientGone, read_body
from gateway.errors import BodyTooLarge, RequestTimeout, Unavailable
from tests.unit.settings.trees import valid

SERVER = replace(valid().server, max_body_bytes=10, body_memory_bytes=15)
GONE = {"type": "http.disconnect"}


def part(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def read(memory: BodyMemory, *messages: dict[str, Any], announced: bytes | None = None) -> bytes:
    """The result of `read_body` for these messages."""
    rest = list(messages)

    async def receive() -> dict[str, Any]:
        if rest:
            return rest.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    fields = {} if announced is None else {b"content-length": announced}
    server = SERVER if rest else replace(SERVER, body_timeout_s=0.001)
    return asyncio.run(read_body(fields, receive, server, memory))


def test_read_body_holds_the_bytes_it_returns() -> None:
    """A body in one part or several is held until its share is released, and given back once."""
    memory = BodyMemory()
    assert read(memory, part(b"abc", False)) == b"abc"
    assert read(memory, part(b"ab", True), part(b"", True), part(b"cd", False)) == b"abcd"
    assert memory.held == 7
    share = BodyShare(memory, 7)
    share.release()
    share.release()
    assert memory.held == 0


@pytest.mark.parametrize(
    ("messages", "announced", "error"),
    [
        ([part(b"x", False)], b"11", BodyTooLarge),
        ([part(b"x" * 6, True), part(b"x" * 5, False)], None, BodyTooLarge),
        ([part(b"x" * 6, True), GONE], None, ClientGone),
        ([], None, RequestTimeout),
    ],
)
def test_read_body_that_fails_holds_nothing(
    messages: list[dict[str, Any]], announced: bytes | None, error: type[Exception]
) -> None:
    """A body that is too large, late or cut off gives its memory back."""
    memory = BodyMemory()
    with pytest.raises(error):
        read(memory, *messages, announced=announced)
    assert memory.held == 0


def test_read_body_refuses_more_than_the_shared_memory() -> None:
    """The bodies of all requests count, and the refusal is a 503."""
    memory = BodyMemory()
    memory.take(8, 15)
    with pytest.raises(Unavailable) as caught:
        read(memory, part(b"x" * 7, True), part(b"x", False))
    assert caught.value.code == "body_memory"
    assert memory.held == 8


def test_body_that_is_here_whole_is_bounded_like_any_other() -> None:
    """A body that came along with its head is taken without receiving, within both bounds."""

    async def receive() -> dict[str, Any]:
        raise AssertionError

    def taken(memory: BodyMemory, whole: bytes) -> bytes:
        return asyncio.run(read_body({}, receive, SERVER, memory, whole))

    memory = BodyMemory()
    assert taken(memory, bytes(10)) == bytes(10)
    assert memory.held == 10
    with pytest.raises(BodyTooLarge):
        taken(memory, bytes(11))
    with pytest.raises(Unavailable):
        taken(memory, bytes(6))
    assert memory.held == 10
