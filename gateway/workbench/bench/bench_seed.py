"""One seed of the bench: its provider, a gateway or none, and the volleys between them."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from gateway.errors import SettingsError
from gateway.workbench.bench.bench_processes import BenchGateway, Spawned
from gateway.workbench.bench.gateway_stats import seen
from gateway.workbench.load_client import Shot, Volley, chat_body, fire
from gateway.workbench.progress import Progress
from gateway.workbench.request_texts import Text
from gateway.workbench.simulate.cells import PolicyFigures
from gateway.workbench.simulate.run_figures import figures
from gateway.workbench.simulate.simulated_provider import ProviderTraits
from gateway.workbench.simulate.virtual_loop import RequestResult, SimulatedRequest
from gateway.workbench.simulate.worlds import Cell

MOST_CPU = 0.7
IDLE_S = 60.0
HEADERS = {"content-type": "application/json", "authorization": "Bearer bench"}


class Part(Struct, frozen=True):
    """Requests to be played, and what each says."""

    requests: Sequence[SimulatedRequest]
    said: Sequence[Text]


class Plot(Struct, frozen=True):
    """One seed's world: its provider and three disjoint sets of texts."""

    cell: Cell
    traits: ProviderTraits
    seeding: Sequence[Text]
    warm: Part
    measured: Part


class Watch:
    """What must not have disturbed the measurement, over all volleys."""

    def __init__(self, bar: Progress) -> None:
        self.step = bar.step
        self.busiest = {"load": 0.0, "provider": 0.0}
        self.latest_s = 0.0

    def add(self, shares: dict[str, float], late_s: float) -> None:
        """Raises SettingsError where somebody was too busy to measure with."""
        self.latest_s = round(max(self.latest_s, late_s), 3)
        for who, share in shares.items():
            self.busiest[who] = round(max(self.busiest[who], share), 3)
            if share > MOST_CPU:
                raise SettingsError(
                    f"bench: the {who} used {share:.0%} of a core, so it measured itself: use a"
                    " smaller --time-scale or --parallel"
                )


class Run:
    """One seed. What blocks runs in threads: other seeds are being timed in this process."""

    def __init__(
        self,
        own: Plot,
        provider: Spawned,
        scale: float,
        stream_share: float,
        settings: Sequence[str],
        watch: Watch,
    ) -> None:
        self._own, self._provider, self._watch = own, provider, watch
        self._scale, self._stream_share, self._settings = scale, stream_share, settings

    async def play(self, cold: bool) -> dict[str, PolicyFigures]:
        """Every policy's figures; the cold start's where it is wanted."""
        own = self._own
        played = {"naive": await self.volley(own.measured, self._provider.url)}
        with tempfile.TemporaryDirectory(prefix="sagesched-bench-") as folder:
            played["ours"] = await self._through(Path(folder) / "warm", own.warm)
            if cold:
                played["cold"] = await self._through(Path(folder) / "cold", None)
        return played

    async def _through(self, folder: Path, warm: Part | None) -> PolicyFigures:
        own = self._own
        models = {t.model for t in (*own.measured.said, *own.warm.said, *own.seeding)}
        async with BenchGateway(
            folder, self._provider.url, sorted(models), self._scale, self._settings
        ) as gateway:
            await gateway.learn(own.seeding)
            if warm is not None and warm.requests:
                await self.volley(warm, gateway.url)
            since = await gateway.told()
            played = await self.volley(own.measured, gateway.url)
            played.figures.update(seen(*await gateway.tell(since)))
        played.figures["best_window"] = float(own.traits.best_window)
        return played

    async def volley(self, part: Part, url: str) -> PolicyFigures:
        """All requests of the part sent to `url` when they are due, and what came of them."""
        before_cpu_s = await self._prepare(part)
        chance = np.random.default_rng([self._own.cell.seed, 78])
        streams = (chance.random(len(part.requests)) < self._stream_share).tolist()
        shots = [
            Shot(
                at_s=request.arrived_s / self._scale,
                body=chat_body(text.model, text.messages, stream=stream, bench=request.id,
                               max_tokens=text.max_tokens),
                id=request.id,
            )
            for request, text, stream in zip(part.requests, part.said, streams, strict=True)
        ]  # fmt: skip
        volley = await fire(url + "/v1/chat/completions", shots, HEADERS, self._watch.step)
        state = await asyncio.to_thread(self._provider.state)
        used = (state["cpu_s"] - before_cpu_s) / volley.wall_s
        late_s = max(hit.late_s for hit in volley.hits) * self._scale
        self._watch.add({"load": volley.cpu_share, "provider": used}, late_s)
        found = figures(self._results(part, volley))
        found["short_by_forecast_p95_s"] = float("nan")  # naive knows no forecast
        return PolicyFigures(found)

    async def _prepare(self, part: Part) -> float:
        """Tell the provider; its CPU seconds so far. Waits for the last run's streams."""
        deadline_s = time.monotonic() + IDLE_S
        while (await asyncio.to_thread(self._provider.state))["inflight"]:
            if time.monotonic() > deadline_s:
                raise SettingsError("bench: the last run's streams do not end")
            await asyncio.sleep(0.05)
        table = {
            r.id: (r.row.prompt_tokens, r.row.output_tokens, r.z) for r in part.requests
        }  # fmt: skip
        planned = {"nature": self._own.traits, "requests": table, "scale": self._scale}
        state = await asyncio.to_thread(self._provider.plan, msgspec.json.encode(planned))
        return state["cpu_s"]

    def _results(self, part: Part, volley: Volley) -> list[RequestResult]:
        return [
            RequestResult(
                request=request,
                started_s=hit.left_s * self._scale,
                ended_s=hit.ended_s * self._scale,
                completed=hit.whole,
                rejections=int(hit.status == 429),
            )
            for request, hit in zip(part.requests, volley.hits, strict=True)
        ]
