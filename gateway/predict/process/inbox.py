"""What waits for the predictor thread: two bounded queues and the orders before them.

Orders (new settings, forget everything) come first, then forecasts, because somebody may
be waiting for one, then results to learn from. Closing drops the forecasts, and lets the
results through for as long as the stop may take: they would be lost to history.

Results are handed out a few at a time, and linger a moment to become a few, unless somebody
waits for one. Each time a thread wakes it takes the interpreter lock from the event loop,
which must then be woken itself: on busy cores that costs it more than the work does. More
come at once while the queue is over half full; `Learner` has those learned briefly.

Any thread may put in; one thread takes out.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from gateway.predict.lesson import Lesson
from gateway.predict.view import PromptView
from gateway.types import HistoryRow, Workload

Done = Callable[[Workload], None]
Learned = Callable[[HistoryRow | Exception], None]
Order = Callable[[], None]
Stored = Callable[[Exception | None], None]
Keep = Callable[[HistoryRow, Stored], bool]
"""Stores a row and tells when it is, or why not; False where there is no room for it."""

BATCH = 8  # results at once: some 50 ms of work, for which a forecast may have to wait
FLOOD_BATCH = 64  # while more than half the room is taken: as long, if each is learned briefly
SPARED = 2  # of a batch, for the results that are not urgent
LINGER_S = 0.1


class Question(Struct, frozen=True):
    """A forecast asked for."""

    view: PromptView
    done: Done
    wanted: Callable[[], bool]


class Result(Struct, frozen=True):
    """An answer to learn from."""

    lesson: Lesson
    done: Learned | None
    urgent: bool = False  # somebody waits for it
    keep: Keep | None = None  # to be learned only once this has stored it
    stored: HistoryRow | None = None  # …which it has
    life: int = 0  # of the backend that drafted the row


class Inbox:
    """Bounded queues of one taker."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._orders: deque[Order] = deque()
        self._questions: deque[Question] = deque()
        self._results: deque[Result] = deque()
        self._room = 0  # for results, as it was last told
        self._since_s = 0.0  # when the first of them came
        self._urgent: deque[Result] = deque()  # taken first, and with a bound of their own
        self._close_at: float | None = None

    @property
    def questions(self) -> int:
        return len(self._questions)

    @property
    def results(self) -> int:
        return len(self._results) + len(self._urgent)

    @property
    def empty(self) -> bool:
        """Whether nothing waits that was let in; orders do not count."""
        return not self._questions and not self.results

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
        """Put a result in; False when `room` of its kind, urgent or not, wait already, or it is
        closing."""
        with self._wake:
            queue = self._urgent if result.urgent else self._results
            taken = self._close_at is None and len(queue) < room
            self._room = room
            if taken:
                queue.append(result)
                if len(self._results) == 1:
                    self._since_s = time.monotonic()
                if result.urgent or len(self._results) in (1, BATCH):
                    self._wake.notify()
        return taken

    def settle(self, result: Result) -> bool:
        """Put back a result whose row is stored: whatever its number, for it was let in once.
        False when it is closing."""
        with self._wake:
            taken = self._close_at is None
            if taken:
                self._urgent.append(result)
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
            left = self.results
            self._results.clear()
            self._urgent.clear()
        return left

    def orders(self) -> list[Order]:
        """Those that wait, taken out."""
        with self._wake:
            taken = list(self._orders)
            self._orders.clear()
        return taken

    def rest(self, pause_s: float) -> None:
        """Wait so long, or until it is closing."""
        with self._wake:
            self._wake.wait_for(lambda: self._close_at is not None, pause_s)

    def take(self) -> Order | Question | list[Result] | None:
        """The next item, or results that may be taken; waits for either. None when closed and
        nothing is left to do."""
        with self._wake:
            while True:
                if self._close_at is not None and (
                    not self.results or time.monotonic() >= self._close_at
                ):
                    return None
                if self._orders:
                    return self._orders.popleft()
                if self._questions:
                    return self._questions.popleft()
                linger_s = self._linger_s()
                if linger_s is not None and linger_s <= 0.0:
                    return self._batch()
                self._wake.wait(linger_s)

    def _linger_s(self) -> float | None:
        """How long the results may still become more; None where there is none."""
        if self._urgent or len(self._results) >= BATCH:
            return 0.0
        if not self._results:
            return None
        return 0.0 if self.closing else self._since_s + LINGER_S - time.monotonic()

    def _batch(self) -> list[Result]:
        batch: list[Result] = []
        flood = len(self._results) > max(self._room // 2, BATCH) and not self.closing
        most = FLOOD_BATCH if flood and not self._urgent else BATCH
        # A stream of urgent ones must not keep the others from ever being taken.
        spared = SPARED if self._results else 0
        for queue, room in ((self._urgent, most - spared), (self._results, most)):
            while queue and len(batch) < room:
                batch.append(queue.popleft())
        self._since_s = time.monotonic()
        return batch
