"""Work spread over a few processes, a line that shows its progress, and files of its results.

Processes are started afresh (`spawn`): a fork would inherit the threads of FAISS and ONNX Runtime
in whatever state they are in. With one worker everything runs in this process, the same way.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TextIO, TypeVar
from zipfile import BadZipFile

import numpy as np

State = TypeVar("State")
Job = TypeVar("Job")
Result = TypeVar("Result")

BAR = 30
QUIET_STEP = 0.1  # share between two lines where the stream is no terminal

_state: Any = None  # of a worker process


def spread(
    label: str,
    work: Callable[[State, Job], Result],
    jobs: Sequence[Job],
    prepare: Callable[..., State],
    arguments: tuple[Any, ...],
    workers: int,
    size: Callable[[Job], int] = lambda job: 1,
) -> list[Result]:
    """Results of `work` in the order of `jobs`; the first error of a job ends all and is raised.

    `work`, `prepare` and their arguments must be importable and picklable.

    Args:
        label: of the progress line.
        prepare: called with `arguments` once in each process; its result is handed to `work`.
        size: the steps of the progress line that a job counts for.
    """
    bar = Progress(label, sum(map(size, jobs)))
    if workers <= 1 or len(jobs) <= 1:
        state, found = prepare(*arguments), []
        for job in jobs:
            found.append(work(state, job))
            bar.step(size(job))
        return found
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        get_context("spawn"),
        initializer=_begin,
        initargs=(prepare, arguments),
    )
    try:
        futures: dict[Future[Result], Job] = {pool.submit(_run, work, job): job for job in jobs}
        for future in as_completed(futures):
            future.result()
            bar.step(size(futures[future]))
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(prepare: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    global _state
    _state = prepare(*arguments)


def _run(work: Callable[[Any, Job], Result], job: Job) -> Result:
    return work(_state, job)


class Progress:
    """A line `label [#####.....] 12/40, 8 s left`.

    The line is redrawn on a terminal; elsewhere a new one is written at each tenth.
    """

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        self._label, self._total = label, max(total, 1)
        self._stream = stream or sys.stderr
        self._redraws = self._stream.isatty()
        self._started = time.monotonic()
        self._done = 0
        self._shown = 0.0

    def step(self, by: int = 1) -> None:
        """Count so many more as done."""
        self._done += by
        share = min(self._done / self._total, 1.0)
        if not self._redraws and share < 1.0 and share < self._shown + QUIET_STEP:
            return
        self._shown = share
        took = time.monotonic() - self._started
        filled = round(BAR * share)
        left = f"{took:.0f} s" if share == 1.0 else f"{took / share - took:.0f} s left"
        line = f"{self._label:10} [{'#' * filled}{'.' * (BAR - filled)}]"
        line += f" {self._done}/{self._total}, {left}"
        end = "\n" if share == 1.0 or not self._redraws else ""
        self._stream.write(f"\r{line:78}{end}" if self._redraws else f"{line}{end}")
        self._stream.flush()


def save_arrays(path: Path, name: str, arrays: Mapping[str, Any]) -> None:
    """Write named arrays to a .npz file; a reader never sees half of it."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        np.savez(file, name=np.array(name), **arrays)
    new.replace(path)


def load_arrays(path: Path, name: str, keys: Sequence[str]) -> list[Any] | None:
    """Arrays of a file that `save_arrays` wrote under this name; None of any other file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[key] for key in keys] if str(file["name"]) == name else None
    except (OSError, ValueError, KeyError, BadZipFile, EOFError):
        return None
