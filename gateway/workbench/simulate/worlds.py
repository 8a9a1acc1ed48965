"""What is simulated: from a cell, its provider and its requests.

A cell is a scenario, a shape, a load, a forecast and a seed. From the seed come the provider's
parameters, the rows, the gaps between arrivals and each request's noise, from four streams of
random numbers of their own: shapes, forecasts and policies with the same seed meet the same
requests at (scaled) the same times.

    burst      requests at `rho` × capacity, then nothing; the goal table's
    steady     the same load for long, the first fifth dropped
    drop       steady; from 40 % to 70 % of the time half the machines are gone
    drift      steady; the machines that are up swing between all and half, three times
    limits     burst against a provider that also limits concurrency and requests a minute
    flood      a quiet tenant at 0.2 × capacity, beside it one that sends `rho` × at once
    isolation  two models on two accounts, one at `rho` × capacity, the other at 0.5 ×

`rho` is of the provider's best throughput. Warm-up requests come at 1.2 × capacity; a steady
run warms up by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import cos, pi
from typing import Any, Literal, cast, get_args

import numpy as np
from msgspec import Struct, structs

from gateway.workbench.figures import Floats
from gateway.workbench.simulate import arrival_gaps as arrivals
from gateway.workbench.simulate.request_rows import Row, draw
from gateway.workbench.simulate.simulated_provider import Nature, Provider, Shape, nature
from gateway.workbench.simulate.virtual_loop import Change, Request

Scenario = Literal["burst", "steady", "drop", "drift", "limits", "flood", "isolation"]
SCENARIOS = cast(tuple[Scenario, ...], get_args(Scenario))

STEADY = frozenset({"steady", "drop", "drift"})
QUIET_RHO = {"flood": 0.2, "isolation": 0.5}
WARM_UP_RHO = 1.2


class Cell(Struct, frozen=True):
    scenario: Scenario
    shape: Shape
    rho: float
    forecast: str  # "real", "tau 0.50"
    requests: int
    seed: int

    @property
    def group(self) -> tuple[str, str, float, str]:
        """The same for cells that differ by seed alone."""
        return self.scenario, self.shape, self.rho, self.forecast

    @property
    def title(self) -> str:
        return f"{self.scenario}, {self.shape}, ρ {self.rho:g}, forecasts {self.forecast}"


class Plan(Struct, frozen=True):
    """What all cells share."""

    rows: Mapping[str, Sequence[Row]]  # by forecast
    warm_up: int = 300
    mix: str = "published"
    gaps: Literal["poisson", "burst"] | Floats = "poisson"
    speed: float = 0.0  # of a trace: 0 scales it to the load, else its times are divided by this
    policies: Sequence[str] = ()  # empty: all
    fixed: Mapping[str, float] = {}  # the provider's parameters that are not drawn
    overrides: Mapping[str, Mapping[str, Any]] = {}  # the gateway's settings
    first_seed: int = 0
    sampled_seeds: int = 5  # the first ones, of which single latencies are kept, for pictures


class World(Struct, frozen=True):
    natures: Mapping[str, Nature]  # account → what it is like
    models: Mapping[str, tuple[str, ...]]  # account → what it serves
    tenants: tuple[str, ...]
    requests: Sequence[Request]
    warm_up: Sequence[Request] = ()
    changes: Sequence[Change] = ()

    @property
    def best_window(self) -> int:
        return self.natures["a"].best_window

    def providers(self) -> dict[str, Provider]:
        return {name: Provider(own) for name, own in self.natures.items()}


def world_of(plan: Plan, cell: Cell) -> World:
    """The cell's provider and requests, from its seed.

    Raises:
        SettingsError: the rows do not give the mix.
    """
    own = nature(cell.shape, _chance(cell, "nature"), plan.fixed)
    rate = own.capacity / _mean_work_s(plan, cell, own)  # requests a second at capacity
    if cell.scenario == "isolation":
        return _isolation(plan, cell, own, rate)
    if cell.scenario == "flood":
        requests = _flood(plan, cell, own, rate)
        warm = _requests(plan, cell, own, plan.warm_up, WARM_UP_RHO * rate, "warm", tenant="loud")
        return World({"a": own}, {"a": ("m",)}, ("quiet", "loud"), requests, warm)
    if cell.scenario == "limits":
        own = _limited(own, rate)
    requests = _requests(plan, cell, own, cell.requests, cell.rho * rate, "r", plan.speed)
    number = 0 if cell.scenario in STEADY else plan.warm_up
    warm = _requests(plan, cell, own, number, WARM_UP_RHO * rate, "warm")
    changes = _changes(cell, requests[-1].arrived_s)
    return World({"a": own}, {"a": ("m",)}, ("one",), requests, warm, changes)


def _limited(own: Nature, rate: float) -> Nature:
    """A little less than the provider could do: its limits bite before its congestion."""
    return structs.replace(
        own,
        max_concurrency=max(2, round(0.75 * own.best_window)),
        rpm=max(60, round(0.9 * rate * 60)),
    )


def _changes(cell: Cell, span_s: float) -> list[Change]:
    if cell.scenario == "drop":
        return [Change(0.4 * span_s, "a", 0.5), Change(0.7 * span_s, "a", 1.0)]
    if cell.scenario == "drift":
        places = np.linspace(0, 1, 61)
        return [Change(p * span_s, "a", 0.75 + 0.25 * cos(6 * pi * p)) for p in places.tolist()]
    return []


def _flood(plan: Plan, cell: Cell, own: Nature, rate: float) -> list[Request]:
    quiet_rate = QUIET_RHO["flood"] * rate
    count = max(20, round(cell.requests * QUIET_RHO["flood"] / (cell.rho + QUIET_RHO["flood"])))
    quiet = _requests(plan, cell, own, count, quiet_rate, "q", tenant="quiet")
    number = max(1, cell.requests - count)
    loud = _requests(plan, cell, own, number, cell.rho * rate, "l", tenant="loud")
    return sorted(quiet + loud, key=lambda r: r.arrived_s)


def _isolation(plan: Plan, cell: Cell, own: Nature, rate: float) -> World:
    loud = _requests(plan, cell, own, cell.requests, cell.rho * rate, "l", tenant="loud")
    quiet = _requests(
        plan,
        cell,
        own,
        max(20, cell.requests // 4),
        QUIET_RHO["isolation"] * rate,
        "q",
        tenant="quiet",
    )
    quiet = [structs.replace(r, model="other", accounts=("b",)) for r in quiet]
    requests = sorted(quiet + loud, key=lambda r: r.arrived_s)
    natures, models = {"a": own, "b": own}, {"a": ("m",), "b": ("other",)}
    return World(natures, models, ("quiet", "loud"), requests)


def _requests(
    plan: Plan,
    cell: Cell,
    own: Nature,
    count: int,
    rate: float,
    prefix: str,
    speed: float = 0.0,
    tenant: str = "one",
) -> list[Request]:
    """`count` requests at `rate` a second (or a trace's own rhythm × `speed`)."""
    rows = plan.rows[cell.forecast]
    places = draw(rows, count, plan.mix, _chance(cell, f"rows {prefix}"))
    noise = _chance(cell, f"noise {prefix}").standard_normal(count).tolist()
    times = _times(plan, count, rate, speed, _chance(cell, f"gaps {prefix}"))
    return [
        Request(
            id=f"{prefix}{i}",
            arrived_s=at_s,
            row=(row := rows[place]),
            z=z,
            alone_s=own.alone_s(row.prompt_tokens, row.output_tokens, z),
            tenant=tenant,
        )
        for i, (at_s, place, z) in enumerate(zip(times, places.tolist(), noise, strict=True))
    ]


def _times(
    plan: Plan, count: int, rate: float, speed: float, chance: np.random.Generator
) -> list[float]:
    if isinstance(plan.gaps, str):
        made: Callable[[int, np.random.Generator], Floats] = (
            arrivals.poisson if plan.gaps == "poisson" else arrivals.burst
        )
        gaps = made(count, chance) / rate
    else:
        gaps = arrivals.traced(plan.gaps, count, chance)
        gaps = gaps / speed if speed else gaps / (gaps.mean() * rate)
    times: list[float] = gaps.cumsum().tolist()
    return times


def _mean_work_s(plan: Plan, cell: Cell, own: Nature) -> float:
    """Of a request of the mix, noise included."""
    rows = plan.rows[cell.forecast]
    places = draw(rows, min(2000, len(rows)), plan.mix, np.random.default_rng(11))
    works = [own.work_s(rows[i].prompt_tokens, rows[i].output_tokens, 0.0) for i in places.tolist()]
    return float(np.mean(works) * np.exp(own.noise**2 / 2))


def _chance(cell: Cell, use: str) -> np.random.Generator:
    """A stream of random numbers for one use, the same for every shape and forecast."""
    return np.random.default_rng([cell.seed, *use.encode()])
