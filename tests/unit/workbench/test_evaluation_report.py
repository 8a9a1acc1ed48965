"""The tree of figures: every group where it belongs, and scenarios on the right rows."""

from __future__ import annotations

import msgspec
import pytest

from gateway.workbench.evaluate import evaluation_report as reports
from gateway.workbench.evaluate.evaluation_report import Truth
from tests.unit.workbench.evaluate_cases import case, flat

TOKENS = [10 + 15 * (i % 40) for i in range(400)]
CASES = [case(i, tokens, first_seen=i % 2 == 0) for i, tokens in enumerate(TOKENS)]
TRUTH = Truth(CASES)
SAID = {"full": flat([float(t) for t in TOKENS]), "static": flat([100.0] * 400)}


def test_tree_has_the_promised_keys() -> None:
    """`overall.VARIANT` and `by.KIND.NAME.VARIANT`, each with the figures, as JSON."""
    tree = reports.rounded(reports.tree(TRUTH, SAID, TRUTH.first_seen))
    tree = msgspec.json.decode(msgspec.json.encode(tree))
    assert tree["overall"]["full"]["kendall_tau"] == 1.0
    assert tree["overall"]["full"]["n"] == 200
    wanted = {"kendall_tau", "kendall_tau_mean_source", "coverage_p90", "pinball", "mae"}
    assert wanted <= set(tree["overall"]["static"])
    assert set(tree["by"]) == {"source", "model", "lang", "class", "size"}
    assert set(tree["by"]["source"]) == {"left"}  # the first-seen rows are the even ones
    assert set(tree["by"]["model"]) == {"model-0", "model-1", "model-2"}
    assert set(tree["by"]["class"]) == {"interactive", "heavy"}
    assert set(tree["by"]["class"]["heavy"]) == {"full", "static"}
    assert set(tree["by"]["class"]["interactive"]) == {"full"}  # static calls nothing short
    assert "kendall_tau" in tree["by"]["source"]["left"]["full"]


def test_fitted_sources_are_a_group_of_their_own() -> None:
    """Rows of fitted sources and of others are two groups; neither exists where that is unknown."""
    tree = reports.tree(Truth(CASES, ["right"]), SAID, TRUTH.tokens > 0)
    groups = tree["by"]["training"]
    assert set(groups) == {"fitted", "never fitted"}
    assert groups["fitted"]["full"] == tree["by"]["source"]["left"]["full"]
    assert groups["never fitted"]["full"] == tree["by"]["source"]["right"]["full"]
    assert set(reports.tree(Truth(CASES, []), SAID, TRUTH.first_seen)["by"]["training"]) == {
        "fitted"
    }


def test_mean_source_is_inside_sources() -> None:
    """A forecast that only separates sources has a τ over all and none inside them."""
    cases = [case(i, 10 + i % 30 + 500 * (i % 2)) for i in range(200)]
    forecasts = flat([20.0 + 500 * (i % 2) for i in range(200)])
    truth = Truth(cases)
    found = reports.overall(truth, forecasts, truth.tokens > 0)
    assert found["kendall_tau"] > 0.6
    assert found["kendall_tau_mean_source"] == 0.0


def test_informative_risk_and_confidence_show() -> None:
    """Risk that ranks overruns has an AUC of 1, useless risk one half."""
    cases = [case(i, 1000 if i % 5 == 0 else 100 + i) for i in range(200)]
    forecasts = flat([100.0 + i for i in range(200)])
    truth = Truth(cases)
    rows = truth.tokens > 0
    assert reports.overall(truth, forecasts, rows)["risk_auc_overrun"] == 0.5
    forecasts.risk[::5] = 0.9
    forecasts.confidence[::5] = 0.1
    found = reports.overall(truth, forecasts, rows)
    assert found["risk_auc_overrun"] > 0.9
    assert found["confidence_tau_error"] > 0.5


def test_rungs_have_shares_that_sum_to_one() -> None:
    """Each rung is listed with its share and its own τ."""
    forecasts = flat([float(t) for t in TOKENS])
    forecasts.rung[:100] = 0
    found = reports.overall(TRUTH, forecasts, TRUTH.tokens > 0)["rungs"]
    assert {name: rung["share"] for name, rung in found.items()} == {
        "tenant_neighbors": 0.25,
        "model_only": 0.75,
    }


def test_apart_judges_the_rows_after_the_first() -> None:
    """The first rows only teach: errors in them do not count."""
    cases = [case(i, 10 + i) for i in range(260)]
    late = [10.0 + i for i in range(260)]
    found = reports.apart(cases, {"full": flat([999.0 - i for i in range(200)] + late[200:])})
    assert found["full"]["n"] == 60
    assert found["full"]["kendall_tau"] == 1.0
    assert found["full"]["first_seen"]["n"] == 60


def test_drift_looks_at_the_last_rows_and_the_control() -> None:
    """Forecasts that never move cover the control, and nothing after the doubling."""
    cases = [case(i, 100) for i in range(300)]
    forecasts = {"static": flat([100.0] * 300, spread=1.2)}
    moved = {"full": flat([100.0] * 100 + [200.0] * 200, spread=1.2)}
    found = reports.drift(cases, forecasts, forecasts)["static"]
    assert found["coverage_p90_last_200"] == 0.0
    assert found["coverage_p90_without_drift"] == 1.0
    found = reports.drift(cases, moved, {"full": forecasts["static"]})["full"]
    assert found["coverage_p90_first_100"] == 0.0
    assert found["coverage_p90_last_200"] == 1.0


def test_mean_of_a_scenario_is_over_its_sources() -> None:
    """The mean is by variant and figure, over the sources that have the figure."""
    scenario = {
        "a": {"full": {"n": 5, "kendall_tau": 0.2, "first_seen": {"kendall_tau": None}}},
        "b": {"full": {"n": 7, "kendall_tau": 0.4, "first_seen": {"kendall_tau": 0.5}}},
    }
    found = reports.mean_of(scenario)["full"]
    assert found["kendall_tau"] == pytest.approx(0.3)
    assert found["first_seen"]["kendall_tau"] == 0.5
    assert "n" not in found


def test_over_time_moves_with_the_replay() -> None:
    """τ is of each window: a forecaster that learns late is bad early."""
    cases = [case(i, 10 + (i * 37) % 500) for i in range(1500)]
    forecasts = flat([50.0] * 750 + [float(c.output_tokens) for c in cases[750:]])
    points = reports.over_time(Truth(cases), forecasts)
    assert points[0] == [500.0, 0.0]
    assert points[-1] == [1500.0, 1.0]
