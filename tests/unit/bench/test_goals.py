"""Goals and checks, from reports of figures given by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.workbench.simulate.cells import PolicyFigures
from gateway.workbench.simulate.simulation_report import tree
from tests.bench.goals import GOALS, GoalResult, checks, goals, main, markdown
from tests.unit.workbench.simulate_cases import cell

BASE = {goal.figure: 1.0 for goal in GOALS} | {"mean_s": 1.0, "completed": 1.0}
NAN = float("nan")


def played(**changed: float) -> PolicyFigures:
    return PolicyFigures(BASE | changed)


def group(
    scenario: str = "burst", shape: str = "knee", **policies: PolicyFigures
) -> dict[str, Any]:
    """A group as it is read back from report.json."""
    found = tree([cell(scenario, shape=shape)], [policies])
    (read,) = json.loads(msgspec.json.encode(found))
    return dict(read)


def goal(found: dict[str, Any], title: str) -> GoalResult:
    (result,) = (one for one in goals(found)["ours"] if one.goal == title)
    return result


def test_goal_is_met_at_its_target() -> None:
    """A target depends on the shape: what is enough on a knee is not on a peak."""
    for shape, met in (("knee", True), ("power", False), ("usl", False), ("linear", True)):
        result = goal(group(shape=shape, naive=played(), ours=played(short_p95_s=0.5)), "short P95")
        assert (result.is_met, result.beats_seed) == (met, True)
    missed = group(naive=played(), ours=played(short_p95_s=0.51))
    assert goal(missed, "short P95").is_met is False


def test_missed_goal_names_its_limit() -> None:
    """A missed goal names the forecast where true lengths reach it, and physics where not even a
    request alone does."""
    naive, ours = played(), played(short_p95_s=0.9)
    for true, limit in ((0.4, "forecast"), (0.8, "policy or physics")):
        found = group(naive=naive, ours=ours, true=played(short_p95_s=true))
        assert goal(found, "short P95").limit == limit
    assert goal(group(naive=naive, ours=ours), "short P95").limit == ""
    crowded = group(naive=played(short_alone_p95_s=0.6), ours=ours, true=played(short_p95_s=0.7))
    assert goal(crowded, "short P95").limit == "physics"


def test_lost_request_misses_completion() -> None:
    """A refusal is no completion: the goal and the check on refusals are both missed."""
    found = group(naive=played(), ours=played(completed=0.995))
    assert goal(found, "completed").is_met is False
    assert goal(found, "completed").beats_seed is False
    assert [check.is_met for check in checks(found)] == [False]


def test_figure_that_naive_has_none_of_must_stay_zero() -> None:
    """With 0 for naive there is no ratio: any figure above 0 misses the goal."""
    naive = played(deadline_misses=0.0)
    for own, met in ((0.0, True), (0.1, False)):
        found = goal(group(naive=naive, ours=played(deadline_misses=own)), "deadline misses")
        assert found.found is None
        assert found.is_met is found.beats_seed is met


def test_figure_that_cannot_be_measured_is_not_met() -> None:
    """Without a short request anywhere there is no figure, and no pass."""
    nothing = played(short_p95_s=NAN)
    assert goal(group(naive=nothing, ours=nothing), "short P95").is_met is False
    assert checks(group("steady", ours=nothing, static=nothing))[0].is_met is False


def test_checks_compare_ours_with_the_best_static_window() -> None:
    """Short P95 and mean must lie within a tenth of it."""
    found = group("steady", static=played(), ours=played(mean_s=1.2, short_p95_s=1.09))
    assert [check.is_met for check in checks(found)] == [True, False, True]
    assert goals(found) == {}


def test_checks_bound_the_quiet_side() -> None:
    """A flood may raise the quiet tenant's P95 by 1.3; another pool adds no wait."""
    both = {"quiet_p95_s": 1.4, "quiet_alone_p95_s": 1.0, "quiet_added_wait_s": 0.002}
    fine = {"quiet_p95_s": 1.2, "quiet_alone_p95_s": 1.0, "quiet_added_wait_s": 0.0}
    for scenario in ("flood", "isolation"):
        assert checks(group(scenario, ours=played(**both)))[0].is_met is False
        assert checks(group(scenario, ours=played(**fine)))[0].is_met is True


def test_markdown_lists_first_what_is_not_met() -> None:
    """The text begins with the missed goals and their limits; without any it says so."""
    text = markdown([group(naive=played(), ours=played(), true=played())])
    assert "ours: short P95 +0.0% (+0% … +0%), wanted ≤ -50%; limit: policy" in text
    assert "| goal (ours) |" in text
    text = markdown([group("steady", naive=played(), ours=played())])
    assert "Nothing: all goals are." in text
    assert "| refused, share |" in text


def test_main_judges_the_reports_of_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each folder's report.json is read, and its misses are counted."""
    found = group("steady", ours=played(completed=0.9))
    (tmp_path / "report.json").write_text(json.dumps({"groups": [found]}))
    assert main([str(tmp_path)]) == 0
    assert "0 of 1 goals and checks met by ours" in capsys.readouterr().out
