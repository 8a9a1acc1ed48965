"""The shipped predictor's forecasts of real rows, kept in a file: making them takes minutes.

Rows and replay are those of `evaluate`: only rows that no shipped model was fitted on, forecast
in order, each learned after 64 later ones were forecast. Of each row both of a gateway's
forecasts are kept: stage 0's at once, and the full one a moment later. The first rows, which
found an empty history, are left out. With `learned`, each row's forecaster has learned so many
other rows and no more, as in a gateway's first hour.

The file is used again for the same rows, models and settings. Delete it after a change of the
predictor's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec

from gateway.errors import SettingsError
from gateway.predict.forecast import UNCALIBRATED
from gateway.settings.schema import Predict
from gateway.workbench.evaluate.judged_rows import (
    Case,
    JudgedRows,
    choose,
    fit_keys,
    read,
    read_history,
)
from gateway.workbench.evaluate.row_replay import (
    RUNGS,
    ForecastTable,
    Kind,
    PreparedReplay,
    ReplayInputs,
    ReplayTask,
    case_vectors,
    replay_task,
)
from gateway.workbench.evaluate.vectors import encoder_id, load_artefacts
from gateway.workbench.progress import load_arrays, save_arrays, spread
from gateway.workbench.simulate.request_rows import RequestRow, workload

SKIPPED = 300  # rows that seed the history
IN_FLIGHT = 64
VARIANTS = ("stage0", "full")
ARRAYS = ("grid", "p_short", "risk", "confidence", "rung", "seconds")


def real_rows(
    data: Path | None,
    history: Path | None,
    path: Path,
    models: Path,
    workers: int,
    learned: int = 0,
) -> list[RequestRow]:
    """Rows with the predictor's own forecasts, read from `path` or made and stored there.

    Args:
        data: conversations as JSON lines, .gz or not; or else
        history: a gateway's store.
        learned: rows that the forecaster of each had learned; 0: all that came before it.

    Raises:
        SettingsError: file, history or models are unusable, or there are too few rows.
    """
    settings = Predict()
    chosen = _chosen(data, history, models, settings)
    if len(chosen.cases) <= SKIPPED:
        raise SettingsError(
            f"{data or history}: {len(chosen.cases)} rows to judge, the first {SKIPPED} of"
            " which only fill the history: too few"
        )
    name = _name(chosen.cases, models, settings, learned)
    tables = _load(path, name)
    if tables is None:
        tables = _replayed(chosen, path, models, settings, workers, learned)
        _save(path, name, tables)
    first = 0 if learned else SKIPPED
    return [_row(case, tables, i) for i, case in enumerate(chosen.cases) if i >= first]


def _chosen(data: Path | None, history: Path | None, models: Path, settings: Predict) -> JudgedRows:
    if data is not None:
        return choose(read(data), fit_keys(models))
    assert history is not None
    artefacts, encoder = load_artefacts(models, settings)
    return read_history(history, artefacts.encoder_name, encoder.width)


def _replayed(
    chosen: JudgedRows, path: Path, models: Path, settings: Predict, workers: int, learned: int
) -> list[ForecastTable]:
    count = len(chosen.cases)
    beside = path.with_name("vectors.npz")
    inputs = ReplayInputs(
        cases=chosen.cases,
        apart={},
        models=models,
        settings=settings,
        vectors=case_vectors(chosen, chosen.cases, models, settings, beside, workers),
        has_text=not chosen.vectors,
        in_flight=IN_FLIGHT,
    )
    kind: Kind = "young" if learned else "all"
    tasks = [ReplayTask(name, kind, learned=learned) for name in VARIANTS]
    return spread(
        "forecasts", replay_task, tasks, PreparedReplay, (inputs,), workers, lambda task: count
    )


def _row(case: Case, tables: Sequence[ForecastTable], place: int) -> RequestRow:
    view = case.view
    prompt = view.tokens_by(UNCALIBRATED.tokens_per_byte(view.model, view.tenant, view.script))
    first, better = (
        workload(
            prompt,
            forecasts.grid[place].tolist(),
            float(forecasts.p_short[place]),
            RUNGS[forecasts.rung[place]],
            float(forecasts.risk[place]),
            float(forecasts.confidence[place]),
        )
        for forecasts in tables
    )
    return RequestRow(prompt, case.output_tokens, first, better)


def _name(cases: Sequence[Case], models: Path, settings: Predict, learned: int) -> str:
    """Name of the rows, models and settings: forecasts under the same name may be used again."""
    manifest = (
        (models / "manifest.toml").read_bytes() if (models / "manifest.toml").exists() else b""
    )
    rows = repr([(case.seq, case.source, case.output_tokens) for case in cases]).encode()
    sums = [blake2b(part, digest_size=8).hexdigest() for part in (manifest, rows)]
    parts = [encoder_id(models, settings), *sums, msgspec.json.encode(settings).decode()]
    return " ".join([*parts, f"learned {learned}"] if learned else parts)


def _load(path: Path, name: str) -> list[ForecastTable] | None:
    arrays = load_arrays(path, name, [f"{v}.{array}" for v in VARIANTS for array in ARRAYS])
    if arrays is None:
        return None
    return [ForecastTable(*arrays[i : i + len(ARRAYS)]) for i in range(0, len(arrays), len(ARRAYS))]


def _save(path: Path, name: str, tables: Sequence[ForecastTable]) -> None:
    arrays = {
        f"{variant}.{array}": getattr(table, array)
        for variant, table in zip(VARIANTS, tables, strict=True)
        for array in ARRAYS
    }
    save_arrays(path, name, arrays)
