"""Rows in order: each is forecast first and learned after, so its truth is never seen before.

In a strict replay a row is learned before the next one is forecast. With `in_flight` = n it is
learned only after n later rows were forecast, as in a gateway where answers take time.

A replay is one task for one process: a variant over all rows, or over the rows of a scenario:

- `apart`: a source that no shipped model was fitted on, alone and from an empty history, to see
  what its first rows teach about the later ones;
- `young`: all rows in blocks, each through a forecaster that has learned `learned` other rows
  and no more, as a gateway's in its first hour;
- `drift`: a source whose answers double in length for the last 300 rows, to see how soon the
  p90 covers them again; `no drift`: the same rows as they were.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct, structs

from gateway.predict.prompt_view import cut
from gateway.settings.schema import Predict
from gateway.types import QUANTILE_LEVELS, Rung
from gateway.workbench.evaluate.judged_rows import Case, JudgedRows
from gateway.workbench.evaluate.variants import CaseForecaster, forecaster
from gateway.workbench.evaluate.vectors import (
    Prompt,
    PromptVector,
    RecordedEncoder,
    load_artefacts,
    prompt_key,
    vectors_of,
)
from gateway.workbench.figures import Flags, Floats

Kind = Literal["all", "apart", "drift", "no drift", "young"]

RUNGS = tuple(Rung)
DRIFT_ROWS = 300
BLOCK = 400  # rows that one young forecaster forecasts
DRIFT_BEFORE = 700  # most rows before the doubling


class ReplayTask(Struct, frozen=True):
    """A variant over some rows."""

    variant: str
    kind: Kind = "all"
    source: str = ""  # of a scenario
    learned: int = 0  # rows learned before a block of "young"


class ForecastTable(Struct, frozen=True):
    """A variant's forecasts, a value per row, and the time they took without the encoder."""

    grid: Floats  # output tokens at QUANTILE_LEVELS
    p_short: Floats
    risk: Floats
    confidence: Floats
    rung: npt.NDArray[np.int8]  # place in RUNGS
    seconds: Floats  # of CPU, so that other programs do not count

    def at(self, rows: Flags) -> ForecastTable:
        """The forecasts of some rows."""
        return ForecastTable(*(getattr(self, name)[rows] for name in self.__struct_fields__))


def replay(cases: Sequence[Case], by: CaseForecaster, in_flight: int = 0) -> ForecastTable:
    """Forecast and learn all cases with one forecaster."""
    count = len(cases)
    out = ForecastTable(
        grid=np.empty((count, len(QUANTILE_LEVELS))),
        p_short=np.empty(count),
        risk=np.empty(count),
        confidence=np.empty(count),
        rung=np.empty(count, np.int8),
        seconds=np.empty(count),
    )
    running: deque[Case] = deque()
    for i, case in enumerate(cases):
        while len(running) > in_flight:
            by.learn(running.popleft())
        started = time.thread_time()
        workload = by.forecast(case)
        out.seconds[i] = time.thread_time() - started
        out.grid[i] = workload.grid
        out.p_short[i], out.risk[i] = workload.p_short, workload.risk
        out.confidence[i] = workload.confidence
        out.rung[i] = RUNGS.index(workload.rung)
        running.append(case)
    return out


def replay_young(
    cases: Sequence[Case], fresh: Callable[[], CaseForecaster], learned: int, in_flight: int
) -> ForecastTable:
    """Forecast each case after `learned` others, drawn at random, and those of its block before it.

    Args:
        fresh: makes a forecaster that has learned nothing.
    """
    chance = np.random.default_rng(17)
    order = chance.permutation(len(cases))
    parts = []
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK].tolist()
        others = np.setdiff1d(order, block)
        by = fresh()
        for place in chance.permutation(others)[:learned].tolist():
            by.learn(cases[place])
        parts.append(replay([cases[place] for place in block], by, in_flight))
    back = np.argsort(order)
    return ForecastTable(
        *(
            np.concatenate([getattr(part, name) for part in parts])[back]
            for name in ForecastTable.__struct_fields__
        )
    )


def doubled(case: Case) -> Case:
    """The case with an answer, and a limit, twice as long."""
    limit = case.view.max_tokens
    view = structs.replace(case.view, max_tokens=limit and 2 * limit)
    return structs.replace(case, view=view, output_tokens=2 * case.output_tokens)


def drifting(cases: Sequence[Case], source: str, *, drifts: bool = True) -> list[Case]:
    """The last rows of a source, the final DRIFT_ROWS of them doubled."""
    own = [case for case in cases if case.source == source][-DRIFT_BEFORE - DRIFT_ROWS :]
    if not drifts:
        return own
    return own[:-DRIFT_ROWS] + [doubled(case) for case in own[-DRIFT_ROWS:]]


def case_vectors(
    chosen: JudgedRows,
    cases: Iterable[Case],
    models: Path,
    settings: Predict,
    path: Path,
    workers: int,
) -> dict[bytes, PromptVector]:
    """Vectors of these cases by `prompt_key`: those of a history, or of texts by `vectors_of`."""
    if chosen.vectors:
        return {prompt_key(Prompt(t)): PromptVector(v, 0.0) for t, v in chosen.vectors.items()}
    views = [case.view for case in cases if case.view.text.strip()]
    prompts = [Prompt(cut(view.text, settings.max_chars), view.system) for view in views]
    return vectors_of(prompts, models, settings, path, workers)


class ReplayInputs(Struct, frozen=True):
    """Everything that a process needs to replay any task."""

    cases: tuple[Case, ...]
    apart: Mapping[str, tuple[Case, ...]]
    models: Path
    settings: Predict
    vectors: Mapping[bytes, PromptVector]  # by prompt_key
    has_text: bool
    in_flight: int

    def rows(self, task: ReplayTask) -> Sequence[Case]:
        """The task's cases, in order."""
        if task.kind in ("all", "young"):
            return self.cases
        if task.kind == "apart":
            return self.apart[task.source]
        return drifting(self.cases, task.source, drifts=task.kind == "drift")


class PreparedReplay:
    """Inputs of the replays, with the models loaded and an encoder that looks the vectors up."""

    def __init__(self, inputs: ReplayInputs) -> None:
        self.inputs = inputs
        self.artefacts, encoder = load_artefacts(inputs.models, inputs.settings)
        limit = inputs.settings.max_encoder_tokens
        self.artefacts.encoder = RecordedEncoder(inputs.vectors, encoder.width, limit, encoder)


def replay_task(prepared: PreparedReplay, task: ReplayTask) -> ForecastTable:
    """Replay one task, in a process that is prepared."""
    inputs = prepared.inputs

    def fresh() -> CaseForecaster:
        return forecaster(
            task.variant, inputs.settings, prepared.artefacts, has_text=inputs.has_text
        )

    if task.kind == "young":
        return replay_young(inputs.cases, fresh, task.learned, inputs.in_flight)
    return replay(inputs.rows(task), fresh(), inputs.in_flight)
