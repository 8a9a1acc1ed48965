"""One seed of the bench: its provider, a gateway or none, and the requests between them."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from gateway.errors import SettingsError
from gateway.types import SHORT_TOKENS
from gateway.workbench.bench.bench_processes import BenchGateway, ProviderProcess
from gateway.workbench.figures import NAN, Floats, auc, kendall_tau, percentile
from gateway.workbench.load_client import LoadRun, PlannedRequest, chat_body, send_all
from gateway.workbench.progress import Progress
from gateway.workbench.request_texts import RequestText
from gateway.workbench.simulate.cells import PolicyFigures
from gateway.workbench.simulate.run_figures import figures
from gateway.workbench.simulate.simulated_provider import ProviderTraits
from gateway.workbench.simulate.virtual_loop import RequestResult, SimulatedRequest
from gateway.workbench.simulate.worlds import Cell

MOST_CPU = 0.7
IDLE_S = 60.0
HEADERS = {"content-type": "application/json", "authorization": "Bearer bench"}


class Traffic(Struct, frozen=True):
    """Requests to be sent, and the text of each."""

    requests: Sequence[SimulatedRequest]
    texts: Sequence[RequestText]


class SeedWorld(Struct, frozen=True):
    """One seed's provider, and three disjoint sets of texts: to teach, to warm up, to measure."""

    cell: Cell
    traits: ProviderTraits
    seeding: Sequence[RequestText]
    warm_up: Traffic
    measured: Traffic


class LoadWatch:
    """Largest CPU share and lateness over all runs; a measurement that is too busy is an error."""

    def __init__(self, bar: Progress) -> None:
        self.step = bar.step
        self.busiest = {"load": 0.0, "provider": 0.0}
        self.latest_s = 0.0

    def add(self, shares: Mapping[str, float], late_s: float) -> None:
        """Take a run into account. Raises SettingsError where a process was too busy."""
        self.latest_s = round(max(self.latest_s, late_s), 3)
        for name, share in shares.items():
            self.busiest[name] = round(max(self.busiest[name], share), 3)
            if share > MOST_CPU:
                raise SettingsError(
                    f"bench: the {name} used {share:.0%} of a core, so it measured itself: use a"
                    " smaller --time-scale or --parallel"
                )


