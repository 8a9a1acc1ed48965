"""From what was played to one tree of figures, with the goals held against it.

Groups are cells that differ by seed alone. Every figure is given as its mean over the seeds
and, against naive, as a change with its interval (simulate_metrics). A goal is *met* when the
change reaches it, *beats the seed system* when the interval's worse end is still better than
what that system published. Beside a missed goal stands what the same policy reaches when it is
told the true lengths, and for the shorts what they would take alone at the provider, which
nothing can beat. So a miss is the physics' (alone is not enough), the policy's (true lengths
are not enough; or still the physics'), or the forecast's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from gateway.types import MEDIUM_TOKENS, SHORT_TOKENS
from gateway.workbench.figures import auc, kendall_tau
from gateway.workbench.simulate.cells import Played
from gateway.workbench.simulate.request_rows import Row
from gateway.workbench.simulate.run_figures import COUNTS, Change, change
from gateway.workbench.simulate.simulated_provider import Shape
from gateway.workbench.simulate.worlds import Cell

FAMILIES: dict[Shape, str] = {
    "linear": "linear",
    "knee": "knee",
    "power": "peaked",
    "quadratic": "peaked",
    "usl": "peaked",
    "fitted": "knee",
}


class Goal(Struct, frozen=True):
    """A change against naive that should be reached at most, by family of shapes; and what the
    seed system published of its own against its naive."""

    figure: str
    title: str
    seed: float
    knee: float
    peaked: float
    linear: float

    def of(self, shape: Shape) -> float:
        target: float = getattr(self, FAMILIES[shape])
        return target


GOALS = (
    Goal("short_p50_s", "short P50", -0.725, -0.65, -0.85, -0.15),
    Goal("short_p95_s", "short P95", -0.238, -0.50, -0.80, -0.15),
    Goal("heavy_p95_s", "heavy P95", 0.51, 0.05, -0.40, 0.05),
    Goal("p95_s", "global P95", 0.536, 0.0, -0.40, 0.05),
    Goal("makespan_s", "makespan", 0.079, 0.06, -0.30, 0.06),
    Goal("deadline_misses", "deadline misses", -0.27, -0.50, -0.50, 0.0),
)
COMPLETED_BY_SEED = 0.995
WITHIN_BEST = 0.10  # of the best static window, short P95 and mean
FLOORS = {"short_p50_s": "short_alone_p50_s", "short_p95_s": "short_alone_p95_s"}
QUIET_RATIO = 1.3
ADDED_WAIT_S = 0.001
JUDGED = ("ours", "cold")

Group = list[tuple[Cell, dict[str, Played]]]


def tree(cells: Sequence[Cell], played: Sequence[dict[str, Played]]) -> list[dict[str, Any]]:
    """One entry per group, in the order of their first cells."""
    return [_group(members) for members in groups(cells, played)]


def groups(cells: Sequence[Cell], played: Sequence[dict[str, Played]]) -> list[Group]:
    """What differs by seed alone, together; in the order of their first cells."""
    found: dict[tuple[Any, ...], Group] = {}
    for cell, one in zip(cells, played, strict=True):
        found.setdefault(cell.group, []).append((cell, one))
    return list(found.values())


def _group(members: Group) -> dict[str, Any]:
    cell = members[0][0]
    by_policy = {name: _by_figure(members, name) for name in members[0][1]}
    naive = by_policy.get("naive")
    policies: dict[str, Any] = {}
    for name, own in by_policy.items():
        refused = sum((Counter(found[name].refused) for _, found in members), Counter[str]())
        means = {figure: _mean(values) for figure, values in own.items()}
        policies[name] = {"mean": means, "refused": dict(refused)}
        if naive is not None and name != "naive":
            policies[name]["against_naive"] = _against(own, naive)
    return {
        "title": cell.title,
        "scenario": cell.scenario,
        "shape": cell.shape,
        "rho": cell.rho,
        "forecast": cell.forecast,
        "requests": cell.requests,
        "seeds": len(members),
        "policies": policies,
        "goals": _goals(cell, by_policy, policies),
        "checks": _checks(cell, by_policy),
        "by_seed": by_policy,
    }


def _by_figure(members: Group, policy: str) -> dict[str, list[float]]:
    names = list(members[0][1][policy].figures)
    return {name: [found[policy].figures[name] for _, found in members] for name in names}


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else None


def _against(
    own: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]
) -> dict[str, Change | None]:
    return {name: change(name, own[name], other[name]) for name in other if name in own}


def _goals(
    cell: Cell, by_policy: Mapping[str, Any], policies: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The table's goals, of a burst."""
    if cell.scenario != "burst" or "naive" not in by_policy:
        return {}
    return {
        name: [_goal(goal, cell.shape, by_policy, policies, name) for goal in GOALS]
        + [_completed(by_policy[name]["completed"])]
        for name in JUDGED
        if name in by_policy
    }


