"""Goals, checks and the workload, from figures given by hand."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.workbench.simulate.cells import Played
from gateway.workbench.simulate.simulation_report import GOALS, groups, tree, workload
from gateway.workbench.simulate.simulation_tables import markdown
from tests.unit.workbench.simulate_cases import cell, plan

BASE = {goal.figure: 1.0 for goal in GOALS} | {"mean_s": 1.0, "completed": 1.0}

ABOUT = {
    "seeds": 1,
    "rows_from": "generated",
    "mix": "as-is",
    "arrivals": "poisson",
    "command": "sagesched simulate",
    "seconds": 1.0,
}


def played(**changed: float) -> Played:
    return Played(BASE | changed)


def one(scenario: str = "burst", shape: str = "knee", **policies: Played) -> dict[str, Any]:
    (found,) = tree([cell(scenario, shape=shape)], [policies])
    return found


def goal(group: dict[str, Any], title: str, policy: str = "ours") -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = (row for row in group["goals"][policy] if row["goal"] == title)
    return found


def test_cells_that_differ_by_seed_are_one_group() -> None:
    """In the order of their first."""
    cells = [cell(seed=0), cell(seed=1), cell(rho=1.0), cell(seed=2)]
    sizes = [len(members) for members in groups(cells, [{}] * 4)]
    assert sizes == [3, 1]


def test_a_goal_is_met_at_its_target() -> None:
    """By shape: what is enough on a knee is not on a peak."""
    for shape, met in (("knee", True), ("power", False), ("usl", False), ("linear", True)):
        group = one(shape=shape, naive=played(), ours=played(short_p95_s=0.5))
        assert goal(group, "short P95")["met"] is met
        assert goal(group, "short P95")["beats_seed"] is True
    assert goal(one(naive=played(), ours=played(short_p95_s=0.51)), "short P95")["met"] is False


def test_a_missed_goal_names_its_limit() -> None:
    """The forecast where true lengths reach it, physics where not even being alone does."""
    naive, ours = played(), played(short_p95_s=0.9)
    for true, limit in ((0.4, "forecast"), (0.8, "policy or physics")):
        group = one(naive=naive, ours=ours, true=played(short_p95_s=true))
        assert goal(group, "short P95")["limit"] == limit
    assert goal(one(naive=naive, ours=ours), "short P95")["limit"] == ""
    crowded = one(naive=played(short_alone_p95_s=0.6), ours=ours, true=played(short_p95_s=0.7))
    assert goal(crowded, "short P95")["limit"] == "physics"


def test_a_lost_request_misses_completion() -> None:
    """A refusal is not a completion."""
    group = one(naive=played(), ours=played(completed=0.995))
    assert goal(group, "completed")["met"] is False
    assert goal(group, "completed")["beats_seed"] is False
    assert [row["met"] for row in group["checks"]] == [False]


def test_what_naive_has_none_of_must_not_come_up() -> None:
    """No ratio can be told against 0; more than 0 is a miss all the same."""
    naive = played(deadline_misses=0.0)
    for own, met in ((0.0, True), (0.1, False)):
        found = goal(one(naive=naive, ours=played(deadline_misses=own)), "deadline misses")
        assert found["found"] is None
        assert found["met"] is found["beats_seed"] is met


def test_what_cannot_be_measured_is_not_met() -> None:
    """No short request anywhere: no figure, and no pass."""
    nothing = played(short_p95_s=float("nan"))
    assert goal(one(naive=nothing, ours=nothing), "short P95")["met"] is False
    assert one("steady", ours=nothing, static=nothing)["checks"][0]["met"] is False


def test_checks_hold_ours_against_hindsight() -> None:
    """Within a tenth by short P95 and mean."""
    group = one("steady", static=played(), ours=played(mean_s=1.2, short_p95_s=1.09))
    assert [row["met"] for row in group["checks"]] == [True, False, True]
    assert group["goals"] == {}


def test_checks_of_two_sides() -> None:
    """The quiet tenant's ratio, the quiet pool's added wait."""
    both = {"quiet_p95_s": 1.4, "quiet_alone_p95_s": 1.0, "quiet_added_wait_s": 0.002}
    for scenario in ("flood", "isolation"):
        first = one(scenario, ours=played(**both))["checks"][0]
        assert first["met"] is False
        fine = {"quiet_p95_s": 1.2, "quiet_alone_p95_s": 1.0, "quiet_added_wait_s": 0.0}
        assert one(scenario, ours=played(**fine))["checks"][0]["met"] is True


def test_refusals_are_counted_by_code() -> None:
    """Over the seeds, and told in the Markdown."""
    first, second = (Played(BASE, {"queue_timeout": n}) for n in (2, 3))
    (group,) = tree([cell(), cell(seed=1)], [{"ours": first}, {"ours": second}])
    assert group["policies"]["ours"]["refused"] == {"queue_timeout": 5}
    text = markdown({"about": ABOUT, "workload": workload(plan().rows), "groups": [group]})
    assert "ours refused: queue_timeout 5." in text


def test_the_workload_is_described() -> None:
    """Rows, shares, and each forecast's quality."""
    found = workload(plan().rows)
    assert found["rows"] == 300
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["forecasts"]["τ 0.60"]["kendall_tau"] == pytest.approx(0.6, abs=0.1)


def test_markdown_lists_what_is_not_met() -> None:
    """First, with its limit; and says so where everything is."""
    report = {"about": ABOUT, "workload": workload(plan().rows)}
    bad = one(naive=played(), ours=played(), true=played())
    text = markdown({**report, "groups": [bad]})
    assert "ours: short P95 +0.0% (+0% … +0%), wanted ≤ -50%; limit: policy" in text
    good = one("steady", naive=played(), ours=played())
    text = markdown({**report, "groups": [good]})
    assert "Nothing: all goals are." in text
    assert "| naive |" in text
