"""A provider's rate-limit headers, as shown on /metrics and /_stats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.kit import steps
from tests.kit.gateway import TENANT_KEY, GatewayProcess, account
from tests.kit.provider import ScriptedProvider
from tests.kit.steps import Respond

Start = Callable[..., GatewayProcess]
HEADERS = {
    "x-ratelimit-limit-requests": "600",
    "x-ratelimit-remaining-requests": "120",
    "x-ratelimit-reset-requests": "6m0s",
    "x-ratelimit-remaining-tokens": "5000",
}


def ask(gateway: GatewayProcess) -> int:
    body: dict[str, Any] = {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {TENANT_KEY}"}
    return httpx.post(gateway.url("/v1/chat/completions"), json=body, headers=headers).status_code


def shown(gateway: GatewayProcess) -> dict[str, dict[tuple[str, str, str], float]]:
    """Name without its prefix → (account, model, kind) → value."""
    page = httpx.get(gateway.url("/metrics")).text
    found: dict[str, dict[tuple[str, str, str], float]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name.startswith("sagesched_ratelimit_"):
                of = sample.labels["account"], sample.labels["model"], sample.labels["kind"]
                name = sample.name.removeprefix("sagesched_ratelimit_")
                found.setdefault(name, {})[of] = sample.value
    return found


def test_rate_limit_headers_are_shown_by_account_and_model(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """/metrics and /_stats show the limit of a header, the rest less what was sent since, and the
    time of its reset. The twin: an answer without such headers shows nothing."""
    gateway = start_gateway(accounts=[account(provider, name="a")])
    assert ask(gateway) == 200
    assert shown(gateway) == {}
    provider.enqueue([Respond(json=steps.completion("hi", (9, 3)), headers=HEADERS)])
    assert ask(gateway) == 200
    page = shown(gateway)
    requests, tokens = ("a", "kit-model", "requests"), ("a", "kit-model", "tokens")
    assert page["limit"] == {requests: 600}
    assert page["remaining"] == {requests: 120, tokens: 5000}
    assert 300 < page["reset_seconds"][requests] <= 360
    assert 0 < page["reset_seconds"][tokens] <= 60
    assert page["wait_seconds"] == {requests: 0, tokens: 0}
    assert page["believed"] == {requests: 1, tokens: 1}
    assert ask(gateway) == 200
    assert shown(gateway)["remaining"][requests] == 119
    stats = httpx.get(gateway.url("/_stats"), headers=gateway.admin_headers).json()
    (first, second) = stats["accounts"][0]["limits"]
    assert (first["kind"], first["limit"], first["remaining"]) == ("requests", 600, 119)
    assert (second["kind"], second["limit"], second["believed"]) == ("tokens", 0, True)