class SeedRun:
    """One seed's runs. Blocking calls go to threads: other seeds are timed in this process."""

    def __init__(
        self,
        world: SeedWorld,
        provider: ProviderProcess,
        scale: float,
        stream_share: float,
        settings: Sequence[str],
        watch: LoadWatch,
    ) -> None:
        self._world, self._provider, self._watch = world, provider, watch
        self._scale, self._stream_share, self._settings = scale, stream_share, settings

    async def play(self, cold: bool) -> dict[str, PolicyFigures]:
        """Figures by policy; those of the cold start where wanted."""
        world = self._world
        played = {"naive": await self.send(world.measured, self._provider.url)}
        with tempfile.TemporaryDirectory(prefix="sagesched-bench-") as folder:
            played["ours"] = await self._through(Path(folder) / "warm", world.warm_up)
            if cold:
                played["cold"] = await self._through(Path(folder) / "cold", None)
        return played

    async def _through(self, folder: Path, warm_up: Traffic | None) -> PolicyFigures:
        world = self._world
        models = {t.model for t in (*world.measured.texts, *world.warm_up.texts, *world.seeding)}
        async with BenchGateway(
            folder, self._provider.url, sorted(models), self._scale, self._settings
        ) as gateway:
            await gateway.learn(world.seeding)
            if warm_up is not None and warm_up.requests:
                await self.send(warm_up, gateway.url)
            since = await gateway.journal_end()
            played = await self.send(world.measured, gateway.url)
            played.figures.update(gateway_figures(*await gateway.journal(since)))
        played.figures["best_window"] = float(world.traits.best_window)
        return played

    async def send(self, traffic: Traffic, url: str) -> PolicyFigures:
        """Send every request to `url` when it is due; the figures of what came back."""
        before_cpu_s = await self._prepare(traffic)
        chance = np.random.default_rng([self._world.cell.seed, 78])
        streams = (chance.random(len(traffic.requests)) < self._stream_share).tolist()
        planned = [
            PlannedRequest(
                at_s=request.arrived_s / self._scale,
                body=chat_body(text.model, text.messages, stream=stream, bench=request.id,
                               max_tokens=text.max_tokens),
            )
            for request, text, stream in zip(traffic.requests, traffic.texts, streams, strict=True)
        ]  # fmt: skip
        load = await send_all(url + "/v1/chat/completions", planned, HEADERS, self._watch.step)
        state = await asyncio.to_thread(self._provider.state)
        used = (state["cpu_s"] - before_cpu_s) / load.wall_s
        late_s = max(timing.late_s for timing in load.timings) * self._scale
        self._watch.add({"load": load.cpu_share, "provider": used}, late_s)
        found = figures(self._results(traffic, load))
        found["short_by_forecast_p95_s"] = NAN  # naive has no forecast
        return PolicyFigures(found)

    async def _prepare(self, traffic: Traffic) -> float:
        """Give the provider its table once the last run's streams have ended; its CPU seconds."""
        deadline_s = time.monotonic() + IDLE_S
        while (await asyncio.to_thread(self._provider.state))["inflight"]:
            if time.monotonic() > deadline_s:
                raise SettingsError("bench: the last run's streams do not end")
            await asyncio.sleep(0.05)
        table = {
            r.id: (r.row.prompt_tokens, r.row.output_tokens, r.z) for r in traffic.requests
        }  # fmt: skip
        plan = {"traits": self._world.traits, "requests": table, "scale": self._scale}
        state = await asyncio.to_thread(self._provider.plan, msgspec.json.encode(plan))
        return state["cpu_s"]

    def _results(self, traffic: Traffic, load: LoadRun) -> list[RequestResult]:
        return [
            RequestResult(
                request=request,
                started_s=timing.left_s * self._scale,
                ended_s=timing.ended_s * self._scale,
                completed=timing.is_complete,
                rejections=int(timing.status == 429),
            )
            for request, timing in zip(traffic.requests, load.timings, strict=True)
        ]


def gateway_figures(
    events: Sequence[Mapping[str, Any]], account: Mapping[str, Any]
) -> dict[str, float]:
    """Quality of the gateway's own forecasts and window; NaN where it cannot be computed.

    They tell whether a missed goal is due to the forecast, the window or the order.

    Args:
        events: of GET /events, oldest first; requests that end among them are counted.
        account: of GET /_stats, the one they ran on. Seconds are the wall's.
    """
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    p_short: dict[str, float] = {}
    truth: dict[str, float] = {}
    waits: dict[str, float] = {}
    for event in events:
        job, detail = event.get("job"), event.get("detail", {})
        if job is None:
            continue
        match event["event"]:
            case "submitted":
                first[job] = last[job] = detail["p50"]
                p_short[job] = detail["p_short"]
            case "reforecast":
                last[job], p_short[job] = detail["p50"], detail["p_short"]
            case "finished" if detail.get("output_tokens"):
                truth[job] = detail["output_tokens"]
                waits[job] = detail["queue_s"]
    jobs = [job for job in truth if job in first]
    tokens = _column(truth, jobs)
    short = tokens <= SHORT_TOKENS
    windows = account.get("windows") or [{}]
    return {
        "forecast_tau": _or_nan(kendall_tau(_column(last, jobs), tokens)),
        "first_forecast_tau": _or_nan(kendall_tau(_column(first, jobs), tokens)),
        "short_auc": _or_nan(auc(_column(p_short, jobs), short)),
        "short_queue_p50_s": percentile(_column(waits, jobs)[short], 50),
        "window_end": float(windows[0].get("window", NAN)),
    }


def _column(values: Mapping[str, float], jobs: Sequence[str]) -> Floats:
    return np.array([values[job] for job in jobs], float)


def _or_nan(value: float | None) -> float:
    return NAN if value is None else value
