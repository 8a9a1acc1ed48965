"""One cell, played by every policy.

`ours` has served the world's warm-up requests before; `cold` has not. `true` is ours with the
true lengths as forecasts: no predictor mends what it misses. `static` is the core with a fixed
window, the best of SEARCHED chosen afterwards: a controller that finds its window is compared
with that. In flood and isolation the quiet side matters, so it is played a second time, alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct, structs

from gateway.settings.schema import Schedule
from gateway.workbench.simulate import policies
from gateway.workbench.simulate.request_rows import truth
from gateway.workbench.simulate.run_figures import figures, tenants_p95
from gateway.workbench.simulate.virtual_loop import (
    Policy,
    RequestResult,
    RunResult,
    SimulatedRequest,
    run,
)
from gateway.workbench.simulate.worlds import QUIET_RHO, STEADY, Cell, Plan, World, world_of

BASELINES = ("naive", "fifo", "sjf", "quota", "fair", "short_first", "dual_budget")
ORDERINGS = ("boost", "gittins", "sjf", "fcfs", "slowdown")
OTHERS = [name for name in ORDERINGS if name != Schedule().ordering]
OURS = ("ours", "cold", *(f"ours:{name}" for name in OTHERS), "true", "static")
POLICIES = (*BASELINES, *OURS)
TWO_SIDED = ("naive", "fifo", "dual_budget", "ours", "cold")  # of flood and isolation

DROPPED = 0.2  # of a steady run
SEARCHED = (0.1, 0.15, 0.22, 0.35, 0.5, 0.7, 0.85, 1.0, 1.15, 1.35, 1.6, 2.0, 2.8, 4.0, 6.0)
"""Static windows to choose from in hindsight, × the provider's best. The small ones are for linear
providers, whose best lies at 19 × the window that serves shorts best."""


class PolicyFigures(Struct, frozen=True):
    """Figures of one policy in one cell; the lists are empty but for the first seeds."""

    figures: dict[str, float]
    refused: dict[str, int] = {}  # by code
    latencies: list[float] = []
    waits: list[float] = []
    tokens: list[int] = []
    trace: list[tuple[float, float, int]] = []  # (time, room, in flight)


def play(plan: Plan, cell: Cell) -> dict[str, PolicyFigures]:
    """Figures of every policy of the plan, by its name."""
    world = world_of(plan, cell)
    names = plan.policies or POLICIES
    if cell.scenario in QUIET_RHO:
        return {n: _two_sided(plan, cell, world, n) for n in names if n in TWO_SIDED}
    if cell.scenario in STEADY:  # a steady run warms up by itself
        names = [n for n in names if n != "cold"]
    return {n: _one(plan, cell, world, n) for n in names}


def _one(plan: Plan, cell: Cell, world: World, name: str) -> PolicyFigures:
    if name == "static":
        return _hindsight(plan, cell, world)
    if name == "true":
        world = structs.replace(
            world, requests=_with_truth(world.requests), warm_up=_with_truth(world.warm_up)
        )
    return _played(cell, _run(plan, world, name), plan)


def _run(plan: Plan, world: World, name: str, window: int | None = None) -> RunResult:
    policy = _policy(plan, world, name, window)
    providers = world.providers()
    start_s = 0.0
    warm = name not in ("cold", "static", *BASELINES)
    if warm and world.warm_up:
        start_s = run(policy, providers, world.warm_up).ended_s + 1.0
    found = run(policy, providers, world.requests, world.changes, start_s)
    if isinstance(policy, policies.GatewayPolicy):
        policy.scheduler.check(found.ended_s)
    return found


def _policy(plan: Plan, world: World, name: str, window: int | None) -> Policy:
    def core(*sections: policies.Overrides, **account: int) -> policies.GatewayPolicy:
        return policies.GatewayPolicy(
            policies.settings_of(
                world.models, world.tenants, plan.overrides, *sections, account=account
            )
        )

    if window is not None:
        sections, account = policies.fixed_window(window)
        return core(sections, **account)
    if name == "dual_budget":
        return core(policies.DUAL_BUDGET)
    if name in BASELINES:
        return policies.baseline(name, world.best_window)
    if ":" in name:
        return core({"schedule": {"ordering": name.split(":")[1]}})
    return core()


def _hindsight(plan: Plan, cell: Cell, world: World) -> PolicyFigures:
    """The static window of SEARCHED with the least short P95 × mean latency."""
    best: PolicyFigures | None = None
    for window in sorted({max(1, round(times * world.best_window)) for times in SEARCHED}):
        played = _played(cell, _run(plan, world, "static", window), plan)
        played.figures["window"] = float(window)
        if best is None or _cost(played) < _cost(best):
            best = played
    assert best is not None
    return best


def _cost(played: PolicyFigures) -> float:
    found = played.figures
    short_s = found["short_p95_s"] if found["short_p95_s"] == found["short_p95_s"] else 1.0
    return found["mean_s"] * short_s / found["completed"] ** 2


def _played(cell: Cell, found: RunResult, plan: Plan) -> PolicyFigures:
    results = found.results
    if cell.scenario in STEADY:
        results = results[int(DROPPED * len(results)) :]
    numbers, refused = figures(results), _refused(results)
    place = cell.seed - plan.first_seed
    if place >= plan.sampled_seeds:
        return PolicyFigures(numbers, refused)
    done = [r for r in results if r.completed]
    return PolicyFigures(
        numbers,
        refused,
        [round(r.latency_s, 4) for r in done],
        [round(r.wait_s, 4) for r in done],
        [r.request.row.output_tokens for r in done],
        [(round(t, 3), room, n) for t, room, n in found.trace] if place == 0 else [],
    )


def _two_sided(plan: Plan, cell: Cell, world: World, name: str) -> PolicyFigures:
    """Figures of both sides, and of the quiet one beside the loud one and alone."""
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
    return PolicyFigures(numbers, _refused(both))


def _refused(results: Sequence[RequestResult]) -> dict[str, int]:
    return dict(Counter(r.refused for r in results if r.refused))


def _added_wait(beside: Sequence[RequestResult], alone: Sequence[RequestResult]) -> float:
    """Largest wait in the queue that any quiet request has more than when alone."""
    return max(b.wait_s - a.wait_s for b, a in zip(beside, alone, strict=True))


def _with_truth(requests: Sequence[SimulatedRequest]) -> list[SimulatedRequest]:
    return [structs.replace(r, row=truth(r.row)) for r in requests]


def given(plan: Plan) -> Plan:
    """The plan itself: a process needs nothing else to play its cells."""
    return plan
