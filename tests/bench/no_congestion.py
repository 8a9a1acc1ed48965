"""Streams through the gateway to a provider that is never slower, in several orders of loads.

    python -m tests.bench.no_congestion [--seconds 3] [--predict] [--wide]

64 paced streams at a time are asked of mock_upstream.py, directly and through the gateway: as the
first load of a fresh one, after idling, after requests that filled the gateway's own core, and
after twice as many streams. Whatever the gateway adds by itself is no congestion of the provider,
so nothing should wait: a row has the streams a second as a share of the direct ones, the first
byte's p99 and the window after the load. `--wide` begins with the window that overhead.py sets.
Streams a second are 64 / their mean time, as whole rounds of streams do not fit a few seconds.

Gateway and predictor have one core, load and provider the other. A turn's first second is no
part of its figures (load.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import httpx

from tests.bench.cores import check_load, load_and_gateway, on_core
from tests.kit.gateway import TENANT_KEY, GatewayProcess, account

PACED = ("--stream", "--words", "21", "--pace", "50-20.5-21")
STREAMS = (*PACED, "--concurrency", "64")
MORE_STREAMS = (*PACED, "--concurrency", "128")
SATURATION = ("--concurrency", "64")
IDLE_S = 3.0
ORDERS = (
    ("fresh", "after idling", "after twice as many", "after own saturation"),
    ("after own saturation", "after idling", "after own saturation again"),
)


@contextmanager
def upstream() -> Iterator[int]:
    """The port of a provider of its own process."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.mock_upstream"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def load(port: int, how: tuple[str, ...], seconds: float, seed: int) -> dict[str, Any]:
    command = [sys.executable, "tests/bench/load.py", "--port", str(port), *how]
    command += ["--key", TENANT_KEY, "--seconds", str(seconds), "--seed", str(seed), "--all"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    report["per_s"] = int(how[-1]) / (mean(report["all_ms"]["total_ms"]) / 1000)
    return report


def prepare(state: str, port: int, seconds: float, seed: int) -> None:
    """Bring the gateway into the state that is measured next."""
    if "idling" in state:
        time.sleep(IDLE_S)
    elif "saturation" in state:
        load(port, SATURATION, seconds, seed)
    elif "twice" in state:
        load(port, MORE_STREAMS, seconds, seed)


def window(gateway: GatewayProcess) -> dict[str, Any]:
    stats = httpx.get(gateway.url("/_stats"), headers=gateway.admin_headers).json()
    found: dict[str, Any] = stats["accounts"][0]["windows"][0]
    return found


def row(state: str, report: dict[str, Any], direct: dict[str, Any], after: str) -> str:
    check_load(report["cpu_share"], state)
    share = report["per_s"] / direct["per_s"]
    first = report["first_ms"]
    return (
        f"| {state} | {report['per_s']:.1f} | {share:.3f} | {first['p50']:.0f} "
        f"| {first['p99']:.0f} | {report['failed']} | {after} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="streams to a provider that is never slower")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one load")
    parser.add_argument("--predict", action="store_true", help="prediction on")
    parser.add_argument("--wide", action="store_true", help="begin with the widest window")
    options = parser.parse_args()
    load_core, gateway_core = load_and_gateway()
    size = 10_000 if options.wide else 16
    with ExitStack() as running:
        running.enter_context(on_core(load_core))
        port = running.enter_context(upstream())
        direct = load(port, STREAMS, options.seconds, 1)
        print("| state | streams/s | ÷ direct | first byte p50 ms | p99 | failed | window |")
        print("|" + "---|" * 7)
        print(row("direct", direct, direct, ""))
        for number, order in enumerate(ORDERS):
            with tempfile.TemporaryDirectory() as directory, ExitStack() as own:
                gateway = GatewayProcess(
                    Path(directory),
                    accounts=[
                        account(
                            f"http://127.0.0.1:{port}/v1",
                            models=["mock-model"],
                            initial_concurrency=size,
                            max_concurrency=max(size, 1024),
                        )
                    ],
                    predict={"enabled": options.predict},
                    start_timeout_s=60.0,
                )
                with on_core(gateway_core):
                    own.enter_context(gateway)
                for turn, state in enumerate(order):
                    seed = 100 * number + 10 * turn
                    prepare(state, gateway.port, options.seconds, seed + 7)
                    report = load(gateway.port, STREAMS, options.seconds, seed + 3)
                    seen = window(gateway)
                    after = f"{seen['window']:.0f}, {seen['regime']} {seen['knee']:.0f}"
                    print(row(state, report, direct, after), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
