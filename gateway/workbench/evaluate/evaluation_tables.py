"""The Markdown report of an evaluation, from its tree of figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.workbench.tables import NOTHING, table

Tree = Mapping[str, Any]

COLUMNS = (
    ("τ-b", "kendall_tau"),
    ("τ in source", "kendall_tau_mean_source"),
    ("MAE", "mae"),
    ("pinball", "pinball"),
    ("≤ p50", "coverage_p50"),
    ("≤ p90", "coverage_p90"),
    ("bucket", "bucket_accuracy"),
    ("AUC short", "auc_short"),
    ("shorts in 35 %", "recall_short_top35"),
)


def markdown(report: Tree) -> str:
    """The report as a person reads it."""
    about = report["about"]
    parts = [
        "# Evaluation of the length forecasts",
        _about(about),
        "## New prompts",
        f"The {about['first_seen_rows']} rows whose prompt no earlier row had.",
        _variants(report["first_seen"]["overall"]),
        "## All rows",
        _variants(report["overall"]),
        "## By source",
        "τ-b inside each source, all rows.",
        _sources(report["by"].get("training", {}) | report["by"]["source"]),
        "## Rungs",
        _rungs(report["overall"]),
        "## p90 over time",
        f"Smallest and largest share at most p90 over stretches of {_window(report)} rows (of a "
        "class, where it has fewer: all of them); the class is by forecast.",
        _rolling(report["overall"]),
    ]
    parts += _scenarios(report)
    parts += [
        "## Time",
        _time(report),
        "![calibration](calibration.svg) ![predicted](predicted.svg) ![τ](tau_over_time.svg)",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _scenarios(report: Tree) -> list[str]:
    parts = []
    first = report["about"]["apart_after_rows"]
    if report["apart"]:
        parts += [
            "## Sources never fitted",
            "Each alone, starting from the shipped models; figures of the rows after its first"
            f" {first}: τ-b (τ-b of new prompts) / share at most p90.",
            _apart(report["apart"]),
        ]
    if report["drift"]:
        parts += [
            "## A source doubles its lengths",
            "Share at most p90: rows 1–100 after the doubling, rows 101–300, and the same last 200"
            " rows without it.",
            _drift(report["drift"]),
        ]
    return parts


def _about(about: Tree) -> str:
    fitted = about["fitted_rows"]
    lines = [
        f"- `{about['file']}`: {about['rows_read']} rows read, **{about['rows']} judged**"
        f" ({about['side']}), {about['first_seen_rows']} with a new prompt,"
        f" {about['censored_rows']} cut at their limit.",
        "- History has no text: whether the models saw these rows cannot be known, and the"
        " boosters read model, limits and neighbours only, so that `full` here is less than what"
        " serves."
        if fitted is None
        else f"- {fitted} rows share a conversation or prompt with what the models were fitted on:"
        " none of them is judged.",
        f"- Replay: rows in order, {about['replay']}.",
        f"- Encoder {about['encoder']}; tenant: {about['tenant']};"
        f" task type: {about['task_type']}.",
        "- τ-b on tokens; MAE in tokens; pinball on log1p tokens over seven quantiles.",
    ]
    lines += [f"- **Problem:** {text}" for text in about["problems"]]
    return "\n".join(lines)


def _variants(overall: Tree) -> str:
    head = ["variant", *(title for title, _ in COLUMNS)]
    rows = (
        [name, *(_cell(own.get(key), "mae" in key) for _, key in COLUMNS)]
        for name, own in overall.items()
    )
    return table(head, rows)


def _sources(by: Tree) -> str:
    names = ("constant", "llmd_rule", "stage0", "static", "knn", "full")
    shown = [n for n in names if any(n in each for each in by.values())]
    rows = []
    for source, each in by.items():
        count = max(own["n"] for own in each.values())
        cells = [_cell(each.get(name, {}).get("kendall_tau")) for name in shown]
        rows.append([source, str(count), *cells, _cell(each.get("full", {}).get("coverage_p90"))])
    return table(["source", "rows", *shown, "full ≤ p90"], rows)


def _rungs(overall: Tree) -> str:
    rows = (
        [name, rung, f"{100 * found['share']:.1f} %", _cell(found["kendall_tau"])]
        for name in ("stage0", "static", "full", "full_tenants")
        for rung, found in overall.get(name, {}).get("rungs", {}).items()
    )
    return table(["variant", "rung", "share", "τ-b"], rows, text_columns=2)


def _window(report: Tree) -> int:
    rolling = [own["coverage_p90_rolling"]["all"] for own in report["overall"].values()]
    return max((each["window"] for each in rolling if each), default=0)


def _rolling(overall: Tree) -> str:
    rows = (
        [name, group, str(found["window"]), _cell(found["min"]), _cell(found["max"])]
        for name in ("static", "full", "full_tenants")
        for group, found in overall.get(name, {}).get("coverage_p90_rolling", {}).items()
        if found
    )
    return table(["variant", "class", "rows", "smallest", "largest"], rows, text_columns=2)


def _apart(scenario: Tree) -> str:
    names = list(scenario["mean"])
    rows = []
    for source, each in scenario.items():
        cells = [
            f"{_cell(each[n]['kendall_tau'])} ({_cell(each[n]['first_seen']['kendall_tau'])})"
            f" / {_cell(each[n]['coverage_p90'])}"
            for n in names
        ]
        rows.append([source, str(each[names[0]].get("n", "")), *cells])
    return table(["source", "rows", *names], rows)


def _drift(scenario: Tree) -> str:
    names = list(scenario["mean"])
    rows = (
        [source, *(" / ".join(_cell(v) for v in each[name].values()) for name in names)]
        for source, each in scenario.items()
    )
    return table(["source", *names], rows)


def _time(report: Tree) -> str:
    rows = [
        [name, *(f"{found[key]:.2f}" for key in ("mean", "p50", "p99"))]
        for name, found in report["timing"].items()
        if found
    ]
    return "Milliseconds of CPU a forecast.\n\n" + table(["", "mean", "p50", "p99"], rows)


def _cell(value: float | None, rounded: bool = False) -> str:
    if value is None:
        return NOTHING
    return f"{value:.0f}" if rounded else f"{value:.3f}"