def _goal(
    goal: Goal,
    shape: Shape,
    by_policy: Mapping[str, Any],
    policies: Mapping[str, Any],
    name: str,
) -> dict[str, Any]:
    found: Change | None = policies[name]["against_naive"][goal.figure]
    told: Change | None = None
    if "true" in policies:
        told = policies["true"]["against_naive"][goal.figure]
    alone: Change | None = None
    naive = by_policy["naive"]
    if goal.figure in FLOORS and FLOORS[goal.figure] in naive:
        alone = change(goal.figure, naive[FLOORS[goal.figure]], naive[goal.figure])
    target = goal.of(shape)
    if found is not None:
        is_met = found.value <= target
    else:  # naive has none of it: so must this one
        is_met = goal.figure in COUNTS and not any(by_policy[name][goal.figure])
    return {
        "goal": goal.title,
        "target": target,
        "seed": goal.seed,
        "found": found,
        "true_lengths": told,
        "alone": alone,
        "met": is_met,
        "beats_seed": is_met if found is None else found.high < goal.seed,
        "limit": "" if is_met else _limit(target, alone, told),
    }


def _limit(target: float, alone: Change | None, told: Change | None) -> str:
    """Why a goal was missed, as far as can be said."""
    if alone is not None and alone.value > target:
        return "physics"
    if told is None:
        return ""
    return "forecast" if told.value <= target else "policy or physics"


def _completed(values: Sequence[float]) -> dict[str, Any]:
    share = float(np.mean(values))
    return {
        "goal": "completed",
        "target": 1.0,
        "seed": COMPLETED_BY_SEED,
        "found": Change(share, min(values), max(values)),
        "true_lengths": None,
        "alone": None,
        "met": share == 1.0,
        "beats_seed": min(values) > COMPLETED_BY_SEED,
        "limit": "",
    }


def _checks(cell: Cell, by_policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    ours, best = by_policy.get("ours"), by_policy.get("static")
    if ours is not None and best is not None:
        for figure in ("short_p95_s", "mean_s"):
            ratio = change(figure, ours[figure], best[figure])
            text = f"{figure} within {WITHIN_BEST:.0%} of the best static window's"
            found.append(_check(text, None if ratio is None else ratio.value, WITHIN_BEST))
    if ours is not None and cell.scenario == "flood":
        ratio = change("quiet_p95_s", ours["quiet_p95_s"], ours["quiet_alone_p95_s"])
        text = f"the quiet tenant's P95 within {QUIET_RATIO} × of alone"
        found.append(_check(text, None if ratio is None else 1 + ratio.value, QUIET_RATIO))
    if ours is not None and cell.scenario == "isolation":
        text = f"no wait added to the other pool ({ADDED_WAIT_S:g} s)"
        found.append(_check(text, max(ours["quiet_added_wait_s"]), ADDED_WAIT_S))
    if ours is not None:
        found.append(_check("refused, share", 1 - float(np.mean(ours["completed"])), 0.0))
    return found


def _check(text: str, value: float | None, most: float) -> dict[str, Any]:
    return {
        "check": text,
        "value": value,
        "at_most": most,
        "met": value is not None and value <= most,
    }


def workload(rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """What the rows are, and how good each kind of forecast of them is."""
    some = next(iter(rows.values()))
    tokens = np.array([row.output_tokens for row in some], float)
    short = tokens <= SHORT_TOKENS
    levels = (10, 50, 90, 99)
    return {
        "rows": len(some),
        "output_tokens": dict(zip(levels, np.percentile(tokens, levels).tolist(), strict=True)),
        "shares": {
            "short": float(short.mean()),
            "medium": float(((tokens > SHORT_TOKENS) & (tokens <= MEDIUM_TOKENS)).mean()),
            "long": float((tokens > MEDIUM_TOKENS).mean()),
        },
        "forecasts": {
            name: {
                "kendall_tau": kendall_tau(np.array([r.forecast.p50 for r in own]), tokens),
                "auc_short": auc(np.array([r.forecast.p_short for r in own]), short),
            }
            for name, own in rows.items()
        },
    }
