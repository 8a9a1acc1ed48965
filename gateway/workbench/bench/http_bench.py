"""`sagesched bench`: the gateway against no gateway, over real HTTP, in one run.

Four processes: a provider with congestion (http_provider.py), the gateway with its predictor's
child, and this one, which sends the load and takes the times. Each seed has one provider with
drawn parameters, one list of requests with their arrivals, lengths and noise, and on them

    naive   straight to the provider, every request when it comes
    ours    through the gateway, after a warm-up of other requests at 1.2 × capacity
    cold    through a gateway that was started a moment ago

Rows to teach, to warm up and to measure share no conversation, and no shipped model was fitted on
any of them.

`time_scale` divides every time of the provider, of the arrivals and of the gateway's settings that
are seconds of work; all times in the report are the provider's. The gateway's own time does not
shrink along, so scaling is at its expense, and so is `parallel`. A run in which this process or a
provider used more than MOST_CPU of a core measured them, and is refused.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from gateway.errors import SettingsError
from gateway.types import QUANTILE_LEVELS, Rung
from gateway.workbench.arguments import (
    add_data,
    add_overrides,
    check_names,
    this_command,
    words,
)
from gateway.workbench.bench.bench_processes import ProviderProcess
from gateway.workbench.bench.bench_seed import LoadWatch, SeedRun, SeedWorld, Traffic
from gateway.workbench.progress import Progress
from gateway.workbench.request_texts import RequestText, request_texts
from gateway.workbench.simulate import simulation_report as reports
from gateway.workbench.simulate.cells import PolicyFigures
from gateway.workbench.simulate.request_rows import MIXES, RequestRow, workload
from gateway.workbench.simulate.simulated_provider import SHAPES, ProviderTraits
from gateway.workbench.simulate.worlds import WARM_UP_RHO, Cell, Plan, World, world_of
from gateway.workbench.tables import write_report

REAL = "real"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which runs are made, and of how much."""
    add_data(parser, "conversations; default: the demo's own")
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR")
    add("--shapes", type=words, default="knee,power,linear", metavar="A,B")
    add("--seeds", type=int, default=5)
    add("--first-seed", type=int, default=0)
    add("--total-requests", type=int, default=200)
    add("--seed-count", type=int, default=300, help="rows taught before")
    add("--warm-up", type=int, default=200, metavar="REQUESTS")
    add("--cold-seeds", type=int, default=2, help="seeds measured without warm-up too")
    add("--rho", type=float, default=2.0, help="arrivals per capacity")
    add("--mix", default="published")
    add("--time-scale", type=float, default=5.0)
    add("--stream-share", type=float, default=0.5)
    add("--parallel", type=int, default=1, metavar="N", help="seeds at a time")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Run everything, write OUT/report.json and report.md; 0.

    Raises:
        SettingsError: an option or file is unusable, a process did not start, or this machine
            is too slow for the time scale.
    """
    return asyncio.run(_bench(args))


async def _bench(args: argparse.Namespace) -> int:
    check_names("bench", "shape", args.shapes, SHAPES)
    check_names("bench", "mix", [args.mix], tuple(MIXES))
    texts = request_texts(args.data)
    cells = [
        Cell("burst", shape, args.rho, REAL, args.total_requests, seed)
        for shape in args.shapes
        for seed in range(args.first_seed, args.first_seed + args.seeds)
    ]
    total = sum(_steps(args, cell) for cell in cells)
    watch, started = LoadWatch(Progress("requests", total)), time.monotonic()
    played = await _play_all(args, cells, texts, watch)
    rows = [_row(text) for text in texts]
    report = {
        "about": _about(args, time.monotonic() - started, watch),
        "workload": reports.workload({REAL: rows}) | {"forecasts": {}},
        "groups": [*_groups(cells, played, "ours"), *_groups(cells, played, "cold")],
    }
    write_report(args.out, report, reports.markdown(report, "Bench"))
    seconds = time.monotonic() - started
    print(f"{args.out / 'report.md'}: {len(cells)} runs in {seconds:.0f} s")
    return 0


async def _play_all(
    args: argparse.Namespace, cells: Sequence[Cell], texts: Sequence[RequestText], watch: LoadWatch
) -> list[dict[str, PolicyFigures]]:
    """Figures by policy in the order of the cells; the first error ends all."""
    played: list[dict[str, PolicyFigures]] = [{} for _ in cells]
    waiting = list(enumerate(cells))[::-1]

    async def play_on(provider: ProviderProcess) -> None:
        while waiting:
            place, cell = waiting.pop()
            world = seed_world(args, cell, texts)
            seed = SeedRun(world, provider, args.time_scale, args.stream_share, args.set, watch)
            played[place] = await seed.play(_is_cold(args, cell))

    with ExitStack() as stack:
        providers = [
            stack.enter_context(ProviderProcess.start())
            for _ in range(max(1, min(args.parallel, len(cells))))
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for provider in providers:
                    group.create_task(play_on(provider))
        except ExceptionGroup as errors:  # `except*` would not let it out of its group everywhere
            raise next(
                (e for e in errors.exceptions if isinstance(e, SettingsError)), errors
            ) from None
    return played


def _groups(
    cells: Sequence[Cell], played: Sequence[dict[str, PolicyFigures]], policy: str
) -> list[dict[str, Any]]:
    """Groups of `policy` beside naive, over the seeds in which it was played."""
    both = [
        (cell, {"naive": found["naive"], policy: found[policy]})
        for cell, found in zip(cells, played, strict=True)
        if policy in found
    ]
    return reports.tree([cell for cell, _ in both], [found for _, found in both])


def _steps(args: argparse.Namespace, cell: Cell) -> int:
    steps: int = args.total_requests * (3 if _is_cold(args, cell) else 2) + args.warm_up
    return steps


def _is_cold(args: argparse.Namespace, cell: Cell) -> bool:
    """True where the seed's cold start is measured, too."""
    cold: bool = cell.seed - args.first_seed < args.cold_seeds
    return cold


