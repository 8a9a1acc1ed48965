"""`mode = "observe"` and `bypass`: requests are relayed at once, whatever the limits; observed
ones are recorded with what scheduling would have done."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import pytest

from gateway.store.store import read_observed
from gateway.types import ObservedRow, Outcome, Workload
from tests.kit import steps
from tests.kit.gateway import TENANT_KEY, GatewayProcess, account, tenant
from tests.kit.provider import ScriptedProvider
from tests.kit.steps import Wait

Start = Callable[..., GatewayProcess]
ONE = {"initial_concurrency": 1, "max_concurrency": 1}


def ask(gateway: GatewayProcess, key: str = TENANT_KEY) -> int:
    body: dict[str, Any] = {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {key}"}
    url = gateway.url("/v1/chat/completions")
    return httpx.post(url, json=body, headers=headers).status_code


def three_at_once(gateway: GatewayProcess, provider: ScriptedProvider) -> None:
    """Send three requests that the provider holds; return when all have their answers."""
    provider.default = [Wait("go"), *steps.answer()]
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, gateway) for _ in range(3)]
        provider.wait_request(2)  # all three are there although one may run
        provider.gate("go").mark()
        assert [one.result(10) for one in asked] == [200] * 3


def rows(gateway: GatewayProcess) -> list[ObservedRow]:
    gateway.stop()
    return read_observed(gateway.directory / "sagesched.db", 100)


def test_observing_relays_at_once_and_records_what_would_have_been(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """Of three observed requests one would have started and two would have waited for the account,
    one after the other; forecasts and lengths are stored, no text is."""
    gateway = start_gateway(accounts=[account(provider, **ONE)], schedule={"mode": "observe"})
    three_at_once(gateway, provider)
    recorded = rows(gateway)
    assert [row.would for row in recorded].count("start") == 1
    assert [row.would for row in recorded].count("account_limit") == 2
    waits = sorted(row.would_wait_s for row in recorded)
    assert waits[0] < 0.05  # a moment between arrival and submission
    assert waits[0] < waits[1] < waits[2]
    assert {row.outcome for row in recorded} == {Outcome.OK}
    assert all(row.queue_s < 0.5 for row in recorded)
    assert all(row.output_tokens > 0 and row.upstream_s > 0 for row in recorded)
    assert msgspec.msgpack.decode(recorded[0].first, type=Workload).p50 > 0
    assert b"hi" not in b"".join(row.first + row.last for row in recorded)


def test_scheduling_records_nothing(start_gateway: Start, provider: ScriptedProvider) -> None:
    """The twin: in mode "schedule" the same three run one after the other, unrecorded."""
    gateway = start_gateway(accounts=[account(provider, **ONE)])
    provider.default = [Wait("go"), *steps.answer()]
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, gateway) for _ in range(3)]
        provider.wait_request(0)
        assert len(provider.open_exchanges) == 1
        provider.gate("go").mark()
        assert [one.result(10) for one in asked] == [200] * 3
    assert rows(gateway) == []


def test_bypass_relays_at_once_and_keeps_hygiene(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """Nothing waits for the account; keys and a tenant's own cap hold; nothing is recorded."""
    capped = tenant("capped", "kit-capped-key", max_inflight=1)
    gateway = start_gateway(
        accounts=[account(provider, **ONE)],
        tenants=[tenant(), capped],
        schedule={"bypass": True},
    )
    assert ask(gateway, "wrong") == 401
    three_at_once(gateway, provider)
    provider.default = [Wait("again"), *steps.answer()]
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, gateway, "kit-capped-key") for _ in range(2)]
        provider.wait_request(3)
        assert len(provider.open_exchanges) == 1
        provider.gate("again").mark()
        assert [one.result(10) for one in asked] == [200] * 2
    assert rows(gateway) == []


@pytest.mark.parametrize("status", [429, 503])
def test_observing_does_not_rest_an_account(
    start_gateway: Start, provider: ScriptedProvider, status: int
) -> None:
    """A 429 with an hour's Retry-After makes no other request wait, as without a gateway."""
    gateway = start_gateway(accounts=[account(provider)], schedule={"mode": "observe"},
                            retry={"attempts": 1})  # fmt: skip
    provider.error(status, headers={"retry-after": "3600"})
    ask(gateway)
    assert ask(gateway) == 200


def test_mode_is_changed_by_a_reload(start_gateway: Start, provider: ScriptedProvider) -> None:
    """A reload turns observing into scheduling in front of the same provider, without a restart."""
    gateway = start_gateway(accounts=[account(provider, **ONE)], schedule={"mode": "observe"})
    three_at_once(gateway, provider)
    gateway.edit(schedule={"mode": "schedule"})
    gateway.signal(signal.SIGHUP)
    gateway.wait_log(lambda line: line.get("msg") == "settings reloaded")
    provider.default = [Wait("later"), *steps.answer()]
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, gateway) for _ in range(2)]
        provider.wait_request(3)
        assert len(provider.open_exchanges) == 1
        provider.gate("later").mark()
        assert [one.result(10) for one in asked] == [200] * 2
    assert len(rows(gateway)) == 3
