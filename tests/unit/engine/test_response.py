"""The headers of a client's response."""

from __future__ import annotations

from typing import Any

from gateway.engine.engine import Permit
from gateway.engine.response import answer_headers, permit_headers
from gateway.types import JobClass
from gateway.upstream.http_client import ProviderAnswer
from gateway.upstream.provider_connection import ProviderConnection
from tests.kit.wire import Wire
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
    """The client's headers of an answer with these, without those about the gateway's work."""
    connection = ProviderConnection(NOBODY, NOBODY, NOBODY)
    connection.connection_made(Wire())
    connection.send(b"GET / HTTP/1.1\r\n\r\n", b"", head_only=False)
    lines = [b"HTTP/1.1 200 OK", *[b"%b: %b" % header for header in headers]]
    connection.data_received(b"\r\n".join([*lines, b"\r\n"]))
    answer, one = ProviderAnswer(connection), permit()
    own = permit_headers(one)
    headers = answer_headers(answer, one, length, stream=stream, closing=closing)
    assert all(pair in headers for pair in own)
    return [pair for pair in headers if pair not in own]


def test_answer_headers_pass_on_only_the_allowed() -> None:
    """An account's limits and cookies are not passed on; the provider's request id gets another
    name."""
    assert sent(
        (b"content-type", b"text/plain"),
        (b"set-cookie", b"a=b"),
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-request-id", b"theirs"),
    ) == [(b"content-type", b"text/plain"), (b"x-upstream-request-id", b"theirs")]


def test_answer_headers_hold_the_length_or_forbid_buffering() -> None:
    """A known length is sent; a stream without one must not be cached or buffered on its way."""
    assert sent(length=b"3", stream=True) == [(b"content-length", b"3")]
    assert dict(sent(stream=True))[b"x-accel-buffering"] == b"no"
    assert sent() == []
    assert sent(closing=True) == [(b"connection", b"close")]


def test_permit_headers_describe_the_gateways_work() -> None:
    """The headers hold the class, the latest forecast, the wait, and the account while there is
    one."""
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
