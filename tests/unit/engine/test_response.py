"""Which headers a client is sent."""

from __future__ import annotations

from typing import Any

from gateway.engine.engine import Permit
from gateway.engine.response import answer_headers, permit_headers
from gateway.types import JobClass
from gateway.upstream.client import Answer
from tests.unit.schedule.build import job

NOBODY: Any = None  # no engine and no body is asked for headers


def permit(**fields: Any) -> Permit:
    found = Permit(NOBODY, job("req_1", 33.4, **fields), 0)
    found.account, found.queue_s = "a", 0.0123
    return found


def sent(
    *headers: tuple[bytes, bytes],
    length: bytes | None = None,
    stream: bool = False,
    closing: bool = False,
) -> list[tuple[bytes, bytes]]:
    """Of an answer with these headers, without those that tell of the gateway's own work."""
    answer, one = Answer(200, list(headers), NOBODY), permit()
    own = permit_headers(one)
    told = answer_headers(answer, one, length, stream=stream, closing=closing)
    assert all(pair in told for pair in own)
    return [pair for pair in told if pair not in own]


def test_answer_headers_are_those_of_the_clients_business() -> None:
    """An account's limits and cookies stay here; the provider's name for the request is kept."""
    assert sent(
        (b"content-type", b"text/plain"),
        (b"set-cookie", b"a=b"),
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-request-id", b"theirs"),
    ) == [(b"content-type", b"text/plain"), (b"x-upstream-request-id", b"theirs")]


def test_answer_header_with_a_control_character_is_left_out() -> None:
    """A provider cannot write into the client's protocol."""
    assert not sent((b"openai-model", b"m\r\nset-cookie: a"), (b"x-request-id", b"a\nb"))
    assert sent((b"openai-model", b"m\tn")) == [(b"openai-model", b"m\tn")]


def test_answer_headers_tell_the_length_or_how_events_are_kept() -> None:
    """A stream is not to be cached or buffered on its way; a known length is told instead."""
    assert sent(length=b"3", stream=True) == [(b"content-length", b"3")]
    assert dict(sent(stream=True))[b"x-accel-buffering"] == b"no"
    assert sent() == []
    assert sent(closing=True) == [(b"connection", b"close")]


def test_call_headers_tell_what_the_gateway_did() -> None:
    """The class that holds, the latest forecast, the wait, and the account while there is one."""
    one = permit(class_override=JobClass.HEAVY)
    assert dict(permit_headers(one)) == {
        b"x-request-id": b"req_1",
        b"x-sagesched-class": b"heavy",
        b"x-sagesched-predicted-tokens": b"33",
        b"x-sagesched-queue-ms": b"12",
        b"x-sagesched-account": b"a",
    }
    one.account = None
    assert b"x-sagesched-account" not in dict(permit_headers(one))
