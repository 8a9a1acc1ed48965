"""Cost of the gateway: a mock upstream that answers at once, asked directly and through it.

    python tests/bench/overhead.py [--seconds 3] [--repeat 8] [--quick] [--out FILE.md]

Three targets side by side in one run (direct, prediction off, prediction on), taken in turns
of a few seconds, forwards and backwards, so that whatever the machine does meanwhile hits
all alike. Quantiles are of all requests of all turns together: a median of each turn's p99
would leave its worst turns out. "Added" is the gateway's quantile minus the direct one of
the same cell.
Upstream, gateways and load generator are processes of their own and share the machine's
cores; the generator's CPU share is in the table because a busy generator measures itself,
the target's CPU time per request because it is the figure that a busy machine moves least.
CPU and memory are the gateway's process and, after a plus sign, its predictor's.
Budgets and limits are wide open: this measures work per request, not scheduling. The
gateway's log is on, as shipped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.cores import cpu_s, on_core  # noqa: E402
from tests.bench.load import quantiles  # noqa: E402
from tests.kit.gateway import TENANT_KEY, GatewayProcess, account  # noqa: E402

HERE = Path(__file__).resolve().parent
WARM_UP_S = 6.0
SETTLE_S = 90.0
PACKAGES = ("uvicorn", "uvloop", "httptools", "httpx", "litestar", "msgspec")


@dataclass(frozen=True)
class Cell:
    name: str
    load: tuple[str, ...]
    quick: bool = False  # measured with --quick, too


CELLS = (
    Cell("closed loop, 16", ("--concurrency", "16"), quick=True),
    Cell("closed loop, 64", ("--concurrency", "64")),
    Cell("open loop, 100/s", ("--rate", "100", "--concurrency", "64")),
    Cell("open loop, 200/s", ("--rate", "200", "--concurrency", "64"), quick=True),
    Cell("open loop, 300/s", ("--rate", "300", "--concurrency", "64")),
    Cell("64 streams", ("--stream", "--concurrency", "64"), quick=True),
)


@dataclass
class Target:
    name: str
    port: int
    pid: int  # whose CPU time and memory count
    process: GatewayProcess | None = None

    def settle(self) -> None:
        """Wait until the predictor has learned what the last cell left it: its work would
        count against whoever is measured next."""
        deadline = time.monotonic() + SETTLE_S
        while self.process is not None and time.monotonic() < deadline:
            stats = httpx.get(self.process.url("/stats"), headers=self.process.admin_headers)
            predictor = stats.json()["predictor"]
            if predictor["learn_queue"] + predictor["forecast_queue"] == 0:
                return
            time.sleep(0.2)


@dataclass
class Row:
    cell: str
    target: str
    result: dict[str, Any]
    cpu_ms: tuple[float, ...]  # per request: the process's own, its children's
    rss_mb: tuple[float, ...]
    direct: dict[str, Any]  # the same cell without the gateway

    @property
    def timing(self) -> str:
        """Name of the cell's time: `first_ms` (first byte) for streams, `total_ms` for others."""
        return "first_ms" if "stream" in self.cell else "total_ms"

    def added_ms(self, quantile: str) -> float:
        there = self.result[self.timing][quantile]
        return float(there - self.direct[self.timing][quantile])


@dataclass
class Turn:
    """One target's few seconds."""

    report: dict[str, Any]
    cpu_s: tuple[float, ...]
    rss_mb: tuple[float, ...]


