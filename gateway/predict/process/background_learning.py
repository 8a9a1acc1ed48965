"""Learning in the predictor's child, between the questions that it answers.

Lessons are taken in, and learned one at a time while no question waits and the allowance of CPU
time lasts; of those for which there is no time a fair sample is learned and of the others the
counts alone. Their rows are committed once a tick. What a kill of the child costs: the frame of
lessons on its way to it, those that wait here (at most `ROOM`), and the rows learned since the last
commit. None of them was acknowledged to anybody.

A row whose storing somebody waits for is drafted, committed, and learned only then, so one that
the store refuses is never learned.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from random import Random
from typing import Protocol, TypeVar

from msgspec import Struct

from gateway.predict.lesson import Lesson
from gateway.predict.process.cpu_allowance import CpuAllowance
from gateway.predict.process.reservoir import LessonReservoir
from gateway.predict.process.wire import LearningReport, Repeat
from gateway.predict.stage0 import CacheKey, cache_key
from gateway.predict.teaching import LearningForecaster
from gateway.types import HistoryRow

A = TypeVar("A")
R = TypeVar("R")
ROOM = 32  # lessons that wait: what a busy gateway lets be learned in a second
REPEATS = 4096  # prompts learned lately, to notice one that comes again
COMMIT_WAIT_S = 0.1  # for the disk; beyond it questions are answered meanwhile
COMMITS = 256  # under way, half a minute's beside a disk that hangs; beyond, rows are refused


class RowWriter(Protocol):
    """Commits history rows: the gateway's is `HistoryWriter`."""

    def put(self, batch: Sequence[HistoryRow]) -> Future[int]:
        """Begin to commit rows; their number, or the error for which none of them is stored."""
        ...

    def close(self) -> None:
        """Commit what was given; blocks."""
        ...


class NoHistory:
    """Refuses every row: of a gateway without a store, or with one that cannot be opened."""

    def __init__(self, why: str) -> None:
        self._why = why

    def put(self, batch: Sequence[HistoryRow]) -> Future[int]:
        """Refuse the rows."""
        refused: Future[int] = Future()
        refused.set_exception(OSError(self._why))
        return refused

    def close(self) -> None:
        """Do nothing."""


_TOO_SLOW = NoHistory("the store is too slow")


class _Commit(Struct):
    """Rows on their way to the disk."""

    future: Future[int]
    rows: int
    promised: dict[int, Lesson]


