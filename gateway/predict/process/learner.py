"""From results to lessons: what the predictor thread does with the answers it is told of.

Two ways to learn. A relayed request is learned at once and its row stored when it may be: best
effort, so after a crash, or while the disk is full, index and calibration know of answers that
history does not, until the next start, when the index is what history is. A row that somebody
is promised (`Result.keep`) is drafted, stored, and only then learned: refused, it was never
known.

Who owns what. All of it is the predictor thread's; any thread may read what has no underscore,
for people. `_settle` alone runs on another one, whichever stores rows: it reads and writes no
state here, but puts the result back into the inbox, or tells whoever waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from msgspec import structs

from gateway.errors import Unavailable
from gateway.predict.lesson import Lesson
from gateway.predict.process.backend import BackendGone
from gateway.predict.process.backends import Backends
from gateway.predict.process.faults import Faults
from gateway.predict.process.inbox import BATCH, Result
from gateway.predict.stage0 import CacheKey, Stage0
from gateway.predict.view import PromptView
from gateway.types import HistoryRow

KEEP_EVERY = 200  # lessons after which the calibration is stored anew
REPEATS = 4096  # prompts learned lately, to know one that comes again
_FULL = "The history takes no more rows now."


class Learner:
    """Has a backend learn, and tells whoever waits what came of it.

    Args:
        backends: whose open one learns.
        stage0: is told the forecast of a prompt that comes again.
        settle: puts a result back whose row is stored (`Inbox.settle`); any thread.
    """

    def __init__(
        self,
        backends: Backends,
        stage0: Stage0,
        settle: Callable[[Result], bool],
        faults: Faults,
    ) -> None:
        self._backends = backends
        self._stage0 = stage0
        self._put_back = settle
        self._faults = faults
        self._seen: dict[CacheKey, None] = {}  # prompts learned lately, oldest first
        self.lessons = 0
        self.learned_briefly = 0
        self.lost = 0  # results of which nothing was learned

    def take_in(self, results: Sequence[Result]) -> None:
        """Learn from them, or have their rows stored first. Raises BackendGone, once all of
        them are told."""
        lessons, drafts = [], []
        for result in results:
            if result.keep is not None:
                drafts.append(result)
            elif result.stored is not None and result.life != self._backends.life:
                # The backend opened since was filled from history, which had the row by then.
                self._hear(result, result.stored)
            else:
                lessons.append(result)
        brief = len(results) > BATCH
        drafted = self._draft(drafts)  # first: it does not raise, and somebody waits for it
        for row in drafted + self._learn(lessons, brief):
            if isinstance(row, BackendGone):
                raise row

    def give_up(self, results: Sequence[Result], error: Exception) -> None:
        """Nobody learns from them."""
        for result in results:
            self._tell(result, error)

    def forget(self) -> None:
        """No prompt was learned lately."""
        self._seen.clear()

    def _learn(self, results: list[Result], brief: bool) -> list[HistoryRow | Exception]:
        generation = self._stage0.generation
        lessons = [self._lesson(result, brief) for result in results]
        rows = self._rows_of(lessons)
        self.learned_briefly += brief * len(results)
        for result, row in zip(results, rows, strict=True):
            self._tell(result, row)
        for lesson, row in zip(lessons, rows, strict=True):
            if isinstance(row, HistoryRow) and not lesson.running:
                self._count(None if brief else generation, lesson.view)
        return rows

    def _draft(self, results: list[Result]) -> list[HistoryRow | Exception]:
        """Have the rows stored; their lessons come again when they are."""
        rows = self._rows_of([self._lesson(result) for result in results], draft=True)
        for result, row in zip(results, rows, strict=True):
            if isinstance(row, Exception):
                self._tell(result, row)
                continue
            keep = result.keep
            again = structs.replace(result, keep=None, stored=row, life=self._backends.life)
            assert keep is not None
            try:
                kept = keep(row, partial(self._settle, again))
            except Exception as error:
                self._tell(result, error)
            else:
                if not kept:
                    self._hear(result, Unavailable(_FULL, code="busy", retry_after_s=1.0))
        return rows

    def _settle(self, result: Result, error: Exception | None) -> None:
        """A drafted row is stored, or not. Called by whoever stores."""
        if error is not None:
            self._hear(result, error)
        elif not self._put_back(result):
            assert result.stored is not None
            self._hear(result, result.stored)  # closing: the next start reads it

    def _lesson(self, result: Result, brief: bool = False) -> Lesson:
        lesson = result.lesson
        return structs.replace(lesson, view=self._stage0.cut(lesson.view), brief=brief)

    def _rows_of(
        self, lessons: list[Lesson], *, draft: bool = False
    ) -> list[HistoryRow | Exception]:
        """Does not raise: what fails for all of them is the answer for each."""
        if not lessons:
            return []
        try:
            backend = self._backends.current
            rows = backend.draft(lessons) if draft else backend.learn(lessons)
            self._backends.publish()
        except Exception as error:
            return [error] * len(lessons)
        return rows

    def _tell(self, result: Result, row: HistoryRow | Exception) -> None:
        """What came of it, to whoever asked for it; a fault is counted. What is stored is kept
        whatever came of the lesson: the next backend reads it."""
        try:
            if isinstance(row, Exception):
                self.lost += 1
                if not isinstance(row, BackendGone):
                    raise row
        except Exception:
            self._faults("learning failed")
        self._hear(result, row if result.stored is None else result.stored)

    def _hear(self, result: Result, row: HistoryRow | Exception) -> None:
        try:
            if result.done is not None:
                result.done(row)
        except Exception:
            self._faults("whoever waited for a lesson failed")

    def _count(self, generation: object | None, view: PromptView) -> None:
        self.lessons += 1
        if self.lessons % KEEP_EVERY == 0:
            self._backends.keep_calibration()
        try:
            if generation is not None:
                self._remember_repeat(generation, view)
        except BackendGone:
            raise
        except Exception:
            self._faults("a repeat was not prepared")

    def _remember_repeat(self, generation: object, view: PromptView) -> None:
        """A prompt learned for the second time comes again: have its forecast ready on the loop.
        For one that came once this would be the dearest part of learning it."""
        key = self._stage0.cache_key(view)
        if key in self._seen:
            self._stage0.tell(generation, view, self._backends.current.forecast(view))
        self._seen[key] = None
        if len(self._seen) > REPEATS:
            self._seen.pop(next(iter(self._seen)))
