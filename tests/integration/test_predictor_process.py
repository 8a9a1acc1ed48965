"""The predictor's process as a part that may die: the gateway goes on, and gets another."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.kit import steps
from tests.kit.gateway import GatewayProcess, account
from tests.kit.predictor import child_of, eventually, predictor
from tests.kit.provider import ScriptedProvider
from tests.kit.steps import Wait


def ready(gateway: GatewayProcess) -> Callable[[], bool]:
    return lambda: predictor(gateway)["state"] == "ready"


def ingest(gateway: GatewayProcess, count: int) -> None:
    for i in range(count):
        row = {"prompt": f"Tell me about the number {i}", "output_tokens": 100 + i}
        answer = httpx.post(gateway.url("/ingest"), json=row, headers=gateway.headers)
        assert answer.status_code == 200


def test_predictor_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """Requests are answered while the process is replaced; the new one has learned all that was
    stored."""
    with (
        ScriptedProvider() as provider,
        GatewayProcess(
            tmp_path, accounts=[account(provider)], predict={"enabled": True}, forked=True
        ) as gateway,
    ):
        eventually(ready(gateway))
        ingest(gateway, 6)
        first = child_of(gateway)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        body = {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}]}
        for _ in range(3):
            url = gateway.url("/v1/chat/completions")
            answer = httpx.post(url, json=body, headers=gateway.headers)
            assert answer.status_code == 200
            assert int(answer.headers["x-sagesched-predicted-tokens"]) > 0
        eventually(lambda: predictor(gateway)["restarts"] == 1 and ready(gateway)())
        assert predictor(gateway)["index_rows"] >= 6
        second = child_of(gateway)
        assert second not in (None, first)
        gateway.wait_log(lambda line: "it is begun again" in str(line.get("msg")))


def test_predictor_process_ends_with_a_killed_gateway(tmp_path: Path) -> None:
    """After kill -9 of the gateway alone its predictor's process ends, too."""
    with (
        ScriptedProvider() as provider,
        GatewayProcess(
            tmp_path, accounts=[account(provider)], predict={"enabled": True}, forked=True
        ) as gateway,
    ):
        eventually(ready(gateway))
        child = child_of(gateway)
        assert child is not None
        assert gateway.process is not None
        ended = select.poll()
        ended.register(os.pidfd_open(child), select.POLLIN)
        assert not ended.poll(0)
        os.kill(gateway.process.pid, signal.SIGKILL)
        assert ended.poll(10_000)
        gateway.kill()


def test_predictor_process_ends_when_prediction_is_switched_off(tmp_path: Path) -> None:
    """A reload that switches prediction off ends the process, with a request under way; switched on
    again, a new process has read the stored history."""
    with (
        ScriptedProvider() as provider,
        GatewayProcess(
            tmp_path, accounts=[account(provider)], predict={"enabled": True}, forked=True
        ) as gateway,
        ThreadPoolExecutor() as pool,
    ):
        eventually(ready(gateway))
        ingest(gateway, 6)
        first = child_of(gateway)
        assert first is not None
        ended = select.poll()
        ended.register(os.pidfd_open(first), select.POLLIN)
        provider.enqueue([Wait("go"), *steps.answer()])
        running = pool.submit(chat, gateway)
        provider.wait_request(0)
        switch(gateway, on=False)
        assert ended.poll(10_000)
        shown = predictor(gateway)
        assert (shown["state"], shown["ready"], shown["index_rows"]) == ("off", False, 0)
        assert "sagesched_predictor_ready 0.0" in httpx.get(gateway.url("/metrics")).text
        assert httpx.get(gateway.url("/health")).json()["predictor"] == "off"
        provider.gate("go").mark()
        assert running.result().status_code == 200
        assert chat(gateway).headers["x-sagesched-predicted-tokens"]
        assert child_of(gateway) is None
        switch(gateway, on=True)
        eventually(ready(gateway))
        assert child_of(gateway) not in (None, first)
        assert (predictor(gateway)["index_rows"], predictor(gateway)["restarts"]) == (6, 0)


def switch(gateway: GatewayProcess, *, on: bool) -> None:
    patch = {"predict": {"enabled": on}}
    url = gateway.url("/admin/config")
    assert httpx.post(url, json=patch, headers=gateway.admin_headers).status_code == 200


def chat(gateway: GatewayProcess) -> httpx.Response:
    body = {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}]}
    url = gateway.url("/v1/chat/completions")
    return httpx.post(url, json=body, headers=gateway.headers, timeout=30)
