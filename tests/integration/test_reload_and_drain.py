"""SIGHUP swaps settings whole or changes nothing; SIGTERM lets running requests finish."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit import steps
from tests.kit.gateway import TENANT_KEY, GatewayProcess, account
from tests.kit.provider import ScriptedProvider
from tests.kit.raw import RawClient
from tests.kit.steps import EVENTS, Hang, Head, Send, Wait, chunk, event

CHAT = "/v1/chat/completions"
KEY = {"authorization": f"Bearer {TENANT_KEY}"}
Start = Callable[..., GatewayProcess]
END = b"\r\n0\r\n\r\n"


def body(**more: Any) -> dict[str, Any]:
    return {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}], **more}


def post(gateway: GatewayProcess, **more: Any) -> httpx.Response:
    return httpx.post(gateway.url(CHAT), json=body(**more), headers=KEY, timeout=20)


def paused_stream(gate: str) -> list[Any]:
    """A stream that stops after its first event until the gate opens, then ends well."""
    return [
        Head(headers=EVENTS),
        Send(event(chunk({"content": "a"}))),
        Wait(gate),
        Send(event(chunk({}, "stop")) + b"data: [DONE]\n\n"),
    ]


@contextmanager
def running_stream(gateway: GatewayProcess, provider: ScriptedProvider) -> Iterator[RawClient]:
    """A stream in its middle; open the gate "go" to let it finish."""
    provider.enqueue(paused_stream("go"))
    with RawClient.to(gateway.url()) as client:
        client.request("POST", CHAT, json=body(stream=True), headers=KEY)
        client.read_until(b'"a"')
        yield client


def test_reload_applies_under_a_running_stream(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """After SIGHUP the new settings hold, and a stream that ran before it ends untouched."""
    gateway = start_gateway(provider)
    with running_stream(gateway, provider) as client:
        gateway.edit(accounts=[account(provider, models=["kit-model", "second"])])
        gateway.signal(signal.SIGHUP)
        gateway.wait_log(lambda x: x.get("msg") == "settings reloaded")
        assert post(gateway, model="second").status_code == 200
        provider.gate("go").mark()
        rest = client.read_until(END)
    assert b"[DONE]" in rest
    assert b"error" not in rest


@pytest.mark.parametrize(
    "text",
    ["not toml [", "[server]\nport = 'x'\n", ""],
    ids=["not TOML", "wrong type", "empty"],
)
def test_bad_reload_changes_nothing(
    start_gateway: Start, provider: ScriptedProvider, text: str
) -> None:
    """A file that does not validate is named in the log and the metric; all goes on as before."""
    gateway = start_gateway(provider)
    with running_stream(gateway, provider) as client:
        gateway.write(text)
        gateway.signal(signal.SIGHUP)
        line = gateway.wait_log(lambda x: x.get("msg", "").startswith("settings not reloaded"))
        assert str(gateway.config) in line["msg"]
        assert post(gateway).status_code == 200
        metrics = httpx.get(gateway.url("/metrics")).text
        assert "sagesched_config_reload_ok 0" in metrics
        health = httpx.get(gateway.url("/health")).json()
        assert health["settings"] == {"generation": 1, "last_reload_ok": False}
        provider.gate("go").mark()
        assert b"[DONE]" in client.read_until(END)


def test_reload_that_misses_a_secret_changes_nothing(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A reload with a key that does not resolve is refused before anything is swapped."""
    gateway = start_gateway(provider)
    gateway.edit(accounts=[account(provider), account(provider, "b", api_key="env:NOT_SET_ANY")])
    gateway.signal(signal.SIGHUP)
    line = gateway.wait_log(lambda x: x.get("msg", "").startswith("settings not reloaded"))
    assert "NOT_SET_ANY" in line["msg"]
    stats = httpx.get(gateway.url("/_stats"), headers=gateway.admin_headers).json()
    assert [a["name"] for a in stats["accounts"]] == ["a"]


