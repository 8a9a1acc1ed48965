"""`sagesched evaluate`: how good the forecasts are, on rows the models never saw.

The rows go through the serving predictor in order: forecast first, learn after. Beside it go
baselines and the predictor with parts taken away, over the same rows in the same run, so that
every figure has something to be compared with. The result is one tree of figures
(evaluation_report.py), as JSON, as Markdown, and three pictures.

The time goes into one vector for each distinct prompt (some 15 ms, stored in DIR/vectors.npz for
the next run) and some 2 ms a row and variant. Both are spread over `workers` processes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway.errors import SettingsError
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.workbench.arguments import add_rows, check_names, history_of, settings_of, words
from gateway.workbench.evaluate import evaluation_report as reports
from gateway.workbench.evaluate import forecast_charts as plots
from gateway.workbench.evaluate.evaluation_tables import markdown
from gateway.workbench.evaluate.judged_rows import (
    Case,
    JudgedRows,
    choose,
    counts,
    fit_keys,
    read,
)
from gateway.workbench.evaluate.judged_rows import read_history as read_store
from gateway.workbench.evaluate.row_replay import (
    DRIFT_ROWS,
    ForecastTable,
    PreparedReplay,
    ReplayInputs,
    ReplayTask,
    case_vectors,
    drifting,
    replay_task,
)
from gateway.workbench.evaluate.variants import BASELINES, OF_HISTORY, VARIANTS
from gateway.workbench.evaluate.vectors import PromptVector, load_artefacts
from gateway.workbench.progress import spread
from gateway.workbench.tables import write_report

OF_SCENARIOS = ("stage0", "static", "full")
DRIFT_SOURCES = 5
DRIFT_LEAST = DRIFT_ROWS + 50  # rows of a source that is doubled
PLOTTED = ("full", "static", "stage0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which rows are judged, how they are replayed, and by which variants."""
    add_rows(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR")
    text = "learn each row right after its forecast"
    add("--strict-replay", action="store_true", help=text)
    add("--in-flight", type=int, default=64, help="else learned so many rows later")
    text = "the first so many; of history the newest"
    add("--limit", type=int, default=None, metavar="ROWS", help=text)
    text = "held: the test side of the split; unfitted: all that no model was fitted on"
    add("--side", choices=["auto", "held", "unfitted"], default="auto", help=text)
    add("--variants", type=words, default="", metavar="A,B", help="default: all")
    text = "never fitted, also replayed alone; default: all of them"
    add("--leave-out", action="append", default=[], metavar="SOURCE", help=text)
    add("--apart-rows", type=int, default=1000, help="of each of them at most")
    add("--no-scenarios", action="store_true", help="neither these nor the drift")
    add("--workers", type=int, default=2, help="processes")


def run(args: argparse.Namespace, models: Path | None = None) -> int:
    """Judge the forecasts and write OUT/report.json, report.md and three .svg; 0.

    Args:
        models: the shipped artefacts' folder where it is not the usual one.

    Raises:
        SettingsError: an option, the file or the models are unusable.
    """
    started = time.monotonic()
    of_history = args.history is not None
    if of_history == (args.data is not None):
        raise SettingsError("evaluate: expected --data FILE or --history, and not both")
    names = _names(args.variants, OF_HISTORY if of_history else VARIANTS)
    inputs, chosen, problems = _prepare(args, models or shipped("models"))
    tasks = _tasks(names, inputs, scenarios=not args.no_scenarios and not of_history)
    tables = spread(
        *("replays", replay_task, tasks, PreparedReplay, (inputs,), args.workers),
        size=lambda task: _size(inputs, task),
    )
    forecasts = dict(zip(tasks, tables, strict=True))
    truth = reports.Truth(chosen.cases, None if of_history else chosen.never_fitted)
    report = _report(inputs, truth, forecasts)
    report["about"] = _about(chosen, inputs, args.data or history_of(args), problems)
    report["about"]["seconds"] = round(time.monotonic() - started, 1)
    _write(args.out, report, truth, forecasts)
    print(
        f"{len(chosen.cases)} of {chosen.rows_read} rows judged ({chosen.side}),"
        f" {_fitted(chosen)}; {report['about']['seconds']} s; see {args.out / 'report.md'}"
    )
    return 0


def _prepare(args: argparse.Namespace, models: Path) -> tuple[ReplayInputs, JudgedRows, list[str]]:
    """Inputs of the replays with their vectors made, the rows, and problems of the models."""
    given = settings_of(args)
    settings = Predict() if given is None else given.predict
    artefacts, encoder = load_artefacts(models, settings)
    chosen = _chosen(args, models, artefacts.encoder_name, encoder.width)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{args.out}: cannot be made: {error.strerror}") from None
    apart = {} if args.no_scenarios else _apart(chosen, args.leave_out)
    cases = [*chosen.cases, *(case for own in apart.values() for case in own)]
    stored = args.out / "vectors.npz"
    inputs = ReplayInputs(
        cases=chosen.cases,
        apart=apart,
        models=models,
        settings=settings,
        vectors=case_vectors(chosen, cases, models, settings, stored, args.workers),
        has_text=args.history is None,
        in_flight=0 if args.strict_replay else args.in_flight,
    )
    return inputs, chosen, artefacts.problems


def _fitted(chosen: JudgedRows) -> str:
    if chosen.fitted_rows is None:
        return "whether the models saw them cannot be known"
    return f"{chosen.fitted_rows} dropped because the models saw them"


def _names(wanted: Sequence[str], variants: Sequence[str]) -> list[str]:
    check_names("evaluate", "variant", wanted, variants)
    return [name for name in variants if not wanted or name in wanted]


def _chosen(args: argparse.Namespace, models: Path, encoder: str, width: int) -> JudgedRows:
    path = args.data or history_of(args)
    assert path is not None
    if args.data is not None:
        chosen = choose(read(path), fit_keys(models), args.side, args.limit, args.apart_rows)
    else:
        chosen = read_store(path, encoder, width, args.limit)
    if not chosen.cases:
        raise SettingsError(
            f"{path}: no row to judge ({chosen.rows_read} read, {chosen.fitted_rows or 0} fitted)"
        )
    return chosen


def _apart(chosen: JudgedRows, leave_out: Sequence[str]) -> dict[str, tuple[Case, ...]]:
    """Cases of the sources to replay alone: never fitted, and enough of them."""
    for name in leave_out:
        if name not in chosen.never_fitted:
            names = ", ".join(chosen.never_fitted) or "none"
            raise SettingsError(
                f"evaluate: the shipped models were fitted on {name!r}, or it is not in the"
                f" file; never fitted: {names}"
            )
    rows = {name: chosen.never_fitted[name] for name in leave_out or chosen.never_fitted}
    return {name: own for name, own in rows.items() if len(own) >= reports.FIRST_ROWS + 50}


def _tasks(names: Sequence[str], inputs: ReplayInputs, *, scenarios: bool) -> list[ReplayTask]:
    """Tasks, the long ones first, so that the processes end together."""
    tasks = [ReplayTask(name) for name in names]
    few = [name for name in OF_SCENARIOS if name in names]
    if scenarios:
        large = [s for s, n in counts(inputs.cases).items() if n >= DRIFT_LEAST][:DRIFT_SOURCES]
        tasks += [ReplayTask(name, "apart", source) for source in inputs.apart for name in few]
        tasks += [
            ReplayTask(name, kind, source)
            for source in large
            for name in few
            for kind in ("drift", "no drift")
        ]
    return sorted(tasks, key=lambda task: (task.variant in BASELINES, -_size(inputs, task)))


def _size(inputs: ReplayInputs, task: ReplayTask) -> int:
    return len(inputs.rows(task))


def _report(
    inputs: ReplayInputs,
    truth: reports.Truth,
    forecasts: Mapping[ReplayTask, ForecastTable],
) -> dict[str, Any]:
    variants = {
        name: forecasts[ReplayTask(name)] for name in VARIANTS if ReplayTask(name) in forecasts
    }
    everything = np.ones(len(truth), bool)
    report: dict[str, Any] = {"about": {}}
    report |= reports.tree(truth, variants, everything)
    report["first_seen"] = reports.tree(truth, variants, truth.first_seen)
    report["apart"] = {
        source: reports.apart(cases, own)
        for source, cases in inputs.apart.items()
        if (own := _scenario(forecasts, "apart", source))
    }
    report["drift"] = {
        source: reports.drift(
            drifting(inputs.cases, source, drifts=False),
            own,
            _scenario(forecasts, "no drift", source),
        )
        for source in dict.fromkeys(task.source for task in forecasts if task.kind == "drift")
        if (own := _scenario(forecasts, "drift", source))
    }
    for scenario in ("apart", "drift"):
        if report[scenario]:
            report[scenario]["mean"] = reports.mean_of(report[scenario])
    report["over_time"] = {n: reports.over_time(truth, f) for n, f in variants.items()}
    report["timing"] = _timing(variants, inputs.vectors)
    return report


def _scenario(
    forecasts: Mapping[ReplayTask, ForecastTable], kind: str, source: str
) -> dict[str, ForecastTable]:
    return {t.variant: f for t, f in forecasts.items() if (t.kind, t.source) == (kind, source)}


def _timing(
    variants: Mapping[str, ForecastTable], vectors: Mapping[bytes, PromptVector]
) -> dict[str, Any]:
    """Milliseconds of the encoder on new texts, and of a forecast without it."""
    encoded = np.array([item.ms for item in vectors.values() if item.ms > 0])
    found: dict[str, Any] = {"encoder, a new text": reports.timing(encoded)}
    for name in ("stage0", "full"):
        if name in variants:
            found[f"{name}, without encoder"] = reports.timing(1000 * variants[name].seconds)
    return found


def _about(
    chosen: JudgedRows, inputs: ReplayInputs, path: Path | None, problems: Sequence[str]
) -> dict[str, Any]:
    cases = chosen.cases
    late = inputs.in_flight
    return {
        "file": path.name if path else "",
        "rows_read": chosen.rows_read,
        "fitted_rows": chosen.fitted_rows,
        "side": chosen.side,
        "rows": len(cases),
        "first_seen_rows": sum(case.first_seen for case in cases),
        "censored_rows": sum(case.censored for case in cases),
        "sources": counts(cases),
        "never_fitted": sorted(chosen.never_fitted),
        "apart_after_rows": reports.FIRST_ROWS,
        "strict_replay": late == 0,
        "replay": "each learned before the next is forecast (strict)"
        if late == 0
        else f"each learned after {late} later ones were forecast",
        "encoder": inputs.settings.embedding_model_name,
        "settings": msgspec.to_builtins(inputs.settings),
        "tenant": "one for all rows, but by source in full_tenants"
        if inputs.has_text
        else "as stored",
        "task_type": "given in full_task only",
        "problems": list(problems),
    }


def _write(
    out: Path,
    report: dict[str, Any],
    truth: reports.Truth,
    forecasts: Mapping[ReplayTask, ForecastTable],
) -> None:
    report = reports.rounded(report)
    shown = [name for name in PLOTTED if ReplayTask(name) in forecasts]
    shown = shown or list(report["overall"])[:3]
    write_report(out, report, markdown(report))
    pictures = {
        "calibration.svg": plots.calibration(
            {name: report["overall"][name]["calibration"] for name in shown}
        ),
        "predicted.svg": plots.predicted(truth, forecasts[ReplayTask(shown[0])], shown[0]),
        "tau_over_time.svg": plots.tau_over_time({n: report["over_time"][n] for n in shown}),
    }
    for name, text in pictures.items():
        try:
            (out / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"{out / name}: cannot be written: {error.strerror}") from None