class BackgroundLearning:
    """Lessons that wait, and what is still to be reported of those learned.

    Args:
        forecaster: learns.
        key: of the prompt hash.
        history: stores the rows.
        chance: draws which lessons are learned where there is no time for all.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        forecaster: LearningForecaster,
        key: bytes,
        history: RowWriter,
        chance: Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._forecaster = forecaster
        self._key = key
        self._history = history
        self._waiting = LessonReservoir(ROOM, chance)
        self._allowance = CpuAllowance(clock)
        self._cpu_s = time.process_time()
        self._rows: list[HistoryRow] = []
        self._commits: list[_Commit] = []
        self._recent: dict[CacheKey, None] = {}  # prompts learned lately, oldest first
        self._report = LearningReport()

    def take_in(self, lessons: Sequence[Lesson], cpu_share: float) -> None:
        """Take lessons in, and commit the rows of those learned."""
        self._allowance.change(cpu_share)
        for lesson in lessons:
            left_out = self._waiting.add(lesson)
            if left_out is not None:
                self._try(self._forecaster.learn_counts, left_out)
                self._report.sampled_out += 1
        self._commit()
        self._charge()

    def store(self, lessons: Mapping[int, Lesson]) -> None:
        """Store the rows of lessons, and learn these once they are stored."""
        rows, drafted = [], {}
        for number, lesson in lessons.items():
            try:
                rows.append(self._forecaster.draft(lesson))
                drafted[number] = lesson
            except Exception as error:
                self._report.failed += 1
                self._report.drafts_failed[number] = described(error)
        if rows:
            self._put(rows, drafted)

    def step(self) -> float | None:
        """Learn one lesson where the allowance lets; seconds until the next may be learned, None
        where none waits."""
        if self._commits:
            self._settle(0.0)
        self._charge()
        wait_s = self._allowance.wait_s()
        if wait_s == 0.0 and (lesson := self._waiting.take()) is not None:
            self._learn(lesson)
            self._charge()
        if not self._waiting:
            return COMMIT_WAIT_S if self._commits else None
        return wait_s

    def excuse(self) -> None:
        """Charge nothing for what this process has done until now: it made forecasts."""
        self._cpu_s = time.process_time()

    def finish(self) -> None:
        """Learn all that waits, and wait until the rows are stored."""
        while (lesson := self._waiting.take()) is not None:
            self._learn(lesson)
        self._commit()
        self._settle(None)

    def forget(self) -> None:
        """Drop the lessons that wait, and what was made ready of those learned."""
        self._waiting.clear()
        self.forget_repeats()

    def forget_repeats(self) -> None:
        """Drop the forecasts that are ready: they are of other models or settings."""
        self._recent.clear()
        self._report.repeats.clear()

    def close(self) -> None:
        """Commit the rows that are left. Blocks."""
        self._commit()
        self._history.close()

    def report(self) -> LearningReport:
        """Account of what happened since the last call."""
        report, self._report = self._report, LearningReport()
        report.waiting = len(self._waiting)
        report.owing = bool(self._waiting or self._rows or self._commits)
        return report

    # --- inside -------------------------------------------------------------------------

    def _charge(self) -> None:
        """Take off the allowance what this process, the thread of commits included, has used."""
        before_s, self._cpu_s = self._cpu_s, time.process_time()
        self._allowance.spend(self._cpu_s - before_s)

    def _learn(self, lesson: Lesson) -> None:
        row = self._try(self._forecaster.learn, lesson)
        if row is None:
            return
        self._report.learned += 1
        if not lesson.running:
            self._rows.append(row)
            self._prepare_repeat(lesson)

    def _prepare_repeat(self, lesson: Lesson) -> None:
        """Have the forecast of a prompt that is learned for the second time ready. For one that
        came once this would be the most expensive part of learning it."""
        key = cache_key(lesson.view, self._key)
        if key in self._recent:
            workload = self._try(self._forecaster.forecast, lesson.view)
            if workload is not None:
                self._report.repeats.append(Repeat(key, workload))
        self._recent[key] = None
        if len(self._recent) > REPEATS:
            self._recent.pop(next(iter(self._recent)))

    def _try(self, call: Callable[[A], R], argument: A) -> R | None:
        """The call's result; None where it failed, which is counted."""
        try:
            return call(argument)
        except Exception as error:
            self._report.failed += 1
            self._report.fault = described(error)
            return None

    def _commit(self) -> None:
        """Begin to store the rows there are, and look after earlier ones."""
        if self._rows:
            rows, self._rows = self._rows, []
            self._put(rows, {})
        else:
            self._settle(0.0)

    def _put(self, rows: Sequence[HistoryRow], promised: dict[int, Lesson]) -> None:
        """Begin to store rows; wait for it where no earlier ones keep the disk busy."""
        self._settle(0.0)
        behind = len(self._commits)
        history = self._history if behind < COMMITS else _TOO_SLOW
        self._commits.append(_Commit(history.put(rows), len(rows), promised))
        self._settle(0.0 if behind else COMMIT_WAIT_S)

    def _settle(self, timeout_s: float | None) -> None:
        """Wait for the commits under way, and take note of those that have ended."""
        commits, self._commits = self._commits, []
        ended = wait([one.future for one in commits], timeout_s).done if commits else set()
        for one in commits:
            if one.future in ended:
                self._note(one)
            else:
                self._commits.append(one)

    def _note(self, commit: _Commit) -> None:
        """Report the end of a commit; what was promised and is stored is learned."""
        report, error = self._report, commit.future.exception()
        if error is None:
            report.rows += commit.rows
            report.store_fault = ""
        else:
            report.lost_rows += commit.rows
            report.store_fault = str(error)
        for number, lesson in commit.promised.items():
            report.stored[number] = report.store_fault
            if error is None and self._try(self._forecaster.learn, lesson) is not None:
                report.learned += 1


def described(error: Exception) -> str:
    """A traceback: lines of code and the error's kind, no prompt."""
    return "".join([*traceback.format_tb(error.__traceback__)[-6:], type(error).__name__])
