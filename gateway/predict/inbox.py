"""What waits for the predictor thread: two bounded queues and the orders before them.

Orders (new settings, forget everything) come first, then forecasts, because somebody may
be waiting for one, then results to learn from. Closing drops the forecasts, and lets the
results through for as long as the stop may take: they would be lost to history.

Any thread may put in; one thread takes out.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from gateway.predict.features import PromptView
from gateway.predict.lesson import Lesson
from gateway.types import HistoryRow, Workload

Done = Callable[[Workload], None]
Learned = Callable[[HistoryRow | Exception], None]
Order = Callable[[], None]


class Question(Struct, frozen=True):
    """A forecast asked for."""

    view: PromptView
    done: Done
    wanted: Callable[[], bool]


class Result(Struct, frozen=True):
    """An answer to learn from."""

    lesson: Lesson
    done: Learned | None


class Inbox:
    """Bounded queues of one taker."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._orders: deque[Order] = deque()
        self._questions: deque[Question] = deque()
        self._results: deque[Result] = deque()
        self._close_at: float | None = None

    @property
    def questions(self) -> int:
        return len(self._questions)

    @property
    def results(self) -> int:
        return len(self._results)

    @property
    def closing(self) -> bool:
        return self._close_at is not None

    def ask(self, question: Question, room: int) -> bool:
        """Put a forecast in; False when `room` of them wait already, or it is closing."""
        with self._wake:
            taken = self._close_at is None and len(self._questions) < room
            if taken:
                self._questions.append(question)
                self._wake.notify()
        return taken

    def tell(self, result: Result, room: int) -> bool:
        """Put a result in; False as for `ask`."""
        with self._wake:
            taken = self._close_at is None and len(self._results) < room
            if taken:
                self._results.append(result)
                self._wake.notify()
        return taken

    def order(self, order: Order) -> None:
        """Have something done before all else that waits."""
        with self._wake:
            self._orders.append(order)
            self._wake.notify()

    def close(self, timeout_s: float) -> None:
        """Take nothing more in; results are handed out for at most `timeout_s`."""
        with self._wake:
            self._close_at = time.monotonic() + timeout_s
            self._questions.clear()
            self._wake.notify()

    def abandon(self) -> int:
        """Drop the results that are left; how many they were."""
        with self._wake:
            left = len(self._results)
            self._results.clear()
        return left

    def rest(self, pause_s: float) -> None:
        """Wait so long, or until it is closing."""
        with self._wake:
            self._wake.wait_for(lambda: self._close_at is not None, pause_s)

    def take(self) -> Order | Question | Result | None:
        """The next item; waits for one. None when closed and nothing is left to do."""
        with self._wake:
            while True:
                if self._close_at is not None and (
                    not self._results or time.monotonic() >= self._close_at
                ):
                    return None
                if self._orders:
                    return self._orders.popleft()
                if self._questions:
                    return self._questions.popleft()
                if self._results:
                    return self._results.popleft()
                self._wake.wait()
