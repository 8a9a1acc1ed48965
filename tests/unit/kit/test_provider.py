"""The scripted provider tells the truth about what happened on its sockets."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from openai import APIStatusError, OpenAI

from tests.kit.http1 import parse_request
from tests.kit.provider import ScriptedProvider
from tests.kit.raw import RawClient
from tests.kit.steps import Cut, Drip, Hang, Head, Raw, Respond, Send, Stream, Wait

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def client(provider: ScriptedProvider) -> OpenAI:
    return OpenAI(base_url=provider.base_url, api_key="k", max_retries=0)


def begin(provider: ScriptedProvider) -> RawClient:
    raw = RawClient.to(provider.base_url)
    raw.request("POST", "/v1/chat/completions", json=CHAT)
    return raw


def test_provider_answers_the_official_client(provider: ScriptedProvider) -> None:
    """A scripted answer is a chat completion to the openai client."""
    provider.answer("good day", usage=(4, 2))
    got = client(provider).chat.completions.create(
        model="m", messages=[{"role": "user", "content": "hi"}]
    )
    assert got.choices[0].message.content == "good day"
    assert got.usage is not None
    assert got.usage.completion_tokens == 2
    assert provider.exchanges[0].json()["messages"] == CHAT["messages"]


def test_provider_streams_usage_only_when_asked(provider: ScriptedProvider) -> None:
    """The usage chunk stands in the stream exactly when the request asked for it."""
    ask = client(provider).chat.completions.create
    for options, counted in (({}, [None] * 4), ({"include_usage": True}, [None] * 4 + [2])):
        provider.stream(["a", "b"])
        events = ask(
            model="m",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options=options or None,  # type: ignore[arg-type]
        )
        assert [e.usage and e.usage.completion_tokens for e in events] == counted


def test_provider_error_reaches_the_client_with_its_headers(provider: ScriptedProvider) -> None:
    """error(429, retry_after) is what OpenAI sends."""
    provider.error(429, retry_after=7, retry_after_ms=7000)
    with pytest.raises(APIStatusError) as caught:
        client(provider).models.list()
    assert caught.value.status_code == 429
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.code == "rate_limit_exceeded"


def test_provider_keeps_connections_alive(provider: ScriptedProvider) -> None:
    """Two requests of one client share a connection; framing by length and by chunks."""
    provider.enqueue([Respond(body=b"12345")], [Respond(body=b"678", chunked=True)])
    with httpx.Client() as http:
        assert [http.get(provider.base_url).content for _ in "ab"] == [b"12345", b"678"]
    assert provider.connections == 1


def test_provider_waits_at_a_gate(provider: ScriptedProvider) -> None:
    """Nothing behind Wait is sent before the test opens the gate."""
    provider.enqueue([Head(), Send(b"before "), Wait("go"), Send(b"after")])
    with begin(provider) as raw:
        raw.read_until(b"before ")
        with pytest.raises(TimeoutError):
            raw.read_until(b"after", timeout_s=0.05)
        provider.gate("go").mark()
        raw.read_until(b"after")


@pytest.mark.parametrize("rst", [False, True])
def test_provider_notes_the_peer_leaving(provider: ScriptedProvider, rst: bool) -> None:
    """A client that leaves mid-answer is seen at once, and how it left."""
    provider.enqueue([Head(), Send(b"x"), Hang()])
    raw = begin(provider)
    exchange = provider.wait_request(0)
    raw.read_until(b"x")
    (raw.reset if rst else raw.close)()
    left = exchange.peer_closed.wait()
    assert exchange.first_byte.at is not None
    assert exchange.arrived.at is not None
    assert exchange.accepted_s <= exchange.arrived.at <= exchange.first_byte.at <= left
    assert exchange.closed_by_rst is rst


def test_provider_notes_no_leaving_of_a_client_that_stays(provider: ScriptedProvider) -> None:
    """Twin: awaiting peer_closed fails while the client stays."""
    provider.enqueue([Head(), Send(b"x"), Hang()])
    with begin(provider) as raw:
        raw.read_until(b"x")
        with pytest.raises(TimeoutError):
            provider.wait_request(0).peer_closed.wait(timeout_s=0.1)


def test_provider_does_not_blame_a_peer_for_an_idle_close(provider: ScriptedProvider) -> None:
    """Closing after the whole answer is no departure."""
    raw = begin(provider)
    raw.read_response()
    raw.close()
    with begin(provider) as other:
        other.read_response()  # by now the first close has been seen
    for exchange in provider.exchanges:
        exchange.finished.wait()
        assert not exchange.peer_closed
    assert provider.open_exchanges == []


@pytest.mark.parametrize("rst", [False, True])
def test_provider_cuts_mid_body(provider: ScriptedProvider, rst: bool) -> None:
    """After Cut the client has what was sent, and no end of the body."""
    provider.enqueue([Stream([{"n": 1}]), Cut(rst=rst)])
    with begin(provider) as raw:
        assert b'data: {"n":1}' in raw.read_until(b"\n\n")
        assert not raw.read_to_end().endswith(b"0\r\n\r\n")
    assert not provider.exchanges[0].peer_closed


def test_provider_hangs_before_headers(provider: ScriptedProvider) -> None:
    """A script that starts with Hang sends nothing at all."""
    provider.enqueue([Hang()])
    with begin(provider) as raw:
        exchange = provider.wait_request(0)
        with pytest.raises(TimeoutError):
            raw.read_some(timeout_s=0.05)
        assert not exchange.first_byte


def test_provider_drips_and_sends_raw_bytes(provider: ScriptedProvider) -> None:
    """Drip sends every byte, piece by piece; Raw is sent as it is, without framing."""
    provider.enqueue([Drip(b"abcdef", size=2, every_s=0.001)], [Raw(b"no http\r\n\r\n"), Cut()])
    with begin(provider) as raw:
        assert raw.read_response().body == b"abcdef"
        raw.request("GET", "/v1/models")
        assert raw.read_to_end() == b"no http\r\n\r\n"


def test_provider_refuses_and_accepts_again(provider: ScriptedProvider) -> None:
    """Refused connections fail to connect; afterwards the same port answers."""
    provider.refuse_connections()
    with pytest.raises(ConnectionRefusedError):
        begin(provider)
    provider.accept_connections()
    with begin(provider) as raw:
        assert raw.read_response().status == 200


def test_provider_reports_a_broken_script() -> None:
    """A script that raises fails the test instead of looking like a network fault."""

    def broken(request: object) -> list[Respond]:
        raise KeyError("script")

    provider = ScriptedProvider()
    provider.__enter__()
    provider.enqueue(broken)
    with begin(provider) as raw:
        raw.read_to_end()
    with pytest.raises(AssertionError, match="script"):
        provider.__exit__(None, None, None)


@pytest.mark.anyio
async def test_provider_serves_async_tests(provider: ScriptedProvider) -> None:
    """The same provider and its moments work on the test's loop."""
    provider.enqueue([Hang()])
    async with httpx.AsyncClient() as http:
        asking = asyncio.create_task(http.post(provider.base_url, json=CHAT))
        exchange = await provider.request(0)
        asking.cancel()
        await exchange.peer_closed.reached(1)
    with pytest.raises(TimeoutError):
        await provider.request(1, timeout_s=0.02)


@pytest.mark.parametrize("cut", range(1, 90, 4))
def test_parse_request_waits_for_the_whole(cut: int) -> None:
    """A request is parsed once it is complete, however it was cut, and leaves the rest."""
    head = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    whole = head + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
    assert cut < len(whole) or parse_request(whole[:cut]) is not None
    assert parse_request(whole[: min(cut, len(whole) - 1)]) is None
    parsed = parse_request(whole + b"GET ")
    assert parsed is not None
    assert (parsed[0].body, parsed[1]) == (b"abcde", b"GET ")
