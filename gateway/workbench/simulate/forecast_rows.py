"""What the shipped predictor says of real rows, kept in a file: it takes minutes, a run seconds.

The rows and the replay are those of `evaluate`: only what no shipped model was fitted on,
forecast in order, each learned after 64 later ones were forecast. Of each row both forecasts
are kept that a gateway makes: stage 0's at once, the full one a moment later. The first rows
found an empty history and are left out, as a gateway's first minutes are no measure of it. Its
first hour can be had as well: with `learned`, each row's forecaster has learned so many others.

The file is used again for the same rows, models and settings. After a change of the
predictor's code delete it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from zipfile import BadZipFile

import msgspec
import numpy as np

from gateway.errors import SettingsError
from gateway.predict.artefacts import Artefacts
from gateway.predict.forecast import UNCALIBRATED
from gateway.predict.prompt_view import cut
from gateway.settings.schema import Predict
from gateway.workbench.evaluate.judged_rows import (
    Case,
    Chosen,
    choose,
    fit_keys,
    read,
    read_history,
)
from gateway.workbench.evaluate.row_replay import RUNGS, Bench, Forecasts, Kind, Task, begin, work
from gateway.workbench.evaluate.vectors import Known, Prompt, encoder_id, prompt_key, vectors_of
from gateway.workbench.progress import Progress, spread
from gateway.workbench.simulate.request_rows import Row, workload

SKIPPED = 300  # rows that seed the history
IN_FLIGHT = 64
VARIANTS = ("stage0", "full")
ARRAYS = ("grid", "p_short", "risk", "confidence", "rung", "seconds")


def real_rows(
    data: Path | None,
    history: Path | None,
    kept: Path,
    models: Path,
    workers: int,
    learned: int = 0,
) -> list[Row]:
    """Rows with the predictor's own forecasts, from `kept` or made now and put there.

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
    said = _load(kept, name)
    if said is None:
        said = _replayed(chosen, kept, models, settings, workers, learned)
        _save(kept, name, said)
    first = 0 if learned else SKIPPED
    return [_row(case, said, i) for i, case in enumerate(chosen.cases) if i >= first]


def _chosen(data: Path | None, history: Path | None, models: Path, settings: Predict) -> Chosen:
    if data is not None:
        return choose(read(data), fit_keys(models))
    assert history is not None
    whole = Artefacts(models, settings.embedding_model_name, settings.max_encoder_tokens)
    if whole.encoder is None:
        raise SettingsError(f"{models}: {'; '.join(whole.problems)}")
    return read_history(history, whole.encoder_name, whole.encoder.width)


def _replayed(
    chosen: Chosen, kept: Path, models: Path, settings: Predict, workers: int, learned: int
) -> list[Forecasts]:
    whole = Artefacts(models, settings.embedding_model_name, settings.max_encoder_tokens)
    if whole.encoder is None:
        raise SettingsError(f"{models}: {'; '.join(whole.problems)}")
    bench = Bench(
        cases=chosen.cases,
        apart={},
        models=models,
        settings=settings,
        known=_known(chosen, kept, models, settings, workers),
        width=whole.encoder.width,
        has_text=not chosen.vectors,
        in_flight=IN_FLIGHT,
    )
    kind: Kind = "young" if learned else "all"
    tasks = [Task(name, kind, learned=learned) for name in VARIANTS]
    bar = Progress("forecasts", len(tasks) * len(chosen.cases))
    step = len(chosen.cases)
    return spread(work, tasks, begin, (bench,), workers, lambda task: bar.step(step))


def _known(
    chosen: Chosen, kept: Path, models: Path, settings: Predict, workers: int
) -> dict[bytes, Known]:
    if chosen.vectors:
        return {prompt_key(Prompt(text)): Known(v, 0.0) for text, v in chosen.vectors.items()}
    views = [case.view for case in chosen.cases if case.view.text.strip()]
    prompts = [Prompt(cut(view.text, settings.max_chars), view.system) for view in views]
    return vectors_of(prompts, models, settings, kept.with_name("vectors.npz"), workers)


def _row(case: Case, said: Sequence[Forecasts], place: int) -> Row:
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
        for forecasts in said
    )
    return Row(prompt, case.output_tokens, first, better)


def _name(cases: Sequence[Case], models: Path, settings: Predict, learned: int) -> str:
    """What must be the same for kept forecasts to be used again."""
    manifest = (
        (models / "manifest.toml").read_bytes() if (models / "manifest.toml").exists() else b""
    )
    rows = repr([(case.seq, case.source, case.output_tokens) for case in cases]).encode()
    sums = [blake2b(part, digest_size=8).hexdigest() for part in (manifest, rows)]
    parts = [encoder_id(models, settings), *sums, msgspec.json.encode(settings).decode()]
    return " ".join([*parts, f"learned {learned}"] if learned else parts)


def _load(path: Path, name: str) -> list[Forecasts] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["name"]) != name:
                return None
            return [
                Forecasts(*(file[f"{variant}.{array}"] for array in ARRAYS)) for variant in VARIANTS
            ]
    except (OSError, ValueError, KeyError, BadZipFile, EOFError):
        return None


def _save(path: Path, name: str, said: Sequence[Forecasts]) -> None:
    arrays = {
        f"{variant}.{array}": getattr(forecasts, array)
        for variant, forecasts in zip(VARIANTS, said, strict=True)
        for array in ARRAYS
    }
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        np.savez(file, name=np.array(name), **arrays)
    new.replace(path)
