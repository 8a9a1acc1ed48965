"""Work on the event loop that waits for the predictor's child: forecasts and lessons.

Forecasts, and lessons whose storing a caller waits for, go to the child as soon as it can be
asked. All other lessons are only put into a list here, and handed over once a tick.

Of the forecasts the newest comes first. A child that keeps up answers all of them in either order;
one that does not would answer each too late in order of arrival, and so answers some in time.
"""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import Callable
from random import Random

from msgspec import Struct

from gateway.predict.lesson import Lesson
from gateway.predict.prompt_view import PromptView
from gateway.types import Workload

FORECASTS = 8  # in one question: some 25 ms of work
PROMISES = 4  # in one question: some 25 ms of work, and one commit


class PendingForecast(Struct, frozen=True):
    """A forecast that was asked for."""

    view: PromptView
    done: Callable[[Workload], None]
    wanted: Callable[[], bool]


class PromisedLesson(Struct, frozen=True):
    """A lesson whose caller waits until its row is stored."""

    lesson: Lesson
    stored: Future[None]


class PendingWork:
    """Three bounded queues.

    Args:
        chance: draws which lessons are left out where the list is full.
    """

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._forecasts: deque[PendingForecast] = deque()
        self._promises: deque[PromisedLesson] = deque()
        self._lessons: list[Lesson] = []
        self.dropped = 0  # forecasts for which newer ones left no room
        self._came = 0  # lessons since the list was last empty
        self._closed = False

    def __repr__(self) -> str:
        return f"<PendingWork forecasts={self.forecasts} lessons={self.lessons}>"

    @property
    def forecasts(self) -> int:
        return len(self._forecasts)

    @property
    def lessons(self) -> int:
        return len(self._lessons) + len(self._promises)

    @property
    def empty(self) -> bool:
        return not self._forecasts and not self.lessons

    def add_forecast(self, forecast: PendingForecast, room: int) -> bool:
        """Queue a forecast; where `room` of them wait already the oldest goes. False where the
        queue is closed."""
        if self._closed:
            return False
        if len(self._forecasts) >= room:
            self._forecasts.popleft()
            self.dropped += 1
        self._forecasts.append(forecast)
        return True

    def add_promise(self, promise: PromisedLesson, room: int) -> bool:
        """Queue a promised lesson; False where `room` of them wait already, or the queue is
        closed."""
        taken = not self._closed and len(self._promises) < room
        if taken:
            self._promises.append(promise)
        return taken

    def add_lesson(self, lesson: Lesson, room: int) -> bool:
        """Put a lesson into the list; False where one was lost, this or an earlier one: of those
        that came since the last tick each has the same chance to be among the `room` kept."""
        self._came += 1
        if self._closed:
            return False
        if len(self._lessons) < room:
            self._lessons.append(lesson)
            return True
        place = self._chance.randrange(self._came)
        if place < len(self._lessons):
            self._lessons[place] = lesson
        return False

    def take_forecast(self) -> PendingForecast | None:
        """Take out the newest forecast; None where there is none."""
        return self._forecasts.pop() if self._forecasts else None

    def take_promises(self) -> list[PromisedLesson]:
        """Take out the oldest promised lessons, as many as one question has."""
        return [self._promises.popleft() for _ in range(min(PROMISES, len(self._promises)))]

    def take_lessons(self) -> list[Lesson]:
        """Take out all lessons of the list."""
        taken, self._lessons, self._came = self._lessons, [], 0
        return taken

    def close(self) -> None:
        """Drop the forecasts and take nothing more."""
        self._closed = True
        self._forecasts.clear()

    def abandon(self) -> tuple[list[Lesson], list[PromisedLesson]]:
        """Drop the forecasts; take out all lessons."""
        self._forecasts.clear()
        promises = list(self._promises)
        self._promises.clear()
        return self.take_lessons(), promises