def _about(args: argparse.Namespace, seconds: float, watch: LoadWatch) -> dict[str, Any]:
    return {
        "command": this_command(),
        "rows_from": args.data.name if args.data else "generated",
        "mix": args.mix,
        "arrivals": "poisson",
        "seeds": args.seeds,
        "warm_up": args.warm_up,
        "time_scale": args.time_scale,
        "seed_count": args.seed_count,
        "stream_share": args.stream_share,
        "settings": list(args.set),
        "parallel": args.parallel,
        "cpu_share_at_most": watch.busiest,
        "left_late_s_at_most": watch.latest_s,  # of the provider's time
        "seconds": round(seconds, 1),
    }


# -- one seed ----------------------------------------------------------------------------


def seed_world(args: argparse.Namespace, cell: Cell, texts: Sequence[RequestText]) -> SeedWorld:
    """Draw a seed's provider and traffic. Raises SettingsError where there are too few rows."""
    chance = np.random.default_rng([cell.seed, 77])
    order = [texts[i] for i in chance.permutation(len(texts)).tolist()]
    seeding, rest = order[: args.seed_count], order[args.seed_count :]
    half = len(rest) * args.warm_up // max(1, args.warm_up + args.total_requests)
    if len(rest) < args.warm_up + args.total_requests:
        raise SettingsError(f"bench: {len(texts)} rows are too few")
    measured, measured_texts = _world(args, cell, rest[half:], {})
    traits = measured.traits["a"]
    fixed = {
        name: float(getattr(traits, name))
        for name in ProviderTraits.__struct_fields__
        if name != "shape"
    }
    warm_up = Traffic((), ())
    if args.warm_up:
        other = structs.replace(
            cell, rho=WARM_UP_RHO, requests=args.warm_up, seed=cell.seed + 100_000
        )
        world, warm_up_texts = _world(args, other, rest[:half], fixed)
        renamed = [structs.replace(r, id="w" + r.id) for r in world.requests]
        warm_up = Traffic(renamed, warm_up_texts)
    return SeedWorld(cell, traits, seeding, warm_up, Traffic(measured.requests, measured_texts))


def _world(
    args: argparse.Namespace, cell: Cell, texts: Sequence[RequestText], fixed: dict[str, float]
) -> tuple[World, list[RequestText]]:
    """The cell's world, and the texts of its requests."""
    rows = [_row(text) for text in texts]
    by_row = {id(row): text for row, text in zip(rows, texts, strict=True)}
    world = world_of(Plan({REAL: rows}, warm_up=0, mix=args.mix, fixed=fixed), cell)
    return world, [by_row[id(request.row)] for request in world.requests]


def _row(text: RequestText) -> RequestRow:
    """A row without a forecast: forecasts are the gateway's own here."""
    unknown = workload(
        text.prompt_tokens, (1.0,) * len(QUANTILE_LEVELS), 0.0, Rung.HEURISTIC, 1.0, 0.0
    )
    return RequestRow(text.prompt_tokens, text.output_tokens, unknown)
