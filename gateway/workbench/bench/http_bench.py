"""`sagesched bench`: the gateway against no gateway, over real HTTP, in one run.

Four processes: a provider with congestion (bench_provider.py), the gateway with its predictor's
child, and this one, which sends the load and keeps the times. Per seed one provider, drawn from
ranges no controller reads (simulate_provider.py), one list of requests with their arrivals,
lengths and noise, and on them

    naive   straight to the provider, every request when it comes
    ours    through the gateway, after a warm-up of other requests at 1.2 × capacity
    cold    through a gateway that was started a moment ago: what its first minute is like

Seeding rows, warm-up rows and measured rows share no conversation, and none of them was fitted
by a shipped model. An answer's length is the row's true one and stands in a table that only the
provider reads.

`time_scale` divides every time of the provider, of the arrivals and of the gateway's settings
that are seconds of work; all times in the report are the provider's, not the wall's. What does
not shrink along is the gateway's own time, so scaling is at its expense. A run in which this
process or a provider used more than `MOST_CPU` of a core measured them, and is refused.

`parallel` seeds run at a time, each with a provider and a gateway of its own: at scale 1 they
mostly wait, and so the long form takes hours less. What they cost each other is the machine's,
and again at the gateway's expense. How late requests left is in the report.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, structs

from gateway.errors import SettingsError
from gateway.types import QUANTILE_LEVELS, Rung
from gateway.workbench.bench.bench_processes import Spawned
from gateway.workbench.bench.bench_seed import Part, Plot, Run, Watch
from gateway.workbench.progress import Progress
from gateway.workbench.request_texts import Text, texts
from gateway.workbench.simulate import simulation_report as reports
from gateway.workbench.simulate.cells import Played
from gateway.workbench.simulate.request_rows import MIXES, Row, workload
from gateway.workbench.simulate.simulated_provider import SHAPES, Nature
from gateway.workbench.simulate.simulation_tables import markdown
from gateway.workbench.simulate.worlds import WARM_UP_RHO, Cell, Plan, World, world_of

RHO = 2.0
REAL = "real"


class Options(Struct, kw_only=True):
    out: Path
    data: Path | None = None
    shapes: Sequence[str] = ("knee", "power", "linear")
    seeds: int = 5
    first_seed: int = 0
    requests: int = 200
    seed_count: int = 300
    warm_up: int = 200
    rho: float = RHO
    mix: str = "published"
    time_scale: float = 5.0
    stream_share: float = 0.5
    cold_seeds: int = 2  # of which the cold start is measured, too
    settings: Sequence[str] = ()  # SECTION.KEY=VALUE of the gateway
    parallel: int = 1  # seeds at a time
    command: str = "sagesched bench"


def bench(options: Options) -> int:
    """Run everything, write OUT/report.json and report.md; 0. A goal missed is no error.

    Raises:
        SettingsError: an option or file is unusable, a process did not start, or this machine
            is too slow for the time scale.
    """
    return asyncio.run(_bench(options))


async def _bench(options: Options) -> int:
    unknown = [s for s in options.shapes if s not in SHAPES]
    if unknown:
        raise SettingsError(f"bench: no shape {unknown[0]!r}; there are {', '.join(SHAPES)}")
    if options.mix not in MIXES:
        raise SettingsError(f"bench: no mix {options.mix!r}; there are {', '.join(MIXES)}")
    known = texts(options.data)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    cells = [
        Cell("burst", shape, options.rho, REAL, options.requests, seed)  # type: ignore[arg-type]
        for shape in options.shapes
        for seed in seeds
    ]
    total = sum(_steps(options, cell) for cell in cells)
    watch, started = Watch(Progress("requests", total)), time.monotonic()
    played = await _play_all(options, cells, known, watch)
    rows = [_row(text) for text in known]
    report = {
        "about": _about(options, time.monotonic() - started, watch),
        "workload": reports.workload({REAL: rows}) | {"forecasts": {}},
        "groups": [*_groups(cells, played, "ours"), *_groups(cells, played, "cold")],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(report), indent=1)
    )
    (options.out / "report.md").write_text(markdown(report).replace("# Simulation", "# Bench"))
    seconds = time.monotonic() - started
    print(f"{options.out / 'report.md'}: {len(cells)} runs in {seconds:.0f} s")
    return 0


async def _play_all(
    options: Options, cells: Sequence[Cell], known: Sequence[Text], watch: Watch
) -> list[dict[str, Played]]:
    """What each policy did, in the order of the cells; the first error ends all."""
    played: list[dict[str, Played]] = [{} for _ in cells]
    waiting = list(enumerate(cells))[::-1]

    async def play_on(provider: Spawned) -> None:
        while waiting:
            place, cell = waiting.pop()
            own = plot(options, cell, known)
            cold = cell.seed - options.first_seed < options.cold_seeds
            run = Run(
                own, provider, options.time_scale, options.stream_share, options.settings, watch
            )
            played[place] = await run.play(cold)

    with ExitStack() as stack:
        providers = [
            stack.enter_context(Spawned.provider())
            for _ in range(max(1, min(options.parallel, len(cells))))
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for provider in providers:
                    group.create_task(play_on(provider))
        except* SettingsError as errors:
            raise errors.exceptions[0] from None
    return played


def _groups(
    cells: Sequence[Cell], played: Sequence[dict[str, Played]], policy: str
) -> list[dict[str, Any]]:
    """`policy` beside naive, over the seeds in which it was played."""
    both = [
        (cell, {"naive": found["naive"], policy: found[policy]})
        for cell, found in zip(cells, played, strict=True)
        if policy in found
    ]
    return reports.tree([cell for cell, _ in both], [found for _, found in both])


def _steps(options: Options, cell: Cell) -> int:
    cold = cell.seed - options.first_seed < options.cold_seeds
    return options.requests * (3 if cold else 2) + options.warm_up


def _about(options: Options, seconds: float, watch: Watch) -> dict[str, Any]:
    return {
        "command": options.command,
        "rows_from": options.data.name if options.data else "generated",
        "mix": options.mix,
        "arrivals": "poisson",
        "seeds": options.seeds,
        "warm_up": options.warm_up,
        "time_scale": options.time_scale,
        "seed_count": options.seed_count,
        "stream_share": options.stream_share,
        "settings": list(options.settings),
        "parallel": options.parallel,
        "cpu_share_at_most": watch.busiest,
        "left_late_s_at_most": watch.latest_s,  # of the provider's time
        "seconds": round(seconds, 1),
    }


# -- one seed --------------------------------------------------------------------------------


def plot(options: Options, cell: Cell, known: Sequence[Text]) -> Plot:
    """The seed's world. Raises SettingsError where there are too few rows for it."""
    chance = np.random.default_rng([cell.seed, 77])
    order = [known[i] for i in chance.permutation(len(known)).tolist()]
    seeding, rest = order[: options.seed_count], order[options.seed_count :]
    half = len(rest) * options.warm_up // max(1, options.warm_up + options.requests)
    if len(rest) < options.warm_up + options.requests:
        raise SettingsError(f"bench: {len(known)} rows are too few")
    measured, said = _world(options, cell, rest[half:], {})
    nature = measured.natures["a"]
    fixed = {
        name: float(getattr(nature, name)) for name in Nature.__struct_fields__ if name != "shape"
    }
    warm = Part((), ())
    if options.warm_up:
        other = structs.replace(
            cell, rho=WARM_UP_RHO, requests=options.warm_up, seed=cell.seed + 100_000
        )
        world, warm_said = _world(options, other, rest[:half], fixed)
        renamed = [structs.replace(r, id="w" + r.id) for r in world.requests]
        warm = Part(renamed, warm_said)
    return Plot(cell, nature, seeding, warm, Part(measured.requests, said))


def _world(
    options: Options, cell: Cell, own: Sequence[Text], fixed: dict[str, float]
) -> tuple[World, list[Text]]:
    rows = [_row(text) for text in own]
    by_row = {id(row): text for row, text in zip(rows, own, strict=True)}
    world = world_of(Plan({REAL: rows}, warm_up=0, mix=options.mix, fixed=fixed), cell)
    return world, [by_row[id(request.row)] for request in world.requests]


def _row(text: Text) -> Row:
    """The forecasts are the gateway's business here: none is put in."""
    unknown = workload(
        text.prompt_tokens, (1.0,) * len(QUANTILE_LEVELS), 0.0, Rung.HEURISTIC, 1.0, 0.0
    )
    return Row(text.prompt_tokens, text.output_tokens, unknown)
