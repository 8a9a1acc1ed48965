"""HTTP's corners: upgrades, pipelining, old clients, idle connections, odd providers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from tests.kit import steps
from tests.kit.gateway import TENANT_KEY, GatewayProcess, account, tenant
from tests.kit.provider import ScriptedProvider
from tests.kit.raw import RawClient
from tests.kit.steps import (
    EVENTS,
    JSON,
    Cut,
    Hang,
    Head,
    Raw,
    Respond,
    Send,
    Stream,
    chunk,
    event,
)

CHAT = "/v1/chat/completions"
KEY = {"authorization": f"Bearer {TENANT_KEY}"}
BODY = {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}]}
Start = Callable[..., GatewayProcess]


def head(length: int, more: str = "") -> bytes:
    return (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TENANT_KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {length}\r\n{more}\r\n"
    ).encode()


def post(gateway: GatewayProcess, **more: Any) -> httpx.Response:
    return httpx.post(gateway.url(CHAT), json={**BODY, **more}, headers=KEY, timeout=20)


def test_upgrade_offer_with_a_body_is_a_plain_request(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A client that offers h2c gets its answer; bytes after the head are its body, never a
    second request."""
    gateway = start_gateway(provider)
    content = msgspec.json.encode(BODY)
    offer = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
    with RawClient.to(gateway.url()) as client:
        client.send(head(len(content), offer) + content)
        assert client.read_response().status == 200
        client.send(head(len(content), offer))  # its body comes in a later segment
        client.send(content)
        assert client.read_response().status == 200
        smuggled = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
        client.send(head(len(smuggled), offer))
        client.send(smuggled)
        assert client.read_response().status == 400  # read as a body, which is no JSON
        client.send(head(len(content)) + content)
        assert client.read_response().status == 200
    assert [e.request.body for e in provider.exchanges] == [content] * 3


def test_upgrade_offer_without_a_body_is_answered(shared: Any) -> None:
    """A WebSocket offer to a plain route gets the plain answer."""
    with RawClient.to(shared.gateway.url()) as client:
        client.send(
            b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        )
        assert client.read_response().status == 200


