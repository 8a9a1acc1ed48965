"""The provider's failures, and what the client gets of each."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import httpx
import msgspec
import pytest

from gateway.engine.stream import TAIL_S
from tests.kit import steps
from tests.kit.gateway import TENANT_KEY, GatewayProcess, account
from tests.kit.provider import ScriptedProvider
from tests.kit.raw import RawClient
from tests.kit.steps import EVENTS, JSON, Cut, Drip, Hang, Head, Send, Stream, chunk, chunks, event

CHAT = "/v1/chat/completions"
KEY = {"authorization": f"Bearer {TENANT_KEY}"}
Start = Callable[..., GatewayProcess]


def body(**more: Any) -> dict[str, Any]:
    return {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}], **more}


def post(gateway: GatewayProcess, **more: Any) -> httpx.Response:
    return httpx.post(gateway.url(CHAT), json=body(**more), headers=KEY, timeout=20)


def events_of(response: httpx.Response) -> list[Any]:
    lines = [x.removeprefix("data: ") for x in response.text.split("\n\n") if x]
    return [x if x == "[DONE]" else msgspec.json.decode(x) for x in lines]


@pytest.fixture
def two() -> Any:
    with ScriptedProvider() as a, ScriptedProvider() as b:
        yield a, b


def test_kept_connection_closed_unanswered_is_the_providers_error(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """The account is not blamed for it, and the client is not either."""
    gateway = start_gateway(provider, retry={"attempts": 1})
    assert post(gateway).status_code == 200  # its connection is kept
    provider.enqueue([Cut()])
    assert post(gateway).status_code == 502
    line = gateway.wait_log(lambda x: x.get("msg") == "request" and x.get("status") == 502)
    assert line["outcome"] == "upstream_error"


@pytest.mark.parametrize("rst", [False, True])
def test_stream_cut_upstream_ends_with_one_error_event(
    start_gateway: Start, provider: ScriptedProvider, rst: bool
) -> None:
    """A stream that dies after its first event ends with one error event, without [DONE] and
    without half an event."""
    provider.enqueue(
        [
            Head(headers=EVENTS),
            Send(event(chunk({"content": "a"}))),
            Send(b'data: {"half'),
            Cut(rst=rst),
        ]
    )
    gateway = start_gateway(provider)
    response = post(gateway, stream=True)
    assert response.status_code == 200
    first, last = events_of(response)
    assert first["choices"][0]["delta"] == {"content": "a"}
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert last["error"]["code"] == "upstream_broken"
    line = gateway.wait_log(lambda x: x.get("outcome") == "upstream_error")
    assert line["error_code"] == "upstream_broken"


def test_stream_that_ends_without_its_end_is_an_error(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A stream that ends without finish_reason and [DONE] was truncated and ends with an error."""
    provider.enqueue([Stream([chunk({"content": "a"})])])
    gateway = start_gateway(provider)
    events = events_of(post(gateway, stream=True))
    assert events[-1]["error"]["code"] == "upstream_broken"
    assert "[DONE]" not in events


