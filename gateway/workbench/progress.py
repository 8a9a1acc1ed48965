"""Work spread over a few processes, and a line on the terminal that shows its progress.

Processes are started afresh (`spawn`): a fork would inherit the threads of FAISS and ONNX Runtime
in whatever state they are in. With one worker everything runs in this process, the same way.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, TextIO, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

BAR = 30
QUIET_STEP = 0.1  # share between two lines where the stream is no terminal


def spread(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    begin: Callable[..., None],
    arguments: tuple[Any, ...],
    workers: int,
    done: Callable[[Job], None],
) -> list[Result]:
    """Results of `work` in the order of `jobs`; the first error of a job ends all and is raised.

    `work`, `begin` and their arguments must be importable and picklable.

    Args:
        begin: called with `arguments` once in each process, before its first job.
        done: called in this process with each job that has ended.
    """
    if workers <= 1 or len(jobs) <= 1:
        begin(*arguments)
        found = []
        for job in jobs:
            found.append(work(job))
            done(job)
        return found
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), get_context("spawn"), initializer=begin, initargs=arguments
    )
    try:
        futures: dict[Future[Result], Job] = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(futures):
            future.result()
            done(futures[future])
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Progress:
    """A line `label [#####.....] 12/40, 8 s left`.

    It is redrawn on a terminal; elsewhere a new line is written at each tenth.
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
