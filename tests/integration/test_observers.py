"""Counts and log lines of requests: made some time after the replies, and there whenever somebody
looks."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from gateway.engine.exchange import WORD_CHARS
from gateway.engine.listeners import BATCH
from tests.kit import steps
from tests.kit.gateway import PROVIDER_KEY, TENANT_KEY, GatewayProcess, account
from tests.kit.provider import ScriptedProvider
from tests.kit.raw import RawClient
from tests.kit.steps import EVENTS, Hang, Head, Respond, Send, chunk, event

Start = Callable[..., GatewayProcess]
CHAT = "/v1/chat/completions"
MORE_THAN_A_BATCH = BATCH + BATCH // 2


def body(**more: Any) -> dict[str, Any]:
    return {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}], **more}


def ask(gateway: GatewayProcess, client: httpx.Client, *, stream: bool = False) -> str:
    """One answered request; its id."""
    asked = body(stream=stream)
    answer = client.post(gateway.url(CHAT), json=asked, headers=gateway.headers)
    assert answer.status_code == 200
    return str(answer.headers["x-request-id"])


def counted(gateway: GatewayProcess, client: httpx.Client, name: str) -> float:
    """The sum of a metric's series."""
    lines = client.get(gateway.url("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


def request_ids(gateway: GatewayProcess) -> list[str]:
    return [line["request_id"] for line in gateway.log if line.get("msg") == "request"]


def test_figures_have_every_request_that_was_answered_before(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """Metrics, events and sums read right after an answer have it, be it a stream or not: at every
    number of requests up to more than one batch."""
    gateway = start_gateway(provider)
    with httpx.Client() as client:
        for n in range(1, MORE_THAN_A_BATCH + 1):
            asked = ask(gateway, client, stream=n % 2 == 0)
            if n % 3 == 0:
                assert counted(gateway, client, "sagesched_requests_total") == n
                assert counted(gateway, client, "sagesched_upstream_duration_seconds_count") == n
            elif n % 3 == 1:
                stats = client.get(gateway.url("/stats"), headers=gateway.admin_headers).json()
                assert stats["cost_usd"]["unpriced"] == n
            else:
                events = client.get(gateway.url("/events?n=1"), headers=gateway.admin_headers)
                [last] = events.json()["events"]
                assert (last["event"], last["job"]) == ("finished", asked)


def test_reset_counts_nothing_of_what_was_answered_before(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """Sums that are emptied right after an answer do not get it later."""
    gateway = start_gateway(provider)
    with httpx.Client() as client:
        ask(gateway, client)
        client.post(gateway.url("/reset"), json={"scope": "stats"}, headers=gateway.admin_headers)
        stats = client.get(gateway.url("/stats"), headers=gateway.admin_headers).json()
    assert stats["cost_usd"]["unpriced"] == 0


def test_sigterm_after_a_burst_loses_no_line(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """Each of 100 requests that were answered just before SIGTERM has one line, before that of
    the stop; the lines of those answered one after the other are in their order."""
    gateway = start_gateway(provider)
    with httpx.Client() as client, ThreadPoolExecutor(16) as pool:
        burst = list(pool.map(lambda _: ask(gateway, client), range(90)))
        last = [ask(gateway, client) for _ in range(10)]
        gateway.stop()
    assert Counter(request_ids(gateway)) == Counter([*burst, *last])
    assert request_ids(gateway)[90:] == last
    assert gateway.log[-1]["msg"] == "stopped"


def test_second_sigterm_after_a_burst_loses_no_line(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """An end at once, past every clean-up, has the lines of all that had ended."""
    gateway = start_gateway(provider)
    with httpx.Client() as client, RawClient.to(gateway.url()) as stuck:
        provider.enqueue([Head(headers=EVENTS), Send(event(chunk({"content": "a"}))), Hang()])
        stuck.request("POST", CHAT, json=body(stream=True), headers=gateway.headers)
        stuck.read_until(b'"a"')
        gateway.signal(signal.SIGTERM)
        gateway.wait_log(lambda x: x.get("msg") == "draining")
        refused = [client.post(gateway.url(CHAT), json=body()) for _ in range(10)]
        gateway.signal(signal.SIGTERM)
        assert gateway.wait_exit() == 128 + signal.SIGTERM
    gateway.process = None
    assert request_ids(gateway) == [answer.headers["x-request-id"] for answer in refused]


def test_reload_counts_what_ended_before_under_the_names_of_then(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """Requests of a model that a reload removes are not counted as "other"."""
    both = account(provider, models=["kit-model", "going"])
    gateway = start_gateway(accounts=[both])
    gateway.edit(accounts=[account(provider)])
    with httpx.Client() as client:
        for _ in range(5):
            asked = {**body(), "model": "going"}
            assert client.post(gateway.url(CHAT), json=asked, headers=gateway.headers).is_success
        gateway.signal(signal.SIGHUP)
        gateway.wait_log(lambda x: x.get("msg") == "settings reloaded")
        page = client.get(gateway.url("/metrics")).text
    assert "sagesched_requests_total{" not in page
    assert 'sagesched_tenant_requests_total{outcome="ok",tenant="kit"} 5.0' in page


def test_log_stays_in_order(start_gateway: Start, provider: ScriptedProvider) -> None:
    """Request lines stand before those of what came after the requests: a reload's line has all
    answered before it in front."""
    gateway = start_gateway(provider)
    with httpx.Client() as client:
        asked = [ask(gateway, client) for _ in range(5)]
    gateway.signal(signal.SIGHUP)
    gateway.wait_log(lambda x: x.get("msg") == "settings unchanged")
    messages = [line["msg"] for line in gateway.log]
    assert messages[-6:] == [*["request"] * 5, "settings unchanged"]
    assert request_ids(gateway) == asked


def test_words_of_a_provider_are_cut_before_they_are_kept(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A finish reason and an error code of 100,000 characters reach the client whole, and log and
    events as their beginnings."""
    long = "x" * 100_000
    gateway = start_gateway(provider)
    done = steps.completion("Hi.", (9, 3))
    done["choices"][0]["finish_reason"] = long
    failed = [event(chunk({"content": "a"})), event({"error": {"message": "no", "code": long}})]
    provider.enqueue([Respond(json=done)], [Head(headers=EVENTS), *map(Send, failed)])
    with httpx.Client(headers=gateway.headers) as client:
        assert long in client.post(gateway.url(CHAT), json=body()).text
        assert long in client.post(gateway.url(CHAT), json=body(stream=True)).text
        told = client.get(gateway.url("/events"), headers=gateway.admin_headers).json()["events"]
    gateway.stop()
    finished, broken = [line for line in gateway.log if line.get("msg") == "request"]
    assert finished["finish_reason"] == long[:WORD_CHARS]
    assert broken["error_code"] == long[:WORD_CHARS]
    assert told[-1]["detail"]["error_code"] == long[:WORD_CHARS]


CANARY = "sk-canary1234567890"
"""Looks like a key."""


def everywhere(secret: str) -> list[dict[str, Any]]:
    """Requests with a secret in each place that a client can write to."""
    key = {"authorization": f"Bearer {TENANT_KEY}"}
    wrong = {"authorization": f"Bearer {secret}"}
    odd = {"x-request-id": secret, "user-agent": secret, "x-api-key": secret}
    return [
        {"url": CHAT, "json": body(), "headers": wrong},
        {"url": CHAT, "json": body(), "headers": key | odd},
        {"url": CHAT, "json": body(), "headers": key | {"x-sagesched-class": secret}},
        {"url": CHAT, "json": body(), "headers": key | {"x-request-deadline-ms": secret}},
        {"url": CHAT, "json": body(model=secret), "headers": key},
        {"url": CHAT, "json": body(user=secret, stop=secret), "headers": key},
        {"url": CHAT, "json": body(temperature=secret, n=secret), "headers": key},
        {"url": CHAT, "json": secret, "headers": key},
        {"url": f"{CHAT}?key={secret}", "json": body(), "headers": key},
        {"url": f"/v1/{secret}", "json": body(), "headers": key},
        {"url": f"/{secret}", "json": body(), "headers": key},
        {"url": "/submit", "json": {"prompt": secret, "model": secret}, "headers": key},
    ]


def telling(secret: str) -> list[list[steps.Step]]:
    """A provider's answers with a secret in each place that the gateway reads."""
    done = steps.completion("Hi.", (9, 3))
    done["choices"][0]["finish_reason"] = secret
    end = chunk({}, secret)
    failed = {"error": {"message": secret, "code": secret, "type": secret, "param": secret}}
    return [
        [Respond(json=done)],
        [Respond(400, json=failed)],
        [Respond(200, json=failed)],
        [Head(headers=EVENTS), Send(event(chunk({"content": "a"})) + event(end))],
        [Head(headers=EVENTS), Send(event(chunk({"content": "a"})) + event(failed))],
    ]


@pytest.mark.parametrize(("secret", "masked"), [(CANARY, "sk-***"), (PROVIDER_KEY, "***")])
def test_no_log_line_metric_or_event_holds_a_secret(
    start_gateway: Start, provider: ScriptedProvider, secret: str, masked: str
) -> None:
    """A key that clients and providers write wherever they can is in no line, metric or event,
    although each of the requests has its line."""
    gateway = start_gateway(accounts=[account(provider)], retry={"attempts": 1})
    with httpx.Client() as client:
        for request in everywhere(secret):
            client.post(gateway.url(request.pop("url")), **request)
        for answer in telling(secret):
            provider.enqueue(answer)
            stream = isinstance(answer[0], Head)
            client.post(gateway.url(CHAT), json=body(stream=stream), headers=gateway.headers)
        seen = client.get(gateway.url("/metrics")).text
        seen += client.get(gateway.url("/events?n=1000"), headers=gateway.admin_headers).text
    gateway.stop()
    lines = [line for line in gateway.log if line.get("msg") == "request"]
    assert len(lines) == 10 + len(telling(secret))
    assert {line.get("finish_reason") for line in lines} == {None, "stop", masked}
    assert secret not in "\n".join(gateway.output)
    assert secret not in seen
