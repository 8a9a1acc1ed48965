"""A core that raises fails no request: it is rebuilt from the ledger, with an alarm."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit.gateway import TENANT_KEY, GatewayProcess, account
from tests.kit.provider import ScriptedProvider
from tests.kit.steps import Wait, answer
from tests.kit.story import story_of

MODELS = ["kit-model", "once-m", "poison-m", "always-m"]


@pytest.fixture
def gateway(tmp_path: Path, provider: ScriptedProvider) -> Iterator[GatewayProcess]:
    with GatewayProcess(
        tmp_path,
        accounts=[account(provider, models=MODELS, initial_concurrency=2, max_concurrency=2)],
        module="tests.kit.raising",
        forked=True,
    ) as running:
        yield running


def ask(gateway: GatewayProcess, model: str) -> int:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    key = {"authorization": f"Bearer {TENANT_KEY}"}
    return httpx.post(gateway.url("/v1/chat/completions"), json=body, headers=key).status_code


def metric(gateway: GatewayProcess, name: str) -> float:
    text = httpx.get(gateway.url("/metrics")).text
    return next(float(x.split()[1]) for x in text.splitlines() if x.startswith(name + " "))


def jobs(gateway: GatewayProcess) -> tuple[int, int]:
    """Running and waiting."""
    stats = httpx.get(gateway.url("/stats"), headers=gateway.admin_headers).json()
    classes = [c for pool in stats["pools"] for c in pool["classes"].values()]
    return sum(c["running"] for c in classes), sum(c["waiting"] for c in classes)


def wait_jobs(gateway: GatewayProcess, count: int) -> None:
    """Poll until so many jobs run or wait."""
    for _ in range(500):
        if sum(jobs(gateway)) == count:
            return
    raise AssertionError(f"{jobs(gateway)} run and wait, {count} expected")


def test_core_that_raised_once_is_rebuilt_without_a_failed_request(
    gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    """With two jobs running and two waiting, the fifth makes the core raise: all five are answered
    in order of arrival, never more in flight than the limit, with one alarm, the story in the log,
    and no permit left."""
    for _ in range(5):
        provider.enqueue([Wait("go"), *answer()])
    with ThreadPoolExecutor(5) as pool:
        sent = []
        for model in [*["kit-model"] * 4, "once-m"]:
            sent.append(pool.submit(ask, gateway, model))
            wait_jobs(gateway, len(sent))
        assert len(provider.open_exchanges) == 2  # those that ran were adopted
        assert jobs(gateway) == (2, 3)
        provider.gate("go").mark()
        assert [one.result(10) for one in sent] == [200] * 5
    wait_jobs(gateway, 0)
    assert metric(gateway, "sagesched_scheduler_rebuilds_total") == 1
    assert metric(gateway, "sagesched_scheduler_degraded") == 1
    events = httpx.get(gateway.url("/events"), headers=gateway.admin_headers).json()["events"]
    assert [e["detail"]["reason"] for e in events if e["event"] == "rebuilt"] == [
        "RuntimeError: once"
    ]
    assert [x.json()["model"] for x in provider.exchanges] == [*["kit-model"] * 4, "once-m"]
    story = story_of(gateway.log)
    assert [event["job"]["model"] for event in story if event["event"] == "Submitted"] == [
        *["kit-model"] * 4,
        "once-m",
    ]


def test_job_that_breaks_every_core_is_dispatched_without_one(
    gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    """A job that every core raises on is answered, and so are the others."""
    assert ask(gateway, "poison-m") == 200
    assert ask(gateway, "kit-model") == 200
    provider.error(500)  # its failed attempt is its error: there is no core to try again
    assert ask(gateway, "poison-m") == 500
    gateway.wait_log(lambda x: x.get("outcome") == "upstream_error" and x.get("attempts") == 1)
    assert jobs(gateway) == (0, 0)
    assert metric(gateway, "sagesched_scheduler_around_jobs") == 0


def test_core_that_always_raises_is_left_out(
    gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    """While every core raises, nothing is scheduled and every request is answered."""
    assert ask(gateway, "always-m") == 200
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: ask(gateway, "kit-model"), range(40))) == {200}
    assert metric(gateway, "sagesched_scheduler_degraded") == 1
