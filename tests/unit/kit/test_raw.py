"""The raw client and its parser: whole answers, halves, and ends."""

from __future__ import annotations

import pytest

from tests.kit.http1 import Malformed, parse_response, unchunk
from tests.kit.provider import ScriptedProvider
from tests.kit.raw import RawClient
from tests.kit.steps import Cut, Head, Raw, Respond, Send, Stream


def ask(provider: ScriptedProvider) -> RawClient:
    raw = RawClient.to(provider.base_url)
    raw.request("GET", "/v1/models")
    return raw


def test_read_response_reads_one_after_the_other(provider: ScriptedProvider) -> None:
    """Two answers on one connection are kept apart; events are taken from the body."""
    provider.enqueue([Respond(404, json={"a": 1})], [Stream([{"n": 1}], done=True)])
    with ask(provider) as raw:
        first = raw.read_response()
        assert (first.status, first.json()) == (404, {"a": 1})
        assert first.header("Content-Type") == "application/json"
        raw.request("GET", "/v1/models")
        assert raw.read_response().events() == ['{"n":1}', "[DONE]"]


def test_read_response_takes_a_body_that_ends_with_the_connection(
    provider: ScriptedProvider,
) -> None:
    """Without length or chunks the end of the connection ends the body."""
    provider.enqueue([Raw(b"HTTP/1.1 200 OK\r\n\r\nall of it"), Cut()])
    with ask(provider) as raw:
        assert raw.read_response().body == b"all of it"


def test_read_response_refuses_half_a_body(provider: ScriptedProvider) -> None:
    """An answer cut before its end is an error, not a short answer."""
    provider.enqueue([Head(length=10), Send(b"123"), Cut()])
    with ask(provider) as raw, pytest.raises(EOFError):
        raw.read_response()


def test_read_until_tells_an_early_end(provider: ScriptedProvider) -> None:
    """A mark that cannot come any more is an EOFError, not a time-out."""
    provider.enqueue([Respond(body=b"other", close=True)])
    with ask(provider) as raw, pytest.raises(EOFError):
        raw.read_until(b"mark")


def test_shutdown_write_is_seen_as_leaving(provider: ScriptedProvider) -> None:
    """Ending our side alone already counts: the provider closes, and saw no request."""
    with RawClient.to(provider.base_url) as raw:
        raw.shutdown_write()
        assert raw.read_to_end() == b""
    assert provider.exchanges == []


def test_bodiless_answers_have_no_body() -> None:
    """HEAD answers and 204 end with their head, whatever content-length says."""
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"
    parsed = parse_response(head + b"next", bodiless=True)
    assert parsed is not None
    assert (parsed[0].body, parsed[1]) == (b"", b"next")
    assert parse_response(head) is None


@pytest.mark.parametrize("wire", [b"zz\r\nab", b"-\r\n"])
def test_unchunk_refuses_what_is_no_size(wire: bytes) -> None:
    """A broken chunk size is an error, not an end of the body."""
    with pytest.raises(Malformed):
        unchunk(wire)
