"""Forecasts of `sagesched report` held against the same traffic, scheduled.

    python -m tests.bench.observed [--data FILE] [--seeds 4] [--time-scale 4] [--parallel 2]

Per seed and shape there is a provider and a list of requests, as in `sagesched bench`: they go
once through a gateway in `mode = "observe"`, whose journal is then reported on, and once through
one that schedules, both started a moment before. The report has no access to the second run or to
the provider. Printed is the change that it foretold beside the measured one, both against the
observed run.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.settings import load
from gateway.store.store import read_observed
from gateway.workbench.bench import http_bench
from gateway.workbench.bench.bench_processes import BenchGateway, ProviderProcess
from gateway.workbench.bench.bench_seed import LoadWatch, SeedRun, SeedWorld
from gateway.workbench.progress import Progress
from gateway.workbench.report import observed_report
from gateway.workbench.request_texts import request_texts
from gateway.workbench.simulate.worlds import Cell

FIGURES = ("short_p50_s", "short_p95_s", "heavy_p95_s", "p95_s", "mean_s")
REQUESTS = 300
RHO = 1.5

Found = dict[str, tuple[float, float, float]]  # figure → observed, foretold, measured


async def compare(
    own: SeedWorld, provider: ProviderProcess, scale: float, watch: LoadWatch
) -> Found:
    """Figures of one seed, observed, foretold and measured; times are the provider's seconds."""
    run = SeedRun(own, provider, scale, 0.5, (), watch)
    models = sorted({text.model for text in (*own.measured.texts, *own.seeding)})
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)

        async def through(name: str, *settings: str) -> dict[str, float]:
            gateway = BenchGateway(there / name, provider.url, models, scale, settings)
            async with gateway:
                await gateway.learn(own.seeding)
                return (await run.send(own.measured, gateway.url)).figures

        observed = await through("observe", 'schedule.mode="observe"')
        settings = load.load(there / "observe" / "gateway.toml", {})
        foretold = observed_report.tree(
            read_observed(there / "observe" / "bench.db", 10_000), settings
        )
        scheduled = await through("schedule")
    return {
        name: (
            observed[name],
            observed[name] * foretold["scheduled"][name] / foretold["naive"][name],
            scheduled[name],
        )
        for name in FIGURES
    }


async def measure(options: argparse.Namespace) -> list[tuple[Cell, Found]]:
    parser = argparse.ArgumentParser()
    http_bench.add_arguments(parser)
    wanted = ["--out", ".", "--warm-up", "0", "--total-requests", str(REQUESTS)]
    plan = parser.parse_args(wanted)
    known = request_texts(Path(options.data) if options.data else None)
    cells = [
        Cell("burst", shape, RHO, http_bench.REAL, REQUESTS, seed)
        for shape in options.shapes.split(",")
        for seed in range(options.first_seed, options.first_seed + options.seeds)
    ]
    watch = LoadWatch(Progress("requests", 2 * REQUESTS * len(cells)))
    waiting = cells[::-1]
    found: list[tuple[Cell, Found]] = []

    async def play() -> None:
        with ProviderProcess.start() as provider:
            while waiting:
                cell = waiting.pop()
                own = http_bench.seed_world(plan, cell, known)
                found.append((cell, await compare(own, provider, options.time_scale, watch)))

    async with asyncio.TaskGroup() as group:
        for _ in range(options.parallel):
            group.create_task(play())
    return sorted(found, key=lambda pair: cells.index(pair[0]))


def table(found: Sequence[tuple[Cell, Found]]) -> str:
    """Geometric means over the seeds of the changes against the observed run."""
    lines = [
        "| shape | figure | foretold | measured | apart, each seed |",
        "|---|---|---:|---:|---|",
    ]
    for shape in dict.fromkeys(cell.shape for cell, _ in found):
        for name in FIGURES:
            rows = np.log([own[name] for cell, own in found if cell.shape == shape])
            foretold, measured = rows[:, 1] - rows[:, 0], rows[:, 2] - rows[:, 0]
            apart = ", ".join(f"{np.exp(d):.2f}" for d in (foretold - measured).tolist())
            means = " | ".join(f"{np.expm1(d.mean()):+.0%}" for d in (foretold, measured))
            lines.append(f"| {shape} | {name} | {means} | {apart} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--shapes", default="knee,power,linear")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--time-scale", type=float, default=4.0)
    parser.add_argument("--parallel", type=int, default=2)
    options: Any = parser.parse_args()
    print(table(asyncio.run(measure(options))))


if __name__ == "__main__":
    main()
