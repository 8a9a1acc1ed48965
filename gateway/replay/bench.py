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
process or the provider used more than `MOST_CPU` of a core measured them, and is refused.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, structs

from gateway.errors import SettingsError
from gateway.replay import simulate_report as reports
from gateway.replay.bench_gateway import BenchGateway, Spawned
from gateway.replay.bench_load import Shot, Volley, chat_body, fire
from gateway.replay.bench_texts import Text, texts
from gateway.replay.evaluate_work import Progress
from gateway.replay.simulate_cells import Played
from gateway.replay.simulate_loop import Request, Result
from gateway.replay.simulate_markdown import markdown
from gateway.replay.simulate_metrics import figures
from gateway.replay.simulate_provider import SHAPES, Nature
from gateway.replay.simulate_rows import MIXES, Row, workload
from gateway.replay.simulate_worlds import WARM_UP_RHO, Cell, Plan, World, world_of
from gateway.types import QUANTILE_LEVELS, Rung

MOST_CPU = 0.7
RHO = 2.0
REAL = "real"
IDLE_S = 60.0


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
    command: str = "sagesched bench"


class Part(Struct, frozen=True):
    """Requests to be played, and what each says."""

    requests: Sequence[Request]
    said: Sequence[Text]


class Plot(Struct, frozen=True):
    """One seed's world: its provider and three disjoint sets of texts."""

    cell: Cell
    nature: Nature
    seeding: Sequence[Text]
    warm: Part
    measured: Part


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
    bar, started = Progress("requests", total), time.monotonic()
    played, busiest = [], {"load": 0.0, "provider": 0.0}
    with Spawned.provider() as provider:
        for cell in cells:
            run = _Run(options, plot(options, cell, known), provider, bar, busiest)
            played.append(await run.play())
    rows = [_row(text) for text in known]
    report = {
        "about": _about(options, time.monotonic() - started, busiest),
        "workload": reports.workload({REAL: rows}),
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


def _about(options: Options, seconds: float, busiest: dict[str, float]) -> dict[str, Any]:
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
        "cpu_share_at_most": busiest,
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


class _Run:
    def __init__(
        self,
        options: Options,
        own: Plot,
        provider: Spawned,
        bar: Progress,
        busiest: dict[str, float],
    ) -> None:
        self._options, self._own, self._provider = options, own, provider
        self._bar, self._busiest = bar, busiest

    async def play(self) -> dict[str, Played]:
        played = {"naive": await self._volley(self._own.measured, self._provider.url)}
        with tempfile.TemporaryDirectory(prefix="sagesched-bench-") as folder:
            with self._gateway(Path(folder) / "warm") as gateway:
                await gateway.learn(self._own.seeding)
                if self._own.warm.requests:
                    await self._volley(self._own.warm, gateway.url)
                played["ours"] = await self._volley(self._own.measured, gateway.url)
            if self._own.cell.seed - self._options.first_seed < self._options.cold_seeds:
                with self._gateway(Path(folder) / "cold") as gateway:
                    await gateway.learn(self._own.seeding)
                    played["cold"] = await self._volley(self._own.measured, gateway.url)
        return played

    def _gateway(self, folder: Path) -> BenchGateway:
        models = {t.model for t in (*self._own.measured.said, *self._own.warm.said)}
        models |= {t.model for t in self._own.seeding}
        return BenchGateway(
            folder, self._provider.url, sorted(models), self._options.time_scale,
            self._options.settings,
        )  # fmt: skip

    async def _volley(self, part: Part, url: str) -> Played:
        scale = self._options.time_scale
        before = self._prepare(part)
        chance = np.random.default_rng([self._own.cell.seed, 78])
        streams = (chance.random(len(part.requests)) < self._options.stream_share).tolist()
        shots = [
            Shot(
                at_s=request.arrived_s / scale,
                body=chat_body(text.model, text.messages, stream=stream, bench=request.id,
                               max_tokens=text.max_tokens),
                id=request.id,
            )
            for request, text, stream in zip(part.requests, part.said, streams, strict=True)
        ]  # fmt: skip
        headers = {"content-type": "application/json", "authorization": "Bearer bench"}
        volley = await fire(url + "/v1/chat/completions", shots, headers, self._bar.step)
        self._guard(volley, before)
        return Played(figures(_results(part, volley, scale)))

    def _prepare(self, part: Part) -> float:
        """Tell the provider; its CPU seconds so far. Waits for the last run's streams."""
        deadline_s = time.monotonic() + IDLE_S
        while self._provider.state()["inflight"]:
            if time.monotonic() > deadline_s:
                raise SettingsError("bench: the last run's streams do not end")
            time.sleep(0.05)
        table = {
            r.id: (r.row.prompt_tokens, r.row.output_tokens, r.z) for r in part.requests
        }  # fmt: skip
        planned = {"nature": self._own.nature, "requests": table, "scale": self._options.time_scale}
        return self._provider.plan(msgspec.json.encode(planned))["cpu_s"]

    def _guard(self, volley: Volley, before_cpu_s: float) -> None:
        used_s = self._provider.state()["cpu_s"] - before_cpu_s
        shares = {"load": volley.cpu_share, "provider": used_s / volley.wall_s}
        for who, share in shares.items():
            self._busiest[who] = round(max(self._busiest[who], share), 3)
            if share > MOST_CPU:
                raise SettingsError(
                    f"bench: the {who} used {share:.0%} of a core, so it measured itself: use a"
                    " smaller --time-scale"
                )


def _results(part: Part, volley: Volley, scale: float) -> list[Result]:
    return [
        Result(
            request=request,
            started_s=hit.left_s * scale,
            ended_s=hit.ended_s * scale,
            completed=hit.whole,
            rejections=int(hit.status == 429),
        )
        for request, hit in zip(part.requests, volley.hits, strict=True)
    ]
