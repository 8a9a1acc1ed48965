"""Lessons handed over to the child, and what it reports of them.

The child stores the rows by itself; what comes back is counts, the calibration, forecasts of
prompts that came twice, and which promised rows are stored. An answer comes at once, before what
it brought is learned, so the child is asked again as long as it owes a report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count

from msgspec import structs

from gateway.predict.lesson import Lesson
from gateway.predict.process.cpu_allowance import learning_share
from gateway.predict.process.pending import PromisedLesson
from gateway.predict.process.supervisor import ChildSupervisor, FaultLog
from gateway.predict.process.wire import (
    ChildError,
    ChildGone,
    FinishLessons,
    LearningReport,
    NotStored,
    StoreLessons,
    TakeLessons,
)
from gateway.predict.stage0 import Stage0

KEEP_EVERY = 200  # lessons after which the calibration is stored anew

RowsWritten = Callable[[int, int, str], object]
"""Gets the numbers of rows stored and lost since the last call, and why the last commit failed
("" where it did not)."""


class Learner:
    """Has the child learn, and takes note of what came of it.

    Args:
        child: the one that learns, while it is open.
        stage0: gets the forecast of a prompt that comes again.
        written: told of rows that the child has stored.
    """

    def __init__(
        self, child: ChildSupervisor, stage0: Stage0, faults: FaultLog, written: RowsWritten
    ) -> None:
        self._child = child
        self._stage0 = stage0
        self._faults = faults
        self._written = written
        self._numbers = count(1)
        self._promises: dict[int, PromisedLesson] = {}  # at the child
        self._waiting = 0  # lessons that wait in the child
        self._cpu_s, self._at_s = time.thread_time(), time.monotonic()
        self._kept = 0  # lessons learned when the calibration was last stored
        self.owing = False  # the child has, or will have, something to report
        self.learned = 0
        self.sampled_out = 0  # of them, the counts alone
        self.lost = 0  # lessons of which nothing was learned

    @property
    def waiting(self) -> int:
        """Lessons that the child has taken in and not learned yet."""
        return self._waiting

    async def hand_over(self, lessons: Sequence[Lesson], cpu_share: float) -> None:
        """Give the child lessons, and take its report.

        Args:
            cpu_share: `predict.cpu_share`.

        Raises:
            ChildGone, ChildError: the lessons are lost, and so are those that waited in a child
                that has gone.
        """
        cut = [self._cut(lesson) for lesson in lessons]
        question = TakeLessons(cut, learning_share(cpu_share, self._loop_share()))
        await self._ask(question, len(lessons))

    async def store(self, promises: Sequence[PromisedLesson]) -> None:
        """Have promised lessons stored and learned. Each gets its result, now or with a later
        report; those whose caller has left are dropped. Raises ChildGone and ChildError."""
        wanted = {next(self._numbers): promise for promise in promises if not promise.stored.done()}
        self._promises |= wanted
        lessons = {number: self._cut(promise.lesson) for number, promise in wanted.items()}
        try:
            await self._ask(StoreLessons(lessons), 0)
        except ChildGone:
            raise  # `child_gone` tells all who wait
        except Exception as error:
            for number in wanted:
                _settle(self._promises.pop(number), error)
            raise

    async def finish(self) -> None:
        """Have the child learn and store all that waits in it. Raises ChildGone, ChildError."""
        await self._ask(FinishLessons(), 0)

    def give_up(
        self, lessons: Sequence[Lesson], promises: Sequence[PromisedLesson], error: Exception
    ) -> None:
        """Count lessons as lost that will not be learned, and report `error` to those who wait."""
        self.lost += len(lessons) + len(promises)
        for promise in promises:
            _settle(promise, error)

    def child_gone(self, error: Exception) -> None:
        """Give up all that waited in a child that has gone. Whether a promised row that was sent to
        it is stored is not known."""
        self.lost += self._waiting
        self._waiting, self.owing = 0, False
        promises, self._promises = self._promises, {}
        self.give_up([], list(promises.values()), error)
        self._tell_of_rows(0, 0, "")  # a reason without a writer would stand for ever

    # --- inside -------------------------------------------------------------------------

    def _cut(self, lesson: Lesson) -> Lesson:
        view = self._stage0.cut(lesson.view)
        return lesson if view is lesson.view else structs.replace(lesson, view=view)

    def _loop_share(self) -> float:
        """Share of a core that this thread, the event loop's, used since the last call."""
        cpu_s, at_s = time.thread_time(), time.monotonic()
        share = (cpu_s - self._cpu_s) / max(at_s - self._at_s, 1e-3)
        self._cpu_s, self._at_s = cpu_s, at_s
        return share

    async def _ask(self, question: TakeLessons | StoreLessons | FinishLessons, sent: int) -> None:
        generation = self._stage0.generation
        try:
            report = (await self._child.ask(question)).report
        except BaseException:
            self.lost += sent
            raise
        assert report is not None
        self._take(report, generation)
        if self.learned - self._kept >= KEEP_EVERY:
            self._kept = self.learned
            await self._child.keep_calibration()

    def _take(self, report: LearningReport, generation: object) -> None:
        self.learned += report.learned
        self.sampled_out += report.sampled_out
        self.lost += report.failed
        self._waiting, self.owing = report.waiting, report.owing
        for repeat in report.repeats:
            self._stage0.remember_as(generation, repeat.key, repeat.workload)
        for number, why in report.stored.items():
            _settle(self._promises.pop(number), NotStored(why) if why else None)
        for number, why in report.drafts_failed.items():
            _settle(self._promises.pop(number), ChildError(why))
        if report.rows or report.lost_rows:
            self._tell_of_rows(report.rows, report.lost_rows, report.store_fault)
        try:
            if report.failed:
                raise ChildError(report.fault or next(iter(report.drafts_failed.values())))
        except ChildError:
            self._faults("learning failed")

    def _tell_of_rows(self, stored: int, lost: int, why: str) -> None:
        try:
            self._written(stored, lost, why)
        except Exception:
            self._faults("learning failed")


def _settle(promise: PromisedLesson, error: Exception | None) -> None:
    if promise.stored.done():
        return  # its caller has left
    if error is None:
        promise.stored.set_result(None)
    else:
        promise.stored.set_exception(error)
