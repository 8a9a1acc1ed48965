"""Hold a report of `sagesched simulate` or `bench` against the project's acceptance goals.

    python -m tests.bench.goals DIR [DIR …]       # folders with a report.json

A goal is a change against naive that a burst should reach, by family of shapes. It is *met* when
the mean change reaches it, and *beats the seed system* when the interval's worse end is still
better than what that system published of its own. Beside a goal stand two bounds: what the same
policy reaches with the true lengths as forecasts, and for shorts what they take alone at the
provider. A miss is therefore physics (alone is not enough), the policy or physics (true lengths
are not enough), or the forecast. Checks are of every scenario: refusals, the best static window,
the quiet side of a flood and of an isolated pool.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from gateway.workbench.figures import RelativeChange, change
from gateway.workbench.simulate.run_figures import COUNTS
from gateway.workbench.tables import number, percent, table

FAMILIES = {
    "linear": "linear",
    "knee": "knee",
    "power": "peaked",
    "quadratic": "peaked",
    "usl": "peaked",
    "fitted": "knee",
}


class Goal(Struct, frozen=True):
    """A figure's wanted change against naive by family of shapes; `seed` is the seed system's."""

    figure: str
    title: str
    seed: float
    knee: float
    peaked: float
    linear: float

    def target(self, shape: str) -> float:
        """The largest change that meets the goal on this shape."""
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

Seeds = Mapping[str, Mapping[str, Sequence[float]]]  # policy → figure → a value per seed


class GoalResult(Struct, frozen=True):
    """One goal beside what was found; None where a change cannot be computed."""

    goal: str
    target: float
    seed: float
    found: RelativeChange | None
    is_met: bool
    beats_seed: bool
    true_lengths: RelativeChange | None = None
    alone: RelativeChange | None = None
    limit: str = ""  # physics, policy or physics, forecast; "" where it is met or unknown

    @property
    def is_share(self) -> bool:
        """True for completion, whose values are shares and no changes."""
        return self.goal == "completed"


class Check(Struct, frozen=True):
    """A value of ours beside its upper bound; None where it cannot be computed."""

    text: str
    value: float | None
    at_most: float

    @property
    def is_met(self) -> bool:
        return self.value is not None and self.value <= self.at_most


def seeds_of(group: Mapping[str, Any]) -> Seeds:
    """Figures of every seed of a group of report.json; what JSON has as null is NaN."""
    return {
        policy: {
            figure: [float("nan") if value is None else value for value in values]
            for figure, values in own.items()
        }
        for policy, own in group["by_seed"].items()
    }


def goals(group: Mapping[str, Any]) -> dict[str, list[GoalResult]]:
    """Goals of a burst by judged policy; none of other scenarios or without naive."""
    seeds = seeds_of(group)
    if group["scenario"] != "burst" or "naive" not in seeds:
        return {}
    return {
        name: [_goal(goal, group["shape"], seeds, name) for goal in GOALS]
        + [_completed(seeds[name]["completed"])]
        for name in JUDGED
        if name in seeds
    }


def _change(seeds: Seeds, policy: str, figure: str) -> RelativeChange | None:
    own, naive = seeds[policy][figure], seeds["naive"][figure]
    return change(own, naive, by_sums=figure in COUNTS)


def _goal(goal: Goal, shape: str, seeds: Seeds, policy: str) -> GoalResult:
    found = _change(seeds, policy, goal.figure)
    true_lengths = _change(seeds, "true", goal.figure) if "true" in seeds else None
    alone: RelativeChange | None = None
    naive, floor = seeds["naive"], FLOORS.get(goal.figure)
    if floor in naive:
        alone = change(naive[floor], naive[goal.figure])
    target = goal.target(shape)
    if found is not None:
        is_met, beats_seed = found.value <= target, found.high < goal.seed
    else:  # naive has none of it: so must this one
        is_met = goal.figure in COUNTS and not any(seeds[policy][goal.figure])
        beats_seed = is_met
    return GoalResult(
        goal=goal.title,
        target=target,
        seed=goal.seed,
        found=found,
        is_met=is_met,
        beats_seed=beats_seed,
        true_lengths=true_lengths,
        alone=alone,
        limit="" if is_met else _limit(target, alone, true_lengths),
    )


def _limit(target: float, alone: RelativeChange | None, true: RelativeChange | None) -> str:
    """The reason for a missed goal, as far as the two bounds show it."""
    if alone is not None and alone.value > target:
        return "physics"
    if true is None:
        return ""
    return "forecast" if true.value <= target else "policy or physics"


def _completed(values: Sequence[float]) -> GoalResult:
    share = float(np.mean(values))
    return GoalResult(
        goal="completed",
        target=1.0,
        seed=COMPLETED_BY_SEED,
        found=RelativeChange(share, min(values), max(values)),
        is_met=share == 1.0,
        beats_seed=min(values) > COMPLETED_BY_SEED,
    )


def checks(group: Mapping[str, Any]) -> list[Check]:
    """Checks of the gateway's own policy, where a group has it."""
    seeds = seeds_of(group)
    if "ours" not in seeds:
        return []
    ours, best = seeds["ours"], seeds.get("static")
    found = []
    if best is not None:
        for figure in ("short_p95_s", "mean_s"):
            ratio = change(ours[figure], best[figure])
            text = f"{figure} within {WITHIN_BEST:.0%} of the best static window's"
            found.append(Check(text, None if ratio is None else ratio.value, WITHIN_BEST))
    if group["scenario"] == "flood":
        ratio = change(ours["quiet_p95_s"], ours["quiet_alone_p95_s"])
        text = f"the quiet tenant's P95 within {QUIET_RATIO} × of alone"
        found.append(Check(text, None if ratio is None else 1 + ratio.value, QUIET_RATIO))
    if group["scenario"] == "isolation":
        text = f"no wait added to the other pool ({ADDED_WAIT_S:g} s)"
        found.append(Check(text, max(ours["quiet_added_wait_s"]), ADDED_WAIT_S))
    return [*found, Check("refused, share", 1 - float(np.mean(ours["completed"])), 0.0)]


