"""The predictor's process as a part that may die: the gateway goes on, and gets another."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.kit.gateway import GatewayProcess, account
from tests.kit.provider import ScriptedProvider


def child_of(gateway: GatewayProcess) -> int | None:
    """The predictor's process id."""
    assert gateway.process is not None
    own = gateway.process.pid
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = stat.with_name("cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(fields[1]) == own and b"predictor" in command:
            return int(stat.parent.name)
    return None


def predictor(gateway: GatewayProcess) -> dict[str, Any]:
    stats = httpx.get(gateway.url("/stats"), headers=gateway.admin_headers)
    found: dict[str, Any] = stats.json()["predictor"]
    return found


def eventually(true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Ask again until it is so; asking is a request, and takes its time."""
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until, "it did not come to be"


def ready(gateway: GatewayProcess) -> Callable[[], bool]:
    return lambda: predictor(gateway)["state"] == "ready"


def ingest(gateway: GatewayProcess, count: int) -> None:
    for i in range(count):
        row = {"prompt": f"Tell me about the number {i}", "output_tokens": 100 + i}
        answer = httpx.post(gateway.url("/ingest"), json=row, headers=gateway.headers)
        assert answer.status_code == 200


def test_predictor_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """Requests are answered throughout; the new one knows all that was stored."""
    with (
        ScriptedProvider() as provider,
        GatewayProcess(
            tmp_path, accounts=[account(provider)], predict={"enabled": True}
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
    """Nobody is left behind by kill -9 of the gateway alone."""
    with (
        ScriptedProvider() as provider,
        GatewayProcess(
            tmp_path, accounts=[account(provider)], predict={"enabled": True}
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
