"""Lessons on their way to the child, and the rows it makes of them.

A relayed request is learned at once and its row stored later: after a crash, or while the disk is
full, index and calibration have answers that the history lacks, until the next start fills the
index from it. A row whose storing is acknowledged to a client is drafted, stored, and only then
learned (`Predictor.learn_stored`), so a row that the store refuses is never learned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import structs

from gateway.predict.lesson import Lesson
from gateway.predict.process.pending import BATCH, PendingLesson
from gateway.predict.process.supervisor import ChildSupervisor, FaultLog
from gateway.predict.process.wire import (
    ChildError,
    ChildGone,
    DraftRows,
    LearnLessons,
    MakeForecast,
)
from gateway.predict.prompt_view import PromptView
from gateway.predict.stage0 import CacheKey, Stage0
from gateway.types import HistoryRow

KEEP_EVERY = 200  # lessons after which the calibration is stored anew
REPEATS = 4096  # prompts learned lately, to notice one that comes again
_STOPPED = "the predictor has stopped"


class Learner:
    """Has the child learn, and reports what came of it.

    Args:
        child: the one that learns, while it is open.
        stage0: gets the forecast of a prompt that comes again.
    """

    def __init__(self, child: ChildSupervisor, stage0: Stage0, faults: FaultLog) -> None:
        self._child = child
        self._stage0 = stage0
        self._faults = faults
        self._recent: dict[CacheKey, None] = {}  # prompts learned lately, oldest first
        self.learned = 0
        self.learned_briefly = 0
        self.lost = 0  # lessons of which nothing was learned

    async def take_in(self, batch: Sequence[PendingLesson]) -> None:
        """Learn a batch, or draft its rows. Cancelled, it gives up what it has not reported.

        Raises:
            ChildGone: after it was passed to every caller that waits, too.
        """
        drafts = [pending for pending in batch if pending.draft]
        lessons = [pending for pending in batch if not pending.draft]
        try:
            drafted = await self._draft(drafts)  # first: a caller waits for it
        except asyncio.CancelledError:
            self.give_up(lessons, ChildGone(_STOPPED))
            raise
        for row in drafted + await self._learn(lessons, brief=len(batch) > BATCH):
            if isinstance(row, ChildGone):
                raise row

    def give_up(self, batch: Sequence[PendingLesson], error: Exception) -> None:
        """Report `error` for lessons that will not be learned."""
        for pending in batch:
            self._finish(pending, error)

    def forget(self) -> None:
        """Forget which prompts were learned lately."""
        self._recent.clear()

    async def _learn(
        self, batch: list[PendingLesson], *, brief: bool
    ) -> list[HistoryRow | Exception]:
        generation = self._stage0.generation
        lessons = [self._cut(pending, brief=brief) for pending in batch]
        rows = await self._rows_of(LearnLessons(lessons), batch)
        self.learned_briefly += brief * len(batch)
        for pending, row in zip(batch, rows, strict=True):
            self._finish(pending, row)
        for lesson, row in zip(lessons, rows, strict=True):
            if isinstance(row, HistoryRow) and not lesson.running:
                await self._count(None if brief else generation, lesson.view)
        return rows

    async def _draft(self, batch: list[PendingLesson]) -> list[HistoryRow | Exception]:
        rows = await self._rows_of(DraftRows([self._cut(pending) for pending in batch]), batch)
        for pending, row in zip(batch, rows, strict=True):
            self._finish(pending, row)
        return rows

    def _cut(self, pending: PendingLesson, *, brief: bool = False) -> Lesson:
        lesson = pending.lesson
        return structs.replace(lesson, view=self._stage0.cut(lesson.view), brief=brief)

    async def _rows_of(
        self, question: LearnLessons | DraftRows, batch: Sequence[PendingLesson]
    ) -> list[HistoryRow | Exception]:
        """The row of each lesson, or its error; what fails for all is the error of each."""
        if not question.lessons:
            return []
        try:
            rows = (await self._child.ask(question)).rows
            return [ChildError(row) if isinstance(row, str) else row for row in rows]
        except asyncio.CancelledError:
            self.give_up(batch, ChildGone(_STOPPED))
            raise
        except Exception as error:
            return [error] * len(question.lessons)

    def _finish(self, pending: PendingLesson, row: HistoryRow | Exception) -> None:
        """Count what came of a lesson, and report it to the caller."""
        try:
            if isinstance(row, Exception):
                self.lost += 1
                if not isinstance(row, ChildGone):
                    raise row
        except Exception:
            self._faults("learning failed")
        try:
            if pending.done is not None:
                pending.done(row)
        except Exception:
            self._faults("the caller of a lesson failed")

    async def _count(self, generation: object | None, view: PromptView) -> None:
        self.learned += 1
        if self.learned % KEEP_EVERY == 0:
            await self._child.keep_calibration()
        try:
            if generation is not None:
                await self._prepare_repeat(generation, view)
        except ChildGone:
            raise
        except Exception:
            self._faults("a repeat was not prepared")

    async def _prepare_repeat(self, generation: object, view: PromptView) -> None:
        """Have the forecast of a prompt that is learned for the second time ready in stage 0's
        cache. For one that came once this would be the most expensive part of learning it."""
        key = self._stage0.cache_key(view)
        if key in self._recent:
            workload = (await self._child.ask(MakeForecast(view))).workload
            assert workload is not None
            self._stage0.remember(generation, view, workload)
        self._recent[key] = None
        if len(self._recent) > REPEATS:
            self._recent.pop(next(iter(self._recent)))