def test_complete_stream_ends_with_done_and_no_error(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """The twin: a stream that ends as it should has its [DONE] and no error event."""
    provider.stream(["a", "b"])
    gateway = start_gateway(provider)
    events = events_of(post(gateway, stream=True))
    assert events[-1] == "[DONE]"
    assert not any("error" in e for e in events[:-1])


@pytest.mark.parametrize(
    "script",
    [
        [Cut()],
        [Head(headers=EVENTS), Cut()],
        [Head(headers=JSON, length=100), Send(b'{"a":'), Cut()],
        steps.error(429, retry_after=30),
        steps.error(503),
        steps.error(500),
        steps.error(401),
        [Stream([{"error": {"message": "no room", "code": 503}}])],
    ],
    ids=["closed", "no event", "half a body", "429", "503", "500", "401", "error in a 200 stream"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_failed_attempt_goes_to_the_other_account(
    start_gateway: Start, two: tuple[ScriptedProvider, ScriptedProvider], script: Any, stream: bool
) -> None:
    """Before the first byte another account is tried, and the client sees only its answer."""
    a, b = two
    a.enqueue(script)
    gateway = start_gateway(a, b)
    response = post(gateway, stream=stream)
    assert response.status_code == 200
    assert response.headers["x-sagesched-account"] == "b"
    assert len(a.exchanges) == len(b.exchanges) == 1
    line = gateway.wait_log(lambda x: x.get("msg") == "request")
    assert (line["attempts"], line["account"], line["outcome"]) == (2, "b", "ok")


def test_429_keeps_its_account_closed_until_retry_after(
    start_gateway: Start, two: tuple[ScriptedProvider, ScriptedProvider]
) -> None:
    """While Retry-After runs, the account gets no request and the other serves."""
    a, b = two
    a.error(429, retry_after=30)
    gateway = start_gateway(a, b)
    for _ in range(5):
        assert post(gateway).headers["x-sagesched-account"] == "b"
    assert len(a.exchanges) == 1
    accounts = httpx.get(gateway.url("/_stats"), headers=gateway.admin_headers).json()["accounts"]
    assert accounts[0]["state"] == "backoff"
    assert accounts[0]["drops"]["rate_limited"] == 1


def test_429_everywhere_waits_instead_of_failing(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A request waits for a short Retry-After of the only account."""
    provider.error(429, retry_after_ms=300)
    gateway = start_gateway(provider)
    response = post(gateway)
    assert response.status_code == 200
    arrived = [e.arrived.wait() for e in provider.exchanges]
    assert arrived[1] - arrived[0] >= 0.29


def test_account_without_limits_left_gives_way_to_the_other(
    start_gateway: Start, two: tuple[ScriptedProvider, ScriptedProvider]
) -> None:
    """The limits left in the last answer decide, without a refusal first; the client is not sent
    them."""
    a, b = two
    left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12s"}
    payload = b'{"choices": []}'
    head = Head(headers={"content-type": JSON, **left}, length=len(payload))
    a.enqueue([head, Send(payload)])
    gateway = start_gateway(a, b)
    first = post(gateway)
    assert first.headers["x-sagesched-account"] == "a"
    assert not [name for name in first.headers if name.startswith("x-ratelimit")]
    for _ in range(4):
        assert post(gateway).headers["x-sagesched-account"] == "b"
    assert len(a.exchanges) == 1


def test_client_error_passes_through_once(
    start_gateway: Start, two: tuple[ScriptedProvider, ScriptedProvider]
) -> None:
    """A 400 is the client's fault: no second account is called, and the provider's text arrives."""
    a, b = two
    a.error(400, code="context_length_exceeded", message="too long")
    gateway = start_gateway(a, b)
    response = post(gateway)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert response.json()["error"]["message"] == "too long"
    assert not b.exchanges


def test_error_never_shows_the_account_key(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A provider that quotes the key in its error does not reveal it."""
    from tests.kit.gateway import PROVIDER_KEY

    provider.error(400, message=f"Incorrect API key provided: {PROVIDER_KEY} or sk-abcdef123456")
    gateway = start_gateway(provider)
    response = post(gateway)
    assert response.status_code == 400
    assert PROVIDER_KEY not in response.text
    assert "sk-abcdef" not in response.text
    assert "[key]" in response.text
    assert PROVIDER_KEY not in "\n".join(gateway.output)


def test_unreachable_provider_is_a_502(start_gateway: Start, provider: ScriptedProvider) -> None:
    """An account that nothing listens for gives an OpenAI-shaped 502 after the last attempt."""
    provider.refuse_connections()
    gateway = start_gateway(provider)
    response = post(gateway)
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_unreachable"


def test_silent_provider_times_out(start_gateway: Start, provider: ScriptedProvider) -> None:
    """Without a first byte within first_byte_timeout_s the client gets a 504, and the provider's
    socket is closed."""
    provider.enqueue([Hang()])
    one = account(provider, first_byte_timeout_s=0.3)
    gateway = start_gateway(accounts=[one], retry={"attempts": 1})
    response = post(gateway)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "upstream_timeout"
    provider.exchanges[0].peer_closed.wait(1.0)


def test_stream_that_falls_silent_ends_with_an_error_event(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """Without a next byte within idle_timeout_s the stream ends with one error event, and the
    provider's socket is closed."""
    provider.enqueue([Head(headers=EVENTS), Send(event(chunk({"content": "a"}))), Hang()])
    gateway = start_gateway(accounts=[account(provider, idle_timeout_s=0.3)])
    events = events_of(post(gateway, stream=True))
    assert events[-1]["error"]["code"] == "upstream_timeout"
    provider.exchanges[0].peer_closed.wait(1.0)


@pytest.mark.parametrize("times", [2, 20])
def test_comments_before_the_first_event_are_bounded(
    start_gateway: Start, two: tuple[ScriptedProvider, ScriptedProvider], times: int
) -> None:
    """Comments are held until the first event, which they go before, as many as fit the stream's
    buffer: a provider that sends more and no event does not fill the memory, and another account
    is tried."""
    a, b = two
    comments = b": processing\n\n" * 500
    first = event(chunk({"content": "a"}))
    sent = [Send(comments)] * times
    a.enqueue([Head(headers=EVENTS), *sent, Send(first), Send(b"data: [DONE]\n\n")])
    gateway = start_gateway(a, b, server={"stream_buffer_bytes": 65_536})
    response = post(gateway, stream=True)
    assert response.status_code == 200
    fits = times == 2
    assert response.content.startswith(comments * times + first) is fits
    assert (b"processing" in response.content) is fits
    assert gateway.wait_log(lambda x: x.get("msg") == "request")["attempts"] == (1 if fits else 2)


def test_slow_stream_outlasts_the_idle_timeout(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """The twin: a provider that goes on sending is not silent, however long it takes in all."""
    first = event(chunk({"content": "a"}))
    slow = event(chunk({"content": "x" * 4000})) + b"data: [DONE]\n\n"
    provider.enqueue([Head(headers=EVENTS), Send(first), Drip(slow, size=100, every_s=0.03)])
    gateway = start_gateway(accounts=[account(provider, idle_timeout_s=0.5)])
    began_s = monotonic()
    response = post(gateway, stream=True)
    assert monotonic() - began_s > 2 * 0.5
    assert response.content == first + slow


def test_half_a_large_answer_breaks_the_connection(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """An answer that its provider breaks off after a part was sent ends with the client's
    connection."""
    provider.enqueue([Head(headers=JSON, length=4_000_000), Send(b"x" * 2_000_000), Cut()])
    gateway = start_gateway(provider)
    with RawClient.to(gateway.url()) as client:
        client.request("POST", CHAT, json=body(), headers=KEY)
        with pytest.raises(EOFError):
            client.read_response()


def test_injected_usage_is_hidden_and_counted(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """Usage is requested upstream, counted, and not sent to a client that did not request it."""
    provider.stream(["a", "b"], usage=(7, 2))
    gateway = start_gateway(provider)
    response = post(gateway, stream=True)
    assert msgspec.json.decode(provider.exchanges[0].request.body)["stream_options"] == {
        "include_usage": True
    }
    assert "usage" not in response.text
    assert all(e == "[DONE]" or e["choices"] for e in events_of(response))
    line = gateway.wait_log(lambda x: x.get("msg") == "request")
    assert (line["prompt_tokens"], line["actual"]) == (7, 2)


def test_requested_usage_arrives_untouched(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A client that requests usage gets the provider's bytes as they are."""
    sent = chunks(["a", "b"], (7, 2))
    provider.enqueue([Stream(sent, done=True)])
    gateway = start_gateway(provider)
    response = post(gateway, stream=True, stream_options={"include_usage": True})
    assert response.content == b"".join(event(x) for x in sent) + b"data: [DONE]\n\n"


def test_body_is_untouched_but_for_owned_keys(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """Unknown members, number formats and order reach the provider byte for byte."""
    raw = (
        b'{"z": 1.50, "model":"kit-model", "x_custom": {"b":[1 , 2],"a":null},'
        b' "messages": [{"role":"user","content":"h\\u00e9"}] , "temperature":1e0}'
    )
    gateway = start_gateway(provider)
    headers = {**KEY, "content-type": "application/json"}
    assert httpx.post(gateway.url(CHAT), content=raw, headers=headers).status_code == 200
    assert provider.exchanges[0].request.body == raw


def test_client_credentials_stay_here(start_gateway: Start, provider: ScriptedProvider) -> None:
    """The provider sees the account's key and nothing of the client's identity."""
    from tests.kit.gateway import PROVIDER_KEY

    gateway = start_gateway(provider)
    headers = {**KEY, "cookie": "a=b", "openai-organization": "org-x", "x-forwarded-for": "1.2.3.4"}
    httpx.post(gateway.url(CHAT), json=body(), headers=headers)
    seen = dict(provider.exchanges[0].request.headers)
    assert seen["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert not {"cookie", "openai-organization", "x-forwarded-for"} & set(seen)
    assert TENANT_KEY not in str(seen)


def test_request_ends_with_its_answer_not_with_its_connection(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A provider that leaves its connection open after the stream's last event adds nothing to the
    time of the request, which is recorded before."""
    events = [event(chunk({"content": "a"}, "stop")), b"data: [DONE]\n\n"]
    provider.enqueue([Head(headers=EVENTS), *map(Send, events), Hang()])
    gateway = start_gateway(provider)
    assert post(gateway, stream=True).status_code == 200
    line = gateway.wait_log(lambda x: x.get("msg") == "request")
    assert line["total_ms"] < TAIL_S * 1000
    provider.exchanges[0].peer_closed.wait(5.0)
