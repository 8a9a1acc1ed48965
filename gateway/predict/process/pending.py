"""Work that waits for the predictor's child: forecasts asked for, and lessons.

Forecasts come first, since a request may wait for one. Lessons are handed out in batches, since
each batch costs the event loop a message to the child and one back, whatever its size. So lessons
wait a moment to become a batch, unless a caller waits for one of them; while their queue is over
half full, batches are larger and `Learner` has them learned in brief.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from msgspec import Struct

from gateway.predict.lesson import Lesson
from gateway.predict.prompt_view import PromptView
from gateway.types import HistoryRow, Workload

BATCH = 8  # lessons at once: some 50 ms of work, for which a forecast may have to wait
FLOOD_BATCH = 64  # in a flood: as long, if each is learned briefly
SPARED = 2  # of a batch, for lessons without a waiting caller
LINGER_S = 0.1

Learned = Callable[[HistoryRow | Exception], None]


class PendingForecast(Struct, frozen=True):
    """A forecast that was asked for."""

    view: PromptView
    done: Callable[[Workload], None]
    wanted: Callable[[], bool]


class PendingLesson(Struct, frozen=True):
    """A lesson to be learned, or to be drafted: only its row is made."""

    lesson: Lesson
    done: Learned | None  # gets the row, or the error that kept it from being made
    urgent: bool = False  # a caller waits for it
    draft: bool = False


class PendingWork:
    """Two bounded queues. The clock is the caller's, in seconds."""

    def __init__(self) -> None:
        self._forecasts: deque[PendingForecast] = deque()
        self._lessons: deque[PendingLesson] = deque()
        self._urgent: deque[PendingLesson] = deque()  # first, and with a bound of their own
        self._room = 0  # for lessons
        self._since_s = 0.0  # when the first of `_lessons` came
        self._closed = False

    def __repr__(self) -> str:
        return f"<PendingWork forecasts={self.forecasts} lessons={self.lessons}>"

    @property
    def forecasts(self) -> int:
        return len(self._forecasts)

    @property
    def lessons(self) -> int:
        return len(self._lessons) + len(self._urgent)

    @property
    def empty(self) -> bool:
        return not self._forecasts and not self.lessons

    def add_forecast(self, forecast: PendingForecast, room: int) -> bool:
        """Queue a forecast; False where `room` of them wait already, or the queue is closed."""
        taken = not self._closed and len(self._forecasts) < room
        if taken:
            self._forecasts.append(forecast)
        return taken

    def add_lesson(self, lesson: PendingLesson, room: int, now_s: float) -> bool:
        """Queue a lesson; False where `room` of its kind, urgent or not, wait already, or the
        queue is closed."""
        queue = self._urgent if lesson.urgent else self._lessons
        self._room = room
        taken = not self._closed and len(queue) < room
        if taken:
            queue.append(lesson)
            if len(self._lessons) == 1:
                self._since_s = now_s
        return taken

    def put_back(self, lesson: PendingLesson) -> bool:
        """Queue a lesson that was drafted, whatever waits: it was taken once. False where the
        queue is closed."""
        if not self._closed:
            self._urgent.append(lesson)
        return not self._closed

    def close(self) -> None:
        """Drop the forecasts and take nothing more; lessons no longer linger."""
        self._closed = True
        self._forecasts.clear()

    def abandon(self) -> list[PendingLesson]:
        """Drop the forecasts; take out all lessons."""
        self._forecasts.clear()
        left = [*self._urgent, *self._lessons]
        self._urgent.clear()
        self._lessons.clear()
        return left

    def due_s(self) -> float | None:
        """Time from which `take` has something; None where nothing waits."""
        if self._forecasts or self._urgent or len(self._lessons) >= BATCH:
            return 0.0
        if not self._lessons:
            return None
        return 0.0 if self._closed else self._since_s + LINGER_S

    def take(self, now_s: float) -> PendingForecast | list[PendingLesson] | None:
        """Take out the next forecast or batch of lessons; None where nothing is due."""
        if self._forecasts:
            return self._forecasts.popleft()
        due_s = self.due_s()
        return None if due_s is None or now_s < due_s else self._batch(now_s)

    def _batch(self, now_s: float) -> list[PendingLesson]:
        batch: list[PendingLesson] = []
        flood = len(self._lessons) > max(self._room // 2, BATCH) and not self._closed
        size = FLOOD_BATCH if flood and not self._urgent else BATCH
        # A stream of urgent ones must not keep the others from ever being taken.
        spared = SPARED if self._lessons else 0
        for queue, room in ((self._urgent, size - spared), (self._lessons, size)):
            while queue and len(batch) < room:
                batch.append(queue.popleft())
        self._since_s = now_s
        return batch
