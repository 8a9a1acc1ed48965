"""What is simulated: one world per cell, played once by every policy.

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

`rho` is of the provider's best throughput. Where `ours` is warm it has served `warm_up`
requests at 1.2 × before, to their end; `cold` has not. (A steady run warms up by itself.)
In flood and isolation what matters is
the quiet side, so it is also played alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import cos, pi
from typing import Any, Literal, cast, get_args

import numpy as np
from msgspec import Struct, structs

from gateway.errors import SettingsError
from gateway.replay import simulate_arrivals as arrivals
from gateway.replay import simulate_policies as policies
from gateway.replay.evaluate_figures import Floats
from gateway.replay.simulate_loop import Change, Policy, Request, Result, Run, run
from gateway.replay.simulate_metrics import figures, tenants_p95
from gateway.replay.simulate_provider import Nature, Provider, Shape, nature
from gateway.replay.simulate_rows import Row, draw, truth
from gateway.settings.schema import Schedule

Scenario = Literal["burst", "steady", "drop", "drift", "limits", "flood", "isolation"]
SCENARIOS = cast(tuple[Scenario, ...], get_args(Scenario))

BASELINES = ("naive", "fifo", "sjf", "quota", "fair", "short_first", "dual_budget")
ORDERINGS = ("boost", "gittins", "sjf", "fcfs", "slowdown")
OTHERS = [name for name in ORDERINGS if name != Schedule().ordering]
OURS = ("ours", "cold", *(f"ours:{name}" for name in OTHERS), "true", "static")
POLICIES = (*BASELINES, *OURS)
TWO_SIDED = ("naive", "fifo", "dual_budget", "ours", "cold")  # of flood and isolation

WARM_UP_RHO = 1.2
QUIET_RHO = {"flood": 0.2, "isolation": 0.5}
DROPPED = 0.2  # of a steady run
STEADY = frozenset({"steady", "drop", "drift"})
SEARCHED = (0.35, 0.5, 0.7, 0.85, 1.0, 1.15, 1.35, 1.6, 2.0, 2.8, 4.0, 6.0)
"""Static windows that hindsight chooses from, × the provider's best."""


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
    policies: Sequence[str] = POLICIES
    fixed: Mapping[str, float] = {}  # the provider's parameters that are not drawn
    overrides: Mapping[str, Mapping[str, Any]] = {}  # the gateway's settings
    sampled_seeds: int = 5  # of which single latencies are kept, for pictures


class Played(Struct, frozen=True):
    """One policy in one cell."""

    figures: dict[str, float]
    latencies: list[float] = []
    waits: list[float] = []
    tokens: list[int] = []
    trace: list[tuple[float, float, int]] = []  # (time, room, in flight)


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


def play(plan: Plan, cell: Cell) -> dict[str, Played]:
    """Every policy of the plan through the cell."""
    world = world_of(plan, cell)
    if cell.scenario in QUIET_RHO:
        names = [name for name in plan.policies if name in TWO_SIDED]
        return {name: _two_sided(plan, cell, world, name) for name in names}
    names = [name for name in plan.policies if name != "cold" or cell.scenario not in STEADY]
    return {name: _one(plan, cell, world, name) for name in names}


def _one(plan: Plan, cell: Cell, world: World, name: str) -> Played:
    if name == "static":
        return _hindsight(plan, cell, world)
    if name == "true":
        world = structs.replace(
            world, requests=_knowing(world.requests), warm_up=_knowing(world.warm_up)
        )
    return _played(cell, _run(plan, world, name), plan)


def _run(plan: Plan, world: World, name: str, window: int | None = None) -> Run:
    policy = _policy(plan, world, name, window)
    providers = world.providers()
    start_s = 0.0
    warm = name not in ("cold", "static", *BASELINES)
    if warm and world.warm_up:
        start_s = run(policy, providers, world.warm_up).ended_s + 1.0
    found = run(policy, providers, world.requests, world.changes, start_s)
    if isinstance(policy, policies.Core):
        policy.scheduler.check(found.ended_s)
    return found


