"""Groups, workload and the report's text, from figures given by hand."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.workbench.simulate.cells import PolicyFigures
from gateway.workbench.simulate.simulation_report import groups, markdown, tree, workload
from tests.unit.workbench.simulate_cases import cell, plan

FIGURES = {"short_p95_s": 2.0, "mean_s": 1.0, "deadline_misses": 0.5, "completed": 1.0}
ABOUT = {
    "seeds": 1,
    "rows_from": "generated",
    "mix": "as-is",
    "arrivals": "poisson",
    "command": "sagesched simulate",
    "seconds": 1.0,
}


def text_of(*found: dict[str, Any]) -> str:
    return markdown({"about": ABOUT, "workload": workload(plan().rows), "groups": found})


def test_cells_that_differ_by_seed_are_one_group() -> None:
    """Groups are given in the order of their first cells."""
    cells = [cell(seed=0), cell(seed=1), cell(rho=1.0), cell(seed=2)]
    sizes = [len(members) for members in groups(cells, [{}] * 4)]
    assert sizes == [3, 1]


def test_group_compares_each_policy_with_naive() -> None:
    """The tree holds means and changes against naive, the text shows both."""
    naive, ours = PolicyFigures(FIGURES), PolicyFigures(FIGURES | {"short_p95_s": 1.0})
    (group,) = tree([cell()], [{"naive": naive, "ours": ours}])
    assert group["policies"]["ours"]["mean"]["short_p95_s"] == 1.0
    assert group["policies"]["ours"]["against_naive"]["short_p95_s"].value == pytest.approx(-0.5)
    assert "against_naive" not in group["policies"]["naive"]
    text = text_of(group)
    assert "-50.0% (-50% … -50%)" in text
    assert "| naive | – | – | 2 |" in text


def test_report_judges_nothing() -> None:
    """A user of `simulate` gets figures; goals are held against them elsewhere."""
    (group,) = tree([cell()], [{"naive": PolicyFigures(FIGURES), "ours": PolicyFigures(FIGURES)}])
    assert not {"goals", "checks"} & set(group)
    assert "goal" not in text_of(group)


def test_refusals_are_counted_by_code() -> None:
    """Refusals are summed over the seeds and named in the text."""
    first, second = (PolicyFigures(FIGURES, {"queue_timeout": n}) for n in (2, 3))
    (group,) = tree([cell(), cell(seed=1)], [{"ours": first}, {"ours": second}])
    assert group["policies"]["ours"]["refused"] == {"queue_timeout": 5}
    assert "ours refused: queue_timeout 5." in text_of(group)


def test_workload_is_described() -> None:
    """The report names rows, shares of sizes, and the quality of each kind of forecast."""
    found = workload(plan().rows)
    assert found["rows"] == 300
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["forecasts"]["τ 0.60"]["kendall_tau"] == pytest.approx(0.6, abs=0.1)
