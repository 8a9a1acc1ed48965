"""An hour's worth of requests through one gateway: nothing grows, and all is accounted for.

    python -m tests.bench.soak [--requests 360000] [--limit-s 900] [--out FILE.md]

360,000 requests are an hour at 100 a second; they are sent as fast as they are answered. Most are
whole answers and streams; some clients leave before or in the middle, read slowly or send
nonsense, and the provider fails, closes or cuts a stream (soak_clients.py). Prediction is on, two
accounts are on the same mock. Twenty times on the way memory, descriptors, tasks and tracked
objects are counted. At the end every request must have the outcome that its kind can have, nothing
may run or wait, and the last quarter may not be larger than the one before by more than 3 %. Exit
code 1 where something is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import httpx
import uvloop

from gateway.workbench.tables import table
from tests.bench import turns
from tests.bench.cores import children, on_core, spent
from tests.bench.gateways import MODEL, WIDE, MeasuredGateway
from tests.bench.overhead import commit, machine
from tests.bench.soak_clients import FAILED, KINDS, LEFT, OK, REFUSED, Asked, Client
from tests.kit.gateway import ROOT, account

LOOKS = 20
GROWTH = 0.03  # of the last quarter against the one before
REST_S = 25.0  # idle connections to providers are closed after 20
STATES = ("running", "waiting")


class Look(NamedTuple):
    """Sizes at one moment."""

    sent: int
    gateway_mb: float
    child_mb: float
    descriptors: int
    tasks: int
    objects: int


@contextmanager
def provider(core: int | None) -> Iterator[int]:
    """The failing mock; its port."""
    command = [sys.executable, "-m", "tests.bench.failing_upstream"]
    with on_core(core):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.communicate()


def gateway(directory: Path, port: int) -> MeasuredGateway:
    """The wrapped gateway counts its tasks into `directory`/counts."""
    url = f"http://127.0.0.1:{port}/v1"
    many = {"models": [MODEL], "initial_concurrency": 1000, "max_concurrency": 1000}
    return MeasuredGateway(
        directory,
        accounts=[account(url, name, **many) for name in ("a", "b")],
        schedule={"interactive_inflight_tokens": WIDE, "heavy_inflight_tokens": WIDE},
        predict={"enabled": True},
        start_timeout_s=60.0,
        script=turns.FOLDER / "counted.py",
        env={"BENCH_COUNTS": str(directory / "counts")},
    )


class Soak:
    """One run against a gateway that listens."""

    def __init__(self, gateway: MeasuredGateway, requests: int, clients: int) -> None:
        assert gateway.process is not None
        self._gateway = gateway
        self._pid = gateway.process.pid
        self._clients = clients
        self._requests = requests
        self.asked = Asked(gateway.port, requests, seed=1)
        self.looks: list[Look] = []

    async def run(self, limit_s: float) -> None:
        """Send all, look now and then, rest, and look once more."""
        asyncio.get_running_loop().call_later(limit_s, self.asked.stop)
        sending = [asyncio.create_task(Client(self.asked).run()) for _ in range(self._clients)]
        for step in range(1, LOOKS + 1):
            await self.asked.mark(self._requests * (LOOKS - step) // LOOKS).wait()
            if self.asked.stopped:
                break
            await asyncio.to_thread(self._look)
        await asyncio.gather(*sending)
        await asyncio.sleep(REST_S)
        await asyncio.to_thread(self._look)

    def _look(self) -> None:
        counts = self._gateway.directory / "counts"
        counts.unlink(missing_ok=True)
        self._gateway.signal(signal.SIGUSR1)
        while not counts.exists():
            time.sleep(0.01)
        found = json.loads(counts.read_bytes())
        look = Look(
            sent=self.asked.sent.total(),
            gateway_mb=turns.rss_mb(self._pid),
            child_mb=sum(turns.rss_mb(child) for child in children(self._pid)),
            descriptors=sum(1 for _ in Path(f"/proc/{self._pid}/fd").iterdir()),
            tasks=found["tasks"],
            objects=found["objects"],
        )
        self.looks.append(look)
        sys.stderr.write(f"{look}\n")


def outcomes(gateway: MeasuredGateway) -> Counter[str]:
    """Requests by outcome, from the metrics."""
    found: Counter[str] = Counter()
    for line in httpx.get(gateway.url("/metrics")).text.splitlines():
        if line.startswith("sagesched_requests_total{"):
            labels, _, value = line.rpartition(" ")
            found[labels.partition('outcome="')[2].partition('"')[0]] += int(float(value))
    return found


def in_flight(gateway: MeasuredGateway) -> int:
    """Jobs that run or wait."""
    stats = httpx.get(gateway.url("/stats"), headers=gateway.admin_headers).json()
    classes = [one for pool in stats["pools"] for one in pool["classes"].values()]
    return sum(one[state] for one in classes for state in STATES)


def faults(asked: Asked, ended: Counter[str], left_over: int, looks: Sequence[Look]) -> list[str]:
    """Sentences about what is not as it should be; pure."""
    found = [f"{count} times: {what}" for what, count in asked.wrong.items()]
    sent = {ends: asked.ended(ends) for ends in (OK, LEFT, FAILED, REFUSED)}
    good, cancelled = ended["ok"], ended["cancelled"]
    if good + cancelled != sent[OK] + sent[LEFT] or good < sent[OK]:
        found.append(f"{good} ok and {cancelled} cancelled for {sent[OK]} and {sent[LEFT]} sent")
    if ended["upstream_error"] != sent[FAILED]:
        found.append(f"{ended['upstream_error']} upstream errors for {sent[FAILED]} sent")
    for outcome in set(ended) - {"ok", "cancelled", "upstream_error", "client_error"}:
        if ended[outcome]:
            found.append(f"{ended[outcome]} ended as {outcome}")
    if left_over:
        found.append(f"{left_over} jobs still run or wait")
    *under_load, at_rest = looks
    quarter = len(under_load) // 4
    for field in ("gateway_mb", "child_mb", "objects"):
        middle, end = (
            mean(getattr(look, field) for look in some)
            for some in (under_load[2 * quarter : 3 * quarter], under_load[3 * quarter :])
        )
        if end > middle * (1 + GROWTH):
            found.append(f"{field} grew from {middle:.1f} to {end:.1f}")
    for field in ("descriptors", "tasks"):
        if getattr(at_rest, field) > min(getattr(look, field) for look in under_load):
            found.append(f"{getattr(at_rest, field)} {field} at rest")
    return found


def looks_table(looks: Sequence[Look]) -> str:
    lines = (
        [
            f"{look.sent:,}" if number + 1 < len(looks) else f"at rest after {REST_S:g} s",
            f"{look.gateway_mb:.0f}",
            f"{look.child_mb:.0f}",
            *(f"{count:,}" for count in (look.descriptors, look.tasks, look.objects)),
        ]
        for number, look in enumerate(looks)
        if number % 4 == 3 or number + 1 >= len(looks) - 1
    )
    return table(["requests", "gateway MB", "child MB", "descriptors", "tasks", "objects"], lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="an hour's worth of requests")
    parser.add_argument("--requests", type=int, default=360_000)
    parser.add_argument("--limit-s", type=float, default=900.0, help="send no more after so long")
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--out", type=Path, help="append the result to this Markdown file")
    options = parser.parse_args()
    where = machine()
    load_core, core = turns.pinned()
    with ExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        begun = gateway(directory, running.enter_context(provider(load_core)))
        with on_core(core):
            running.enter_context(begun)
        soak = Soak(begun, options.requests, options.clients)
        began_s = time.monotonic()
        uvloop.run(soak.run(options.limit_s))
        took_s = time.monotonic() - began_s - REST_S
        assert begun.process is not None
        used = spent(begun.process.pid)
        ended, left_over = outcomes(begun), in_flight(begun)
    wrong = faults(soak.asked, ended, left_over, soak.looks)
    kinds = ", ".join(f"{soak.asked.sent[name]:,} {name}" for name in KINDS)
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in ended.most_common() if count)
    text = "\n\n".join(
        [
            f"## Soak, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            f"`{shlex.join(['python', '-m', 'tests.bench.soak', *sys.argv[1:]])}`",
            f"{where}; commit {commit()}; {took_s:.0f} s, {soak.asked.sent.total() / took_s:.0f}/s;"
            f" CPU of loop, threads, child: {', '.join(f'{s:.0f}' for s in used)} s.",
            f"Sent: {kinds}. Ended: {told}.",
            looks_table(soak.looks),
            "All accounted for, nothing grew."
            if not wrong
            else "Not so: " + "; ".join(wrong) + ".",
        ]
    )
    print(text)
    if options.out is not None:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}\n")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