@contextmanager
def mock_upstream() -> Iterator[Target]:
    with subprocess.Popen(
        [sys.executable, str(HERE / "mock_upstream.py")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield Target("direct", int(process.stdout.readline()), process.pid)
        finally:
            process.terminate()


@contextmanager
def gateway(
    name: str,
    upstream: Target,
    *,
    predict: bool,
    history: Path | None = None,
    core: int | None = None,
) -> Iterator[Target]:
    """Args: `history`: a store to begin with, copied. `core`: it and its children stay there."""
    wide = 1_000_000_000
    with tempfile.TemporaryDirectory() as directory:
        process = GatewayProcess(
            Path(directory),
            accounts=[
                account(
                    f"http://127.0.0.1:{upstream.port}/v1",
                    models=["mock-model"],
                    initial_concurrency=10_000,
                    max_concurrency=10_000,
                )
            ],
            schedule={"interactive_inflight_tokens": wide, "heavy_inflight_tokens": wide},
            predict={"enabled": predict},
            start_timeout_s=60.0,
        )
        if history is not None:
            shutil.copy(history, Path(directory) / "sagesched.db")
        with ExitStack() as running:
            with on_core(core):
                running.enter_context(process)
            assert process.process is not None
            yield Target(name, process.port, process.process.pid, process)


def load(target: Target, how: tuple[str, ...], seconds: float, seed: int) -> dict[str, Any]:
    """One run of the load generator; its report."""
    command = [sys.executable, str(HERE / "load.py"), "--port", str(target.port), *how, "--all"]
    command += ["--key", TENANT_KEY, "--seconds", str(seconds), "--seed", str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def measure(cell: Cell, target: Target, seconds: float, seed: int) -> Turn:
    pids = [target.pid, *children(target.pid)]
    before_s = [cpu_s(pid) for pid in pids]
    report = load(target, cell.load, seconds, seed)
    spent_s = tuple(cpu_s(pid) - then for pid, then in zip(pids, before_s, strict=True))
    return Turn(report, spent_s, tuple(rss_mb(pid) for pid in pids))


def run(cells: list[Cell], seconds: float, repeat: int) -> list[Row]:
    with ExitStack() as running:
        direct = running.enter_context(mock_upstream())
        targets = [direct]
        for name, predict in (("prediction off", False), ("prediction on", True)):
            targets.append(running.enter_context(gateway(name, direct, predict=predict)))
        warm_up(targets)
        return in_turns(cells, targets, seconds, repeat)


def warm_up(targets: list[Target]) -> None:
    for number, target in enumerate(targets):
        load(target, ("--concurrency", "16"), WARM_UP_S, seed=100_000 + number)
        target.settle()


def in_turns(cells: list[Cell], targets: list[Target], seconds: float, repeat: int) -> list[Row]:
    """Every cell through every target, which take turns; the first target is `direct`."""
    rows: list[Row] = []
    for number, cell in enumerate(cells):
        turns: dict[str, list[Turn]] = {target.name: [] for target in targets}
        for turn in range(repeat):
            for target in targets if turn % 2 == 0 else targets[::-1]:
                # One seed a turn: the same prompts and arrivals for each, new to it.
                seed = number + 100 * turn
                turns[target.name].append(measure(cell, target, seconds, seed))
                target.settle()
        first: dict[str, Any] = {}
        for target in targets:
            rows.append(together(cell, target, turns[target.name], first))
            first = first or rows[-1].result
            rows[-1].direct = first
            note(rows[-1])
    return rows


def together(cell: Cell, target: Target, turns: list[Turn], direct: dict[str, Any]) -> Row:
    """All turns as one: times pooled, counts added, rates averaged."""
    reports = [turn.report for turn in turns]
    result: dict[str, Any] = {
        key: sum(r[key] for r in reports) for key in ("failed", "unsent", "answered")
    }
    for key in ("per_s", "cpu_share"):
        result[key] = mean(r[key] for r in reports)
    for key in ("total_ms", "first_ms"):
        result[key] = quantiles([ms / 1000 for r in reports for ms in r["all_ms"][key]])
    cpu_s = (sum(spent) for spent in zip(*(turn.cpu_s for turn in turns), strict=False))
    cpu_ms = tuple(1000 * spent / max(1, result["answered"]) for spent in cpu_s)
    rss = tuple(max(held) for held in zip(*(turn.rss_mb for turn in turns), strict=False))
    return Row(cell.name, target.name, result, cpu_ms, rss, direct)


def note(row: Row) -> None:
    """Progress, so that a long run is seen to run."""
    sys.stderr.write(f"{row.cell}, {row.target}: {row.result['per_s']:.0f}/s\n")


def table(rows: list[Row]) -> str:
    head = (
        "| load | through | req/s | p50 ms | p99 ms | added p50 | added p99 | failed "
        "| generator CPU | CPU ms/request | MB |"
    )
    out = [head, "|" + "---|" * 11]
    for row in rows:
        direct, timing = row.target == "direct", row.result[row.timing]
        added = ["", ""] if direct else [f"{row.added_ms(q):.2f}" for q in ("p50", "p99")]
        what = f"{row.cell} (first bytes)" if row.timing == "first_ms" else row.cell
        cells = [
            what,
            row.target,
            f"{row.result['per_s']:.0f}",
            f"{timing['p50']:.2f}",
            f"{timing['p99']:.2f}",
            *added,
            str(row.result["failed"] + row.result["unsent"]),
            f"{row.result['cpu_share']:.2f}",
            " + ".join(f"{ms:.2f}" for ms in row.cpu_ms),
            " + ".join(f"{mb:.0f}" for mb in row.rss_mb),
        ]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def headline(rows: list[Row]) -> str:
    """The two figures that the project set itself."""
    by = {(row.cell, row.target): row for row in rows}
    at_16 = by["closed loop, 16", "prediction on"].result["per_s"]
    on, off = (by["open loop, 200/s", f"prediction {x}"] for x in ("on", "off"))
    apart = on.result["total_ms"]["p99"] - off.result["total_ms"]["p99"]
    return (
        f"With prediction on, 16 concurrent: **{at_16:.0f} req/s** (wanted ≥ 1,000). "
        f"p99 at 200 req/s, prediction on minus off: **{apart:+.2f} ms** (wanted ≤ 2)."
    )


def report(rows: list[Row], command: str) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return "\n\n".join(
        [
            f"## Overhead, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            f"`{command}`",
            f"{machine()}; Python {platform.python_version()}, {packages}; commit {commit()}.",
            headline(rows),
            table(rows),
        ]
    )


def machine() -> str:
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}, {gib:.0f} GiB, {platform.system()} {platform.release()}"


def commit() -> str:
    ask = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(ask, capture_output=True, text=True).stdout.strip() or "none"


def children(pid: int) -> list[int]:
    """Ids of a process's children now, whichever thread began them: a gateway has its predictor."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended since
            found += map(int, (thread / "children").read_text().split())
    return sorted(found)


def rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description="what the gateway costs per request")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn")
    parser.add_argument("--repeat", type=int, default=8, help="turns of each target at each cell")
    parser.add_argument(
        "--quick", action="store_true", help="three cells, short turns: a smoke test"
    )
    parser.add_argument("--out", type=Path, help="append the result to this Markdown file")
    options = parser.parse_args()
    cells = [cell for cell in CELLS if cell.quick or not options.quick]
    rows = run(cells, 2.0 if options.quick else options.seconds, options.repeat)
    command = shlex.join(["python", "tests/bench/overhead.py", *sys.argv[1:]])
    text = report(rows, command)
    print(text)
    if options.out is not None:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}\n")
    return 1 if any(row.result["failed"] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
