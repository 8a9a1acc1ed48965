"""The framing of answers on real sockets: old clients, HEAD, 204, and bodies that come in parts."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.kit.gateway import TENANT_KEY, GatewayProcess
from tests.kit.provider import ScriptedProvider
from tests.kit.raw import RawClient
from tests.kit.steps import Cut, Head, Raw, Send

CHAT = "/v1/chat/completions"
BODY = {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}]}
Start = Callable[..., GatewayProcess]


def resident_kb(gateway: GatewayProcess) -> int:
    """Memory of the gateway's process."""
    assert gateway.process is not None
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(next(x for x in status.splitlines() if x.startswith("VmRSS")).split()[1])


def request(version: str = "1.1", method: str = "POST", path: str = CHAT, **more: Any) -> bytes:
    content = msgspec.json.encode({**BODY, **more})
    return (
        f"{method} {path} HTTP/{version}\r\nhost: x\r\nauthorization: Bearer {TENANT_KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    ).encode() + content


def test_old_client_gets_no_chunks(shared: Any) -> None:
    """A stream for an HTTP/1.0 client is the bare events, and its end is the connection's."""
    with RawClient.to(shared.gateway.url()) as client:
        client.send(request("1.0", stream=True))
        head = client.read_until(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert b"connection: close" in head
        body = client.read_to_end()
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


def test_old_client_gets_a_whole_answer_with_its_length(shared: Any) -> None:
    """An answer that is known whole has its length for an HTTP/1.0 client, too."""
    with RawClient.to(shared.gateway.url()) as client:
        client.send(request("1.0"))
        response = client.read_response()
        assert response.header("content-length") == str(len(response.body))
        assert client.read_to_end() == b""


@pytest.mark.parametrize(("version", "was_reset"), [("1.0", True), ("1.1", False)])
def test_broken_answer_does_not_look_whole(
    start_gateway: Start, provider: ScriptedProvider, version: str, was_reset: bool
) -> None:
    """A body that ends with the connection is reset where the provider broke off; a chunked one
    ends without its last chunk."""
    provider.enqueue([Head(headers={"content-type": "text/plain"}), Send(b"half"), Cut()])
    gateway = start_gateway(provider)
    with RawClient.to(gateway.url()) as client:
        client.send(request(version))
        received = client.read_to_end()
    assert client.was_reset is was_reset
    assert not received.endswith(b"0\r\n\r\n")


def test_empty_answer_of_a_provider_has_no_length(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A 204 has neither length nor body, and its connection serves on."""
    provider.enqueue([Raw(b"HTTP/1.1 204 No Content\r\n\r\n")])
    gateway = start_gateway(provider)
    with RawClient.to(gateway.url()) as client:
        client.send(request())
        response = client.read_response()
        assert response.status == 204
        assert response.header("content-length") is None
        assert response.header("transfer-encoding") is None
        client.send(request())
        assert client.read_response().status == 200


def test_head_has_the_length_of_the_providers_answer(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """HEAD is passed on, and its answer has the length that GET would have; a refusal has the
    length of its text. Neither has a body."""
    provider.enqueue([Raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                          b"content-length: 1234\r\n\r\n")])  # fmt: skip
    gateway = start_gateway(provider)
    with RawClient.to(gateway.url()) as client:
        client.request("HEAD", "/v1/files/file-1", headers=gateway.headers)
        response = client.read_response(bodiless=True)
        assert (response.status, response.header("content-length")) == (200, "1234")
        client.request("HEAD", CHAT, headers=gateway.headers)
        refusal = client.read_response(bodiless=True)
        assert refusal.status == 405
        assert int(refusal.header("content-length") or "0") > 20
        client.send(request())
        assert client.read_response().status == 200


def test_client_that_waits_for_a_continue_gets_it(shared: Any) -> None:
    """A body that was announced with `Expect: 100-continue` is asked for; one that came along is
    not."""
    whole = request()
    head, _, content = whole.partition(b"\r\n\r\n")
    expecting = head + b"\r\nexpect: 100-continue\r\n\r\n"
    with RawClient.to(shared.gateway.url()) as client:
        client.send(expecting)
        assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(content)
        assert client.read_response().status == 200
        client.send(expecting + content)
        assert client.read_response().status == 200


def test_refusal_that_asked_for_no_body_ends_the_connection(shared: Any) -> None:
    """A client that waits for a 100 and is refused may send its body or leave it out: what came
    next on the connection would be read as the one or as the other."""
    with RawClient.to(shared.gateway.url()) as client:
        client.request("POST", CHAT, headers={"content-length": "500", "expect": "100-continue"})
        response = client.read_response()
        assert (response.status, response.header("connection")) == (401, "close")
        assert client.read_to_end() == b""


def test_old_client_gets_no_continue(shared: Any) -> None:
    """HTTP/1.0 has no 100: to its client that would be the answer."""
    head, _, content = request("1.0").partition(b"\r\n\r\n")
    with RawClient.to(shared.gateway.url()) as client:
        client.send(head + b"\r\nexpect: 100-continue\r\n\r\n")
        assert httpx.get(shared.gateway.url("/healthz")).status_code == 200  # the head was read
        client.send(content)
        assert client.read_response().status == 200


def test_target_without_a_path_is_the_root(shared: Any) -> None:
    """`http://host` names the root, which is nothing here."""
    with RawClient.to(shared.gateway.url()) as client:
        client.request("GET", "http://host")
        assert client.read_response().status == 404


@pytest.mark.parametrize("more", ["", "transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"])
def test_field_without_an_end_is_refused(shared: Any, more: str) -> None:
    """A header, or a trailer, whose value does not end is refused early: each piece of it costs a
    copy of all before."""
    with RawClient.to(shared.gateway.url()) as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n{more}x-a: ".encode())
        with pytest.raises(OSError, match=r"reset|pipe"):
            client.send(b"a" * 20_000_000)


def test_trailer_of_a_request_is_no_header(shared: Any) -> None:
    """A field after a chunked body cannot name a tenant, a class or anything else."""
    content = msgspec.json.encode(BODY)
    with RawClient.to(shared.gateway.url()) as client:
        client.send(
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TENANT_KEY}\r\n"
            f"transfer-encoding: chunked\r\n\r\n{len(content):x}\r\n".encode()
            + content
            + b"\r\n0\r\nx-sagesched-class: nonsense\r\n\r\n"
        )
        assert client.read_response().status == 200


def test_body_in_parts_is_read_whole(shared: Any) -> None:
    """A body that comes byte by byte is the same as one that comes at once."""
    whole = request()
    with RawClient.to(shared.gateway.url()) as client:
        for at in range(len(whole)):
            client.send(whole[at : at + 1])
        assert client.read_response().status == 200


def test_changed_keepalive_is_in_force_at_once(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A reload changes how long a connection may be idle after its next answer."""
    gateway = start_gateway(provider, server={"keepalive_s": 60.0})
    with RawClient.to(gateway.url(), timeout_s=10) as client:
        gateway.edit(server={"keepalive_s": 0.5})
        gateway.signal(signal.SIGHUP)
        gateway.wait_log(lambda line: line.get("msg") == "settings reloaded")
        client.send(request())
        assert client.read_response().status == 200
        assert client.read_to_end() == b""


def test_idle_connections_hold_no_headers(start_gateway: Start, provider: ScriptedProvider) -> None:
    """Connections that wait for their next request do not keep what the last one brought."""
    gateway = start_gateway(provider)
    large = {f"x-{number}": "v" * 6000 for number in range(10)}
    with ExitStack() as clients:
        held = []
        for _ in range(200):
            client = clients.enter_context(RawClient.to(gateway.url()))
            client.request("GET", "/healthz", headers=large)
            assert client.read_response().status == 200
            held.append(resident_kb(gateway))
    assert held[-1] - held[20] < 5_000  # of 11,000 that were sent meanwhile