def _policy(plan: Plan, world: World, name: str, window: int | None) -> Policy:
    def core(*sections: policies.Overrides, **account: int) -> policies.Core:
        return policies.Core(
            policies.settings_of(
                world.models, world.tenants, *sections, plan.overrides, account=account
            )
        )

    if window is not None:
        sections, account = policies.fixed_window(window)
        return core(sections, **account)
    if name == "dual_budget":
        return core(policies.DUAL_BUDGET)
    if name in BASELINES:
        return policies.plain(name, world.best_window)
    if ":" in name:
        return core({"schedule": {"ordering": name.split(":")[1]}})
    return core()


def _hindsight(plan: Plan, cell: Cell, world: World) -> Played:
    """The static window with the least short P95 × mean, of all that were tried."""
    best: Played | None = None
    for window in sorted({max(1, round(times * world.best_window)) for times in SEARCHED}):
        played = _played(cell, _run(plan, world, "static", window), plan)
        played.figures["window"] = float(window)
        if best is None or _pain(played) < _pain(best):
            best = played
    assert best is not None
    return best


def _pain(played: Played) -> float:
    found = played.figures
    short_s = found["short_p95_s"] if found["short_p95_s"] == found["short_p95_s"] else 1.0
    return found["mean_s"] * short_s / found["completed"] ** 2


def _played(cell: Cell, found: Run, plan: Plan) -> Played:
    results = found.results
    if cell.scenario in STEADY:
        results = results[int(DROPPED * len(results)) :]
    numbers = figures(results)
    if cell.seed >= plan.sampled_seeds:
        return Played(numbers)
    done = [r for r in results if r.completed]
    return Played(
        numbers,
        [round(r.latency_s, 4) for r in done],
        [round(r.wait_s, 4) for r in done],
        [r.request.row.output_tokens for r in done],
        [(round(t, 3), room, n) for t, room, n in found.trace] if cell.seed == 0 else [],
    )


def _two_sided(plan: Plan, cell: Cell, world: World, name: str) -> Played:
    """The quiet side with the loud one and alone."""
    quiet = [r for r in world.requests if r.tenant == "quiet"]
    both = _run(plan, world, name).results
    alone = _run(plan, structs.replace(world, requests=quiet), name).results
    beside = [r for r in both if r.request.tenant == "quiet"]
    numbers = figures(both) | {
        "quiet_p95_s": tenants_p95(beside)["quiet"],
        "quiet_alone_p95_s": tenants_p95(alone)["quiet"],
        "loud_p95_s": tenants_p95(both)["loud"],
        "quiet_completed": sum(r.completed for r in beside) / len(beside),
        "quiet_added_wait_s": _added_wait(beside, alone),
    }
    return Played(numbers)


def _added_wait(beside: Sequence[Result], alone: Sequence[Result]) -> float:
    """The most any quiet request waited longer in the queue than when alone."""
    return max(b.wait_s - a.wait_s for b, a in zip(beside, alone, strict=True))


# --- worlds -----------------------------------------------------------------------------


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
    try:
        places = draw(rows, count, plan.mix, _chance(cell, f"rows {prefix}"))
    except ValueError as error:
        raise SettingsError(f"simulate: mix {plan.mix!r}: {error}") from None
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


def _knowing(requests: Sequence[Request]) -> list[Request]:
    return [structs.replace(r, row=truth(r.row)) for r in requests]


def _chance(cell: Cell, use: str) -> np.random.Generator:
    """A stream of random numbers for one use, the same for every shape and forecast."""
    return np.random.default_rng([cell.seed, *use.encode()])


# --- in a process of its own ------------------------------------------------------------

_plan: Plan | None = None


def begin(plan: Plan) -> None:
    """Prepare this process for `work`."""
    global _plan
    _plan = plan


def work(cell: Cell) -> dict[str, Played]:
    """One cell, in a process that was prepared."""
    assert _plan is not None
    return play(_plan, cell)