def test_pipelining_client_that_leaves_is_noticed(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A second request sent too early does not hide the disconnect."""
    provider.enqueue([Hang()])
    gateway = start_gateway(provider)
    content = msgspec.json.encode(BODY)
    client = RawClient.to(gateway.url())
    client.send(head(len(content)) + content)
    exchange = provider.wait_request(0)
    client.send(head(len(content)) + content)
    client.close()
    exchange.peer_closed.wait(2.0)
    gateway.wait_log(lambda x: x.get("outcome") == "cancelled")


def test_pipelined_request_is_dropped_and_the_connection_closes(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """The first answer is whole and says so; the client must send the second again."""
    provider.enqueue([steps.Wait("go"), *steps.answer("one")])
    gateway = start_gateway(provider)
    content = msgspec.json.encode(BODY)
    with RawClient.to(gateway.url()) as client:
        client.send(head(len(content)) + content)
        provider.wait_request(0)
        client.send(head(len(content)) + content)
        provider.gate("go").mark()
        assert client.read_response().status == 200
        assert client.read_to_end() == b""
    assert len(provider.exchanges) == 1


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET / HT"], ids=["nothing", "a break", "half"])
def test_idle_connection_is_closed(
    start_gateway: Start, provider: ScriptedProvider, sent: bytes
) -> None:
    """A connection without a request is closed after keepalive_s, one with half a header a little
    later."""
    gateway = start_gateway(provider, server={"keepalive_s": 1.0})
    with RawClient.to(gateway.url(), timeout_s=25) as client:
        client.send(sent)
        client.read_to_end()


def test_rest_of_a_refused_body_does_not_keep_the_connection(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A connection refused with 401 before its body came is closed after keepalive_s, although
    bytes of the body still arrive."""
    gateway = start_gateway(provider, server={"keepalive_s": 1.0})
    with RawClient.to(gateway.url(), timeout_s=10) as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n".encode())
        assert client.read_response().status == 401
        client.send(b"{")
        client.read_to_end()


def test_stale_provider_connection_is_no_failure(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A POST on a kept connection that the provider had closed goes again, as a second attempt,
    since some of it was written; the account is not blamed."""
    gateway = start_gateway(provider)
    assert post(gateway).status_code == 200
    provider.enqueue([Cut(rst=True)])  # on the reused connection, before any byte
    response = post(gateway)
    assert response.status_code == 200
    line = gateway.wait_log(lambda x: x.get("request_id") == response.headers["x-request-id"])
    assert line["attempts"] == 2
    stats = httpx.get(gateway.url("/_stats"), headers=gateway.admin_headers).json()
    assert not any(stats["accounts"][0]["drops"].values())


def test_fresh_provider_connection_that_is_cut_counts(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """The twin: a fresh connection cut on its first request is the account's failure."""
    provider.enqueue([Cut(rst=True)])
    gateway = start_gateway(accounts=[account(provider)], retry={"attempts": 1})
    assert post(gateway).status_code == 502


@pytest.mark.parametrize(
    "script",
    [
        [Stream([], status=200)],
        [Head(headers=EVENTS), Send(b": wait\n\n"), Send(event({"error": {"code": 503}}))],
        [Head(headers=EVENTS), Send(b": wait\n\n"), Cut()],
        [Respond(json={"error": {"message": "busy", "code": 503}})],
        [Raw(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")],
    ],
    ids=["no event", "comment, then error", "comment, then cut", "error in a 200", "101"],
)
def test_late_refusal_is_tried_elsewhere(
    start_gateway: Start, provider: ScriptedProvider, script: Any
) -> None:
    """A 200 that starts with an error, or has nothing of an answer, is tried on another account."""
    with ScriptedProvider() as other:
        provider.enqueue(script)
        gateway = start_gateway(provider, other)
        response = post(gateway, stream=script[0] != Respond and "Respond" not in str(script[0]))
        assert response.status_code == 200
        assert response.headers["x-sagesched-account"] == "b"
        assert "error" not in response.text


def test_responses_stream_without_its_terminal_event_is_cut(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A responses stream that closes cleanly without response.completed ends in an error event; one
    with it does not."""
    delta = {"type": "response.output_text.delta", "delta": "a"}
    ended = {"type": "response.completed", "response": {"status": "completed"}}
    provider.enqueue([Stream([delta])], [Stream([delta, ended])])
    gateway = start_gateway(provider)
    url, body = gateway.url("/v1/responses"), {"model": "kit-model", "input": "x", "stream": True}
    assert "upstream_broken" in httpx.post(url, json=body, headers=KEY).text
    assert "upstream_broken" not in httpx.post(url, json=body, headers=KEY).text


def test_stream_with_an_unfinished_choice_is_cut(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A stream of two choices with one finish reason and no [DONE] counts as truncated."""
    provider.enqueue([Stream([chunk({"content": "a"}), chunk({}, "stop")])])
    gateway = start_gateway(provider)
    assert "upstream_broken" in post(gateway, stream=True, n=2).text


def test_control_character_in_a_provider_header_is_dropped(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """The answer arrives without that header, and is recorded once."""
    answer = steps.completion("x", (1, 1))
    raw = msgspec.json.encode(answer)
    provider.enqueue(
        [
            Raw(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                b"content-disposition: a\x01b\r\ncontent-length: %d\r\n\r\n" % len(raw) + raw
            )
        ]
    )
    gateway = start_gateway(provider)
    response = post(gateway)
    assert response.status_code in (200, 502)  # the client library may refuse it first
    metrics = httpx.get(gateway.url("/metrics")).text
    counted = [x for x in metrics.splitlines() if x.startswith("sagesched_requests_total{")]
    assert sum(float(x.rsplit(" ", 1)[1]) for x in counted) == 1


def test_refusal_that_hangs_is_cut_short(start_gateway: Start, provider: ScriptedProvider) -> None:
    """A 400 whose body never ends is given up after seconds, not after the idle time-out."""
    provider.enqueue([Head(400, headers=JSON, length=1000), Send(b'{"error":'), Hang()])
    gateway = start_gateway(provider)
    began = time.monotonic()
    assert post(gateway).status_code == 400
    assert time.monotonic() - began < 10


def test_long_answer_still_counts_its_usage(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """An answer too long to be held whole is counted by its end."""
    answer = steps.completion("y" * 2_000_000, (7, 9000))
    provider.enqueue([Respond(json=answer)])
    gateway = start_gateway(provider)
    assert post(gateway).status_code == 200
    line = gateway.wait_log(lambda x: x.get("msg") == "request")
    assert (line["prompt_tokens"], line["actual"]) == (7, 9000)


def test_stopping_does_not_wait_for_a_client_that_takes_nothing(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A drain ends after drain_timeout_s, although a client has not read its buffer."""
    one = event(chunk({"content": "x" * 10_000}))
    provider.enqueue([Head(headers=EVENTS), *[Send(one) for _ in range(1000)], Hang()])
    gateway = start_gateway(
        provider,
        server={"drain_timeout_s": 0.5, "write_timeout_s": 30.0, "stream_buffer_bytes": 65_536},
    )
    client = RawClient.to(gateway.url(), receive_buffer=4096)
    client.request("POST", CHAT, json={**BODY, "stream": True}, headers=KEY)
    client.read_until(b"data: ")
    began = time.monotonic()
    gateway.stop()
    assert time.monotonic() - began < 8
    client.close()


def test_model_names_with_slashes_and_wide_characters(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """GET /v1/models/{id} finds what the client had to escape."""
    gateway = start_gateway(accounts=[account(provider, models=["org/llama:8b", "模型"])])
    for name in ("org/llama:8b", "org%2Fllama:8b", "%E6%A8%A1%E5%9E%8B"):
        response = httpx.get(gateway.url(f"/v1/models/{name}"), headers=KEY)
        assert response.status_code == 200, name


def test_route_without_a_model_uses_the_tenants_own(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A request that names no model is routed by the first model of its tenant's own list."""
    gateway = start_gateway(
        accounts=[account(provider, models=["first", "mine"])],
        tenants=[tenant(models=["mine"])],
    )
    response = httpx.post(gateway.url("/v1/moderations"), json={"input": "x"}, headers=KEY)
    assert response.status_code == 200


def test_hostile_form_does_not_hold_up_the_loop(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A form made of beginnings of a field is read in milliseconds."""
    gateway = start_gateway(accounts=[account(provider, models={"m": "other"})])
    headers = {**KEY, "content-type": "multipart/form-data; boundary=x"}
    began = time.monotonic()
    httpx.post(
        gateway.url("/v1/audio/transcriptions"),
        content=b'name="model"' * 40_000,
        headers=headers,
        timeout=10,
    )
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "content",
    [
        b'{"model":"kit-model","messages":[' + b'{"role":"user"},' * 1_300_000 + b"{}]}",
        b'{"model":"kit-model","messages":[],"tools":[' + b"1," * 12_000_000 + b"1]}",
    ],
    ids=["messages", "tools"],
)
def test_overly_complex_body_is_refused_quickly(
    start_gateway: Start, provider: ScriptedProvider, content: bytes
) -> None:
    """A body within its size bound but with millions of members is refused with 413, without being
    decoded."""
    gateway = start_gateway(provider)
    headers = {**KEY, "content-type": "application/json"}
    response = httpx.post(gateway.url(CHAT), content=content, headers=headers, timeout=20)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_complex"


def test_first_event_is_not_delayed(start_gateway: Start, provider: ScriptedProvider) -> None:
    """TCP_NODELAY is set on both sides: the client gets the provider's first byte without a 40 ms
    delay."""
    gateway = start_gateway(provider)
    waits = []
    for number in range(10):
        provider.enqueue(
            [
                Head(headers=EVENTS),
                Send(event(chunk({"content": "a"}))),
                Send(event(chunk({"content": "b"}))),
                Hang(),
            ]
        )
        with RawClient.to(gateway.url()) as client:
            client.request("POST", CHAT, json={**BODY, "stream": True}, headers=KEY)
            exchange = provider.wait_request(number)
            client.read_until(b'"b"')
            sent = exchange.first_byte.wait()
            waits.append(time.monotonic() - sent)
    assert sorted(waits)[5] < 0.03