# --- Markdown -----------------------------------------------------------------------------


def markdown(groups: Sequence[Mapping[str, Any]]) -> str:
    """The missed goals first, then the tables of every group."""
    missed = [line for group in groups for line in _missed(group)]
    parts = ["## Not met", "\n".join(missed) or "Nothing: all goals are."]
    for group in groups:
        parts += [f"## {group['title']}", *_tables(group)]
    return "\n\n".join(parts) + "\n"


def _missed(group: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {group['title']}, {name}: {one.goal} {_found(one)}, wanted {_target(one)}"
        + (f"; limit: {one.limit}" if one.limit else "")
        for name, results in goals(group).items()
        for one in results
        if not one.is_met
    ]
    return lines + [
        f"- {group['title']}: {one.text}: {number(one.value)}, wanted ≤ {one.at_most:g}"
        for one in checks(group)
        if not one.is_met
    ]


def _tables(group: Mapping[str, Any]) -> list[str]:
    found = []
    for name, results in goals(group).items():
        head = (f"goal ({name})", "against naive", "wanted", "seed's", "met", "beats seed")
        rows = [
            (
                one.goal,
                _found(one),
                _target(one),
                f"{one.seed:.1%}" if one.is_share else f"{one.seed:+.1%}",
                _yes(one.is_met),
                _yes(one.beats_seed),
                percent(one.true_lengths),
                percent(one.alone),
                one.limit,
            )
            for one in results
        ]
        found.append(table((*head, "with true lengths", "alone", "limit"), rows))
    checked = [
        (one.text, number(one.value), f"≤ {one.at_most:g}", _yes(one.is_met))
        for one in checks(group)
    ]
    return found + ([table(("check (ours)", "found", "wanted", "met"), checked)] if checked else [])


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def _found(result: GoalResult) -> str:
    if result.is_share and result.found is not None:
        return f"{result.found.value:.2%}"
    return percent(result.found)


def _target(result: GoalResult) -> str:
    return "100 %" if result.is_share else f"≤ {result.target:+.0%}"


def main(arguments: Sequence[str]) -> int:
    """Print the goals of each report; 0: a missed goal is a finding, no error."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.goals")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folder with a report.json")
    for folder in parser.parse_args(arguments).folders:
        groups = msgspec.json.decode((Path(folder) / "report.json").read_bytes())["groups"]
        found = [
            one.is_met
            for group in groups
            for one in (*checks(group), *goals(group).get("ours", ()))
        ]
        print(f"# {folder}: {sum(found)} of {len(found)} goals and checks met by ours\n")
        print(markdown(groups))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
