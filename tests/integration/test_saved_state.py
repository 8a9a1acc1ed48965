"""The accounts' learned state outlives the process, for an hour."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from gateway.balance.saved_state import SavedState
from tests.kit.gateway import TENANT_KEY, GatewayProcess, account
from tests.kit.provider import ScriptedProvider

Start = Callable[..., GatewayProcess]


def ask(gateway: GatewayProcess) -> int:
    body: dict[str, Any] = {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {TENANT_KEY}"}
    url = gateway.url("/v1/chat/completions")
    return httpx.post(url, json=body, headers=headers).status_code


def limit(gateway: GatewayProcess) -> float:
    stats = httpx.get(gateway.url("/_stats"), headers=gateway.admin_headers).json()
    found: float = stats["accounts"][0]["limit"]
    return found


def saved(gateway: GatewayProcess) -> tuple[float, SavedState]:
    store = sqlite3.connect(gateway.directory / "sagesched.db")
    try:
        (value,) = store.execute("SELECT value FROM state WHERE name = 'accounts'").fetchone()
    finally:
        store.close()
    return msgspec.msgpack.decode(value, type=tuple[float, SavedState])


def cut_by_a_429(start_gateway: Start, provider: ScriptedProvider) -> GatewayProcess:
    one = account(provider, initial_concurrency=40, max_concurrency=100)
    gateway = start_gateway(accounts=[one], balance={"cut_ratio": 0.5, "max_backoff_s": 0.05})
    provider.error(429)
    assert ask(gateway) == 200
    assert limit(gateway) < 25
    return gateway


def test_limits_are_restored_after_a_restart(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A limit cut from 40 to 20 starts in the next process at 0.7 of what was saved, not at the
    settings' 40."""
    gateway = cut_by_a_429(start_gateway, provider)
    before = limit(gateway)
    gateway.stop()
    wall_s, state = saved(gateway)
    assert wall_s > 1e9
    assert state.accounts[0].limit == pytest.approx(before)
    gateway.start()
    assert limit(gateway) == pytest.approx(0.7 * before, rel=0.1)


@pytest.mark.parametrize("fault", ["old", "damaged"])
def test_old_or_damaged_state_is_not_restored(
    start_gateway: Start, provider: ScriptedProvider, fault: str
) -> None:
    """State older than an hour, or unreadable, is ignored: the gateway starts with the settings'
    own limit."""
    gateway = cut_by_a_429(start_gateway, provider)
    gateway.stop()
    wall_s, state = saved(gateway)
    value = msgspec.msgpack.encode((wall_s - 3700, state)) if fault == "old" else b"\xc1"
    store = sqlite3.connect(gateway.directory / "sagesched.db")
    with store:
        store.execute("UPDATE state SET value = ? WHERE name = 'accounts'", (value,))
    store.close()
    gateway.start()
    assert limit(gateway) == 40
    assert ask(gateway) == 200
