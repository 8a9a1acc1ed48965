"""Worlds to simulate: a cell's provider and its requests.

A cell is a scenario, a shape, a load, a kind of forecast and a seed. The seed gives the
provider's parameters, the rows, the gaps between arrivals and each request's noise, from four
independent streams of random numbers: shapes, forecasts and policies with the same seed meet the
same requests at the same (scaled) times.

    burst      requests at `rho` × capacity, then nothing
    steady     the same load for long, the first fifth dropped
    drop       steady; from 40 % to 70 % of the time half the machines are down
    drift      steady; the machines that are up swing between all and half, three times
    limits     burst against a provider that also limits concurrency and requests a minute
    flood      a quiet tenant at 0.2 × capacity beside one that sends `rho` × at once
    isolation  two models on two accounts, one at `rho` × capacity, the other at 0.5 ×

`rho` is relative to the provider's best throughput. Warm-up requests come at 1.2 × capacity; a
steady run warms up by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import cos, pi
from typing import Any, Literal, cast, get_args

import numpy as np
from msgspec import Struct, structs

from gateway.workbench.figures import Floats
from gateway.workbench.simulate import arrival_gaps as arrivals
from gateway.workbench.simulate.request_rows import RequestRow, draw
from gateway.workbench.simulate.simulated_provider import (
    ProviderTraits,
    Shape,
    SimulatedProvider,
    draw_traits,
)
from gateway.workbench.simulate.virtual_loop import CapacityChange, SimulatedRequest

Scenario = Literal["burst", "steady", "drop", "drift", "limits", "flood", "isolation"]
SCENARIOS = cast(tuple[Scenario, ...], get_args(Scenario))

STEADY = frozenset({"steady", "drop", "drift"})
QUIET_RHO = {"flood": 0.2, "isolation": 0.5}
WARM_UP_RHO = 1.2


class Cell(Struct, frozen=True):
    """One thing to simulate."""

    scenario: Scenario
    shape: Shape
    rho: float
    forecast: str  # "real", "tau 0.50"
    requests: int
    seed: int

    @property
    def group(self) -> tuple[str, str, float, str]:
        """Key of the cells that differ by seed alone."""
        return self.scenario, self.shape, self.rho, self.forecast

    @property
    def title(self) -> str:
        """The group's heading in a report."""
        return f"{self.scenario}, {self.shape}, ρ {self.rho:g}, forecasts {self.forecast}"


class Plan(Struct, frozen=True):
    """Everything that the cells share."""

    rows: Mapping[str, Sequence[RequestRow]]  # by forecast
    warm_up: int = 300
    mix: str = "published"
    gaps: Literal["poisson", "burst"] | Floats = "poisson"
    speed: float = 0.0  # divides a trace's times; 0 scales it to the load instead
    policies: Sequence[str] = ()  # empty: all
    fixed: Mapping[str, float] = {}  # parameters of the provider that are not drawn
    overrides: Mapping[str, Mapping[str, Any]] = {}  # the gateway's settings
    first_seed: int = 0
    sampled_seeds: int = 5  # the first ones keep single latencies, for pictures


class World(Struct, frozen=True):
    """Providers and requests of one cell."""

    traits: Mapping[str, ProviderTraits]  # by account
    models: Mapping[str, tuple[str, ...]]  # account → the models it serves
    tenants: tuple[str, ...]
    requests: Sequence[SimulatedRequest]
    warm_up: Sequence[SimulatedRequest] = ()
    changes: Sequence[CapacityChange] = ()

    @property
    def best_window(self) -> int:
        """The best number in flight at the first account."""
        return self.traits["a"].best_window

    def providers(self) -> dict[str, SimulatedProvider]:
        """Fresh providers by account."""
        return {name: SimulatedProvider(own) for name, own in self.traits.items()}


def world_of(plan: Plan, cell: Cell) -> World:
    """The cell's provider and requests, from its seed.

    Raises:
        SettingsError: the rows lack a size that the mix needs, or a parameter is unknown.
    """
    own = draw_traits(cell.shape, _chance(cell, "nature"), plan.fixed)
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


def _limited(own: ProviderTraits, rate: float) -> ProviderTraits:
    """Limits a little below what the provider could do, so that they act before congestion."""
    return structs.replace(
        own,
        max_concurrency=max(2, round(0.75 * own.best_window)),
        rpm=max(60, round(0.9 * rate * 60)),
    )


def _changes(cell: Cell, span_s: float) -> list[CapacityChange]:
    if cell.scenario == "drop":
        return [CapacityChange(0.4 * span_s, "a", 0.5), CapacityChange(0.7 * span_s, "a", 1.0)]
    if cell.scenario == "drift":
        places = np.linspace(0, 1, 61)
        return [
            CapacityChange(p * span_s, "a", 0.75 + 0.25 * cos(6 * pi * p)) for p in places.tolist()
        ]
    return []


def _flood(plan: Plan, cell: Cell, own: ProviderTraits, rate: float) -> list[SimulatedRequest]:
    quiet_rate = QUIET_RHO["flood"] * rate
    count = max(20, round(cell.requests * QUIET_RHO["flood"] / (cell.rho + QUIET_RHO["flood"])))
    quiet = _requests(plan, cell, own, count, quiet_rate, "q", tenant="quiet")
    number = max(1, cell.requests - count)
    loud = _requests(plan, cell, own, number, cell.rho * rate, "l", tenant="loud")
    return sorted(quiet + loud, key=lambda r: r.arrived_s)


def _isolation(plan: Plan, cell: Cell, own: ProviderTraits, rate: float) -> World:
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
    traits, models = {"a": own, "b": own}, {"a": ("m",), "b": ("other",)}
    return World(traits, models, ("quiet", "loud"), requests)


def _requests(
    plan: Plan,
    cell: Cell,
    own: ProviderTraits,
    count: int,
    rate: float,
    prefix: str,
    speed: float = 0.0,
    tenant: str = "one",
) -> list[SimulatedRequest]:
    """`count` requests at `rate` a second (or a trace's own rhythm × `speed`)."""
    rows = plan.rows[cell.forecast]
    places = draw(rows, count, plan.mix, _chance(cell, f"rows {prefix}"))
    noise = _chance(cell, f"noise {prefix}").standard_normal(count).tolist()
    times = _times(plan, count, rate, speed, _chance(cell, f"gaps {prefix}"))
    return [
        SimulatedRequest(
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


def _mean_work_s(plan: Plan, cell: Cell, own: ProviderTraits) -> float:
    """Mean work of a request of the mix, noise included."""
    rows = plan.rows[cell.forecast]
    places = draw(rows, min(2000, len(rows)), plan.mix, np.random.default_rng(11))
    works = [own.work_s(rows[i].prompt_tokens, rows[i].output_tokens, 0.0) for i in places.tolist()]
    return float(np.mean(works) * np.exp(own.noise**2 / 2))


def _chance(cell: Cell, use: str) -> np.random.Generator:
    """Random numbers for one use, the same for every shape and forecast."""
    return np.random.default_rng([cell.seed, *use.encode()])
