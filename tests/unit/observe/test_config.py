"""The shipped rules and dashboard ask for metrics that exist, the way they should."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.observe.metrics import LabelNames, Metrics
from tests.unit.observe.records import record, snapshots

CONFIG = Path(__file__).parents[3] / "config"
METRIC = re.compile(r"\b(?:sagesched|process|python)_[a-z0-9_]+\b")
AGGREGATE = re.compile(r"\b(?:sagesched|process)_[a-z0-9_]+_(?:total|bucket|sum|count)\b")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((CONFIG / "prometheus-rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CONFIG / "grafana-dashboard.json").read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])


def existing() -> dict[str, set[str]]:
    """Every sample name of a page in use, and its labels."""
    metrics = Metrics(
        snapshots, LabelNames(frozenset({"m"}), frozenset({"a"}), frozenset({"demo"}))
    )
    metrics.ended(record(cost_usd=0.01))
    found: dict[str, set[str]] = {}
    for line in metrics.render()[0].decode().splitlines():
        if not line.startswith("#"):
            name, _, rest = line.partition("{")
            labels = set(re.findall(r'([a-z_]+)="', rest.rpartition("}")[0]))
            found.setdefault(name.split()[0], set()).update(labels)
    return found


def test_config_names_metrics_that_exist() -> None:
    """No rule or panel names a metric the gateway does not have."""
    wanted = {name for expr in expressions() for name in METRIC.findall(expr)}
    assert len(wanted) > 25
    assert wanted - existing().keys() == set()


def test_config_names_labels_that_exist() -> None:
    """Each label in a selector belongs to its metric, or is one Prometheus adds."""
    have = existing()
    for expr in expressions():
        for name, selector in re.findall(r"\b((?:sagesched|process)_\w+)\{([^}]*)\}", expr):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert labels - have[name] <= {"job", "instance"}, expr


def test_config_recorded_series_are_recorded() -> None:
    """An alert on a recorded series finds the record rule."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = {name for expr in expressions() for name in re.findall(r"\bsagesched:[\w:]+", expr)}
    assert used <= recorded


def test_config_counters_are_rated() -> None:
    """A counter or histogram is read through rate or increase, never raw."""
    for expr in expressions():
        for match in AGGREGATE.finditer(expr):
            assert re.search(r"(rate|increase)\($", expr[: match.start()]), expr


@pytest.mark.parametrize("rule", [r for r in rules() if "alert" in r], ids=lambda r: r["alert"])
def test_config_alert_has_severity_summary_and_advice(rule: dict[str, Any]) -> None:
    """An alert has a severity, a summary and what to look at."""
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert {"summary", "description"} <= set(rule["annotations"])


@pytest.mark.parametrize("panel", panels(), ids=lambda p: p["title"])
def test_config_panel_is_complete(panel: dict[str, Any]) -> None:
    """A panel has title, description, unit, the chosen source, and job and instance matchers."""
    assert panel["title"]
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    for target in panel["targets"]:
        assert 'job=~"$job",instance=~"$instance"' in target["expr"]


def test_config_dashboard_has_its_variables() -> None:
    """Source, job and instance are chosen in the dashboard; panels do not overlap."""
    board = dashboard()
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names == ["datasource", "job", "instance"]
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