def test_live_state_survives_a_reload_by_name(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A backoff that an account learned is still there after the settings changed."""
    provider.error(429, retry_after=60)
    gateway = start_gateway(provider)
    hurried = {**KEY, "x-stainless-read-timeout": "5"}
    response = httpx.post(gateway.url(CHAT), json=body(), headers=hurried)
    assert response.status_code == 429  # its deadline is before the backoff's end
    assert 50 < float(response.headers["retry-after"]) <= 60
    gateway.edit(schedule={"max_wait_s": 30.0})
    gateway.signal(signal.SIGHUP)
    gateway.wait_log(lambda x: x.get("msg") == "settings reloaded")
    stats = httpx.get(gateway.url("/_stats"), headers=gateway.admin_headers).json()
    assert stats["accounts"][0]["state"] == "backoff"


def test_admin_patch_is_validated_and_applied_like_a_reload(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A good merge patch takes effect and outlives a reload; a bad one is a 400."""
    gateway = start_gateway(provider)
    url, admin = gateway.url("/admin/config"), gateway.admin_headers
    bad = httpx.post(url, json={"schedule": {"max_wait_s": -1}}, headers=admin)
    assert bad.status_code == 400
    assert "schedule.max_wait_s" in bad.json()["error"]["message"]
    good = httpx.post(url, json={"schedule": {"heavy_inflight_tokens": 1234}}, headers=admin)
    assert good.json()["status"] == "applied"
    gateway.edit(schedule={"max_wait_s": 30.0})
    gateway.signal(signal.SIGHUP)
    gateway.wait_log(lambda x: x.get("msg") == "settings reloaded")
    pools = httpx.get(gateway.url("/stats"), headers=admin).json()["pools"]
    assert pools[0]["classes"]["heavy"]["budget_tokens"] == 1234


def test_reload_of_equal_settings_is_no_change(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """The log and the admin answer say "unchanged", and the generation stays."""
    gateway = start_gateway(provider)
    gateway.signal(signal.SIGHUP)
    assert gateway.wait_log(lambda x: x.get("msg") == "settings unchanged")["generation"] == 1
    patch = {"retry": {"attempts": 3}}
    answer = httpx.post(gateway.url("/admin/config"), json=patch, headers=gateway.admin_headers)
    assert (answer.json()["status"], answer.json()["generation"]) == ("unchanged", 1)
    assert httpx.get(gateway.url("/health")).json()["settings"]["generation"] == 1


def test_reload_takes_a_new_secret_of_equal_settings(
    start_gateway: Start, provider: ScriptedProvider, tmp_path: Path
) -> None:
    """An account whose key was refused is tried at once with a new key from the same file."""
    key = tmp_path / "provider-key"
    key.write_text("sk-refused-key")
    gateway = start_gateway(accounts=[account(provider, api_key=f"file:{key}")])
    provider.error(401)
    assert post(gateway).status_code == 502
    stats = httpx.get(gateway.url("/_stats"), headers=gateway.admin_headers).json()
    assert stats["accounts"][0]["state"] == "dead_key"
    key.write_text("sk-another-key")
    gateway.signal(signal.SIGHUP)
    assert gateway.wait_log(lambda x: x.get("msg") == "settings reloaded")["generation"] == 2
    assert post(gateway).status_code == 200
    sent = [exchange.request.header("authorization") for exchange in provider.exchanges]
    assert sent == ["Bearer sk-refused-key", "Bearer sk-another-key"]


def test_reload_of_equal_settings_tries_a_refused_key_at_once(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """The operator may have mended the key at the provider: SIGHUP asks again without a wait."""
    gateway = start_gateway(provider)
    provider.error(401)
    assert post(gateway).status_code == 502
    gateway.signal(signal.SIGHUP)
    gateway.wait_log(lambda x: x.get("msg") == "settings unchanged")
    assert post(gateway).status_code == 200


def test_restart_only_key_is_logged(start_gateway: Start, provider: ScriptedProvider) -> None:
    """A changed port is accepted but not applied, and the log says that it needs a restart."""
    gateway = start_gateway(provider)
    gateway.edit(server={"port": 1})
    gateway.signal(signal.SIGHUP)
    gateway.wait_log(lambda x: x.get("msg", "").startswith("server.port changed"))
    assert post(gateway).status_code == 200


def test_sigterm_lets_a_running_stream_finish(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A drain turns readiness off, refuses new requests with 503, finishes the running stream
    and exits with 0."""
    gateway = start_gateway(provider)
    with running_stream(gateway, provider) as client:
        gateway.signal(signal.SIGTERM)
        gateway.wait_log(lambda x: x.get("msg") == "draining")
        health = httpx.get(gateway.url("/health"))
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        assert httpx.get(gateway.url("/healthz")).status_code == 200
        refused = post(gateway)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert refused.headers["retry-after"]
        assert refused.headers["connection"] == "close"  # it is to come again on another
        provider.gate("go").mark()
        rest = client.read_until(END)
    assert b"[DONE]" in rest
    assert gateway.wait_exit() == 0


def test_second_sigterm_ends_at_once(start_gateway: Start, provider: ScriptedProvider) -> None:
    """The second signal ends the process at once, with the signal's exit code."""
    gateway = start_gateway(provider)
    with running_stream(gateway, provider):
        gateway.signal(signal.SIGTERM)
        gateway.wait_log(lambda x: x.get("msg") == "draining")
        gateway.signal(signal.SIGTERM)
        assert gateway.wait_exit(3.0) == 128 + signal.SIGTERM
    gateway.process = None


def test_drain_timeout_ends_what_still_runs(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """After drain_timeout_s a stream ends with an error event, and the exit is clean."""
    gateway = start_gateway(provider, server={"drain_timeout_s": 0.3})
    provider.enqueue([Head(headers=EVENTS), Send(event(chunk({"content": "a"}))), Hang()])
    with RawClient.to(gateway.url()) as client:
        client.request("POST", CHAT, json=body(stream=True), headers=KEY)
        client.read_until(b'"a"')
        gateway.signal(signal.SIGTERM)
        rest = client.read_until(END)
    assert b'"code":"shutdown"' in rest
    provider.exchanges[0].peer_closed.wait(1.0)
    assert gateway.wait_exit() == 0


def test_queued_request_is_served_during_a_drain(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A request that waited when the drain began is answered."""
    provider.enqueue([Wait("go"), *steps.answer()])
    one = account(provider, initial_concurrency=1, max_concurrency=1)
    gateway = start_gateway(accounts=[one])
    answers: list[int] = []

    def ask() -> None:
        answers.append(post(gateway).status_code)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    provider.wait_request(0)
    while True:
        stats = httpx.get(gateway.url("/stats"), headers=gateway.admin_headers).json()
        if sum(c["waiting"] for c in stats["pools"][0]["classes"].values()) == 1:
            break
    gateway.signal(signal.SIGTERM)
    gateway.wait_log(lambda x: x.get("msg") == "draining")
    provider.gate("go").mark()
    for thread in threads:
        thread.join(10)
    assert answers == [200, 200]
    assert gateway.wait_exit() == 0


def test_body_that_does_not_come_ends_with_the_gateway(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A client whose body is still to come when the gateway stops is told so, and has its line."""
    gateway = start_gateway(provider)
    with RawClient.to(gateway.url()) as client:
        client.request(
            "POST", CHAT, headers={**KEY, "content-length": "10", "expect": "100-continue"}
        )
        client.read_until(b"100 Continue\r\n\r\n")
        gateway.signal(signal.SIGTERM)
        response = client.read_response()
    assert (response.status, response.json()["error"]["code"]) == (503, "shutdown")
    assert gateway.wait_exit() == 0
    assert [line["outcome"] for line in gateway.log if line["msg"] == "request"] == ["shutdown"]
