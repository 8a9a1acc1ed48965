"""Rows in order: forecast first, learn after. The truth of a row is shown to nobody before.

In a strict replay a row is learned before the next is forecast. With `in_flight` = n it is
learned only after n later rows were forecast, as in a gateway where answers take time.

A replay is one job for one process: a variant over all rows, or over the rows of a scenario:

- `apart`: a source that no shipped model was fitted on, alone and from nothing, to see what
  its first rows teach about the later ones;
- `young`: all rows in blocks, each through a forecaster that has learned `learned` other rows
  and no more, as a gateway's in its first hour;
- `drift`: a source whose answers double in length for the last 300 rows, to see how soon the
  p90 covers them again; beside it the same rows as they were.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct, structs

from gateway.predict.artefacts import Artefacts
from gateway.predict.encoder import exported_folder
from gateway.settings.schema import Predict
from gateway.types import QUANTILE_LEVELS, Rung
from gateway.workbench.evaluate.judged_rows import Case
from gateway.workbench.evaluate.variants import Forecaster, forecaster
from gateway.workbench.evaluate.vectors import Known, Recalled
from gateway.workbench.figures import Flags, Floats

Kind = Literal["all", "apart", "drift", "no drift", "young"]

RUNGS = tuple(Rung)
DRIFT_ROWS = 300
BLOCK = 400  # rows forecast by one young forecaster
DRIFT_BEFORE = 700  # at most so many undoubled rows go before


class Task(Struct, frozen=True):
    """A variant over some rows."""

    variant: str
    kind: Kind = "all"
    source: str = ""  # of a scenario
    learned: int = 0  # rows before a block of "young"


class Forecasts(Struct, frozen=True):
    """What a variant said of each row, and how long it took without the encoder."""

    grid: Floats  # output tokens at QUANTILE_LEVELS
    p_short: Floats
    risk: Floats
    confidence: Floats
    rung: npt.NDArray[np.int8]  # place in RUNGS
    seconds: Floats  # of CPU: another program's work on the machine is no part of them

    def at(self, rows: Flags) -> Forecasts:
        """Those of some rows."""
        return Forecasts(*(getattr(self, name)[rows] for name in self.__struct_fields__))


def replay(cases: Sequence[Case], by: Forecaster, in_flight: int = 0) -> Forecasts:
    """All cases through one forecaster."""
    count = len(cases)
    out = Forecasts(
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
    cases: Sequence[Case], fresh: Callable[[], Forecaster], learned: int, in_flight: int
) -> Forecasts:
    """Each case by a forecaster that knows `learned` others, drawn at random, and those of its
    block before it. Results in the order of `cases`."""
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
    return Forecasts(
        *(
            np.concatenate([getattr(part, name) for part in parts])[back]
            for name in Forecasts.__struct_fields__
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


class Bench(Struct, frozen=True):
    """All that a process needs to replay any task."""

    cases: tuple[Case, ...]
    apart: Mapping[str, tuple[Case, ...]]
    models: Path
    settings: Predict
    known: Mapping[bytes, Known]  # what the encoder said, by prompt_key
    width: int
    has_text: bool
    in_flight: int

    def artefacts(self) -> Artefacts:
        """Loaded, with an encoder that only remembers."""
        name, cap = self.settings.embedding_model_name, self.settings.max_encoder_tokens
        exported = exported_folder(self.settings.models_path)
        whole = Artefacts(self.models, name, cap, exported=exported)
        whole.encoder = Recalled(self.known, self.width, cap, reader=whole.encoder)
        return whole

    def rows(self, task: Task) -> Sequence[Case]:
        if task.kind in ("all", "young"):
            return self.cases
        if task.kind == "apart":
            return self.apart[task.source]
        return drifting(self.cases, task.source, drifts=task.kind == "drift")

    def run(self, task: Task, whole: Artefacts) -> Forecasts:
        def fresh() -> Forecaster:
            return forecaster(task.variant, self.settings, whole, has_text=self.has_text)

        if task.kind == "young":
            return replay_young(self.cases, fresh, task.learned, self.in_flight)
        return replay(self.rows(task), fresh(), self.in_flight)


_bench: tuple[Bench, Artefacts] | None = None  # of this process


def begin(bench: Bench) -> None:
    """Prepare this process for `work`."""
    global _bench
    _bench = bench, bench.artefacts()


def work(task: Task) -> Forecasts:
    """One task, in a process that was prepared."""
    assert _bench is not None
    bench, whole = _bench
    return bench.run(task, whole)
