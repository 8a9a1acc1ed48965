"""Learning in the child: within an allowance, a commit a tick, promises kept after the commit."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from random import Random

import pytest

from gateway.predict.process.background_learning import COMMITS, ROOM, BackgroundLearning
from gateway.predict.teaching import LearningForecaster
from gateway.types import HistoryRow
from tests.unit.predict.process.inline_child import Shelf, lesson

KEY = b"key"


class Learning:
    """Background learning with a clock of the test's, over a shelf."""

    def __init__(self, forecaster: LearningForecaster) -> None:
        self.now_s = 0.0
        self.shelf = Shelf()
        self.it = BackgroundLearning(forecaster, KEY, self.shelf, Random(3), lambda: self.now_s)

    def learn_all(self) -> None:
        """Until nothing waits; time passes as it must."""
        while (wait_s := self.it.step()) is not None:
            self.now_s += wait_s

    def stored(self) -> list[int]:
        return [row.output_tokens for row in self.shelf.rows]


@pytest.fixture
def learning(forecaster: LearningForecaster) -> Learning:
    return Learning(forecaster)


def test_lessons_are_learned_one_a_step_within_the_allowance(learning: Learning) -> None:
    """While the clock stands, only what was saved is used up; the rest waits its time out."""
    learning.it.take_in([lesson(9, f"number {i}") for i in range(ROOM)], 0.01)
    steps = 0
    while learning.it.step() == 0.0:
        steps += 1
    assert steps < 10
    wait_s = learning.it.step()
    assert wait_s is not None
    assert wait_s > 0.0
    learning.learn_all()
    assert learning.it.report().learned == ROOM
    assert learning.now_s > 1.0


def test_rows_are_stored_with_the_next_tick(learning: Learning) -> None:
    """A kill costs the rows learned since the last tick, and the lessons that wait."""
    learning.it.take_in([lesson(1)], 1.0)
    learning.learn_all()
    assert learning.stored() == []
    assert learning.it.report().owing
    learning.it.take_in([lesson(2)], 1.0)
    assert learning.stored() == [1]
    report = learning.it.report()
    assert (report.rows, report.waiting, report.owing) == (1, 1, True)
    learning.learn_all()
    learning.it.take_in([], 1.0)
    report = learning.it.report()
    assert (report.rows, report.waiting, report.owing) == (1, 0, False)


def test_report_is_of_what_is_new(learning: Learning) -> None:
    """Nothing is reported twice."""
    learning.it.take_in([lesson(1)], 1.0)
    learning.learn_all()
    assert learning.it.report().learned == 1
    assert learning.it.report().learned == 0


def test_lessons_beyond_the_room_teach_their_counts(
    learning: Learning, forecaster: LearningForecaster
) -> None:
    """They are told from those learned, and have no row."""
    learning.it.take_in([lesson(9, f"number {i}") for i in range(ROOM + 7)], 1.0)
    assert learning.it.report().sampled_out == 7
    assert forecaster.calibration.models
    assert forecaster.rows == 0
    learning.it.finish()
    assert learning.it.report().learned == len(learning.shelf.rows) == ROOM


def test_promise_is_kept_after_its_commit(
    learning: Learning, forecaster: LearningForecaster
) -> None:
    """Until then it is neither learned nor reported; the disk's error is reported, and nothing
    learned."""
    learning.shelf.hold()
    learning.it.store({1: lesson(5), 2: lesson(6)})
    report = learning.it.report()
    assert (report.stored, report.owing, forecaster.rows) == ({}, True, 0)
    assert learning.it.step() is not None  # it looks again
    learning.shelf.release()
    learning.it.step()
    report = learning.it.report()
    assert (report.stored, report.rows, report.owing) == ({1: "", 2: ""}, 2, False)
    assert forecaster.rows == 2
    learning.shelf.error = OSError("full")
    learning.it.store({3: lesson(7)})
    report = learning.it.report()
    assert (report.stored, report.lost_rows, forecaster.rows) == ({3: "full"}, 1, 2)


class Apart:
    """A history whose commits end when the test says so."""

    def __init__(self) -> None:
        self.futures: list[Future[int]] = []

    def put(self, batch: Sequence[HistoryRow]) -> Future[int]:
        self.futures.append(Future())
        return self.futures[-1]

    def close(self) -> None:
        pass


def test_each_promise_is_told_the_end_of_its_own_commit(forecaster: LearningForecaster) -> None:
    """Of two commits under way one fails; the other's rows are learned."""
    apart = Apart()
    it = BackgroundLearning(forecaster, KEY, apart, Random(3))
    it.store({1: lesson(5)})
    it.store({2: lesson(6)})
    apart.futures[0].set_exception(OSError("full"))
    apart.futures[1].set_result(1)
    it.step()
    assert it.report().stored == {1: "full", 2: ""}
    assert forecaster.rows == 1


def test_rows_are_refused_while_too_many_wait_for_the_disk(forecaster: LearningForecaster) -> None:
    """Beyond COMMITS under way, as beside a disk that hangs, rows are lost and promises are
    refused, with the reason, until some have ended."""
    apart = Apart()
    it = BackgroundLearning(forecaster, KEY, apart, Random(3))
    for number in range(COMMITS + 1):
        it.store({number: lesson(5)})
    assert len(apart.futures) == COMMITS
    report = it.report()
    assert list(report.stored) == [COMMITS]
    assert "too slow" in report.stored[COMMITS]
    assert (report.lost_rows, forecaster.rows) == (1, 0)
    for future in apart.futures:
        future.set_result(1)
    it.store({number: lesson(5)})
    assert len(apart.futures) == COMMITS + 1
    report = it.report()
    assert (len(report.stored), report.rows, report.owing) == (COMMITS, COMMITS, True)


def test_forgetting_drops_what_waits(learning: Learning) -> None:
    """Lessons of before are not learned after it, and no forecast of before is given out."""
    for _ in range(2):
        learning.it.take_in([lesson(9)], 1.0)
        learning.learn_all()
    learning.it.take_in([lesson(9)], 1.0)
    learning.it.forget()
    learning.learn_all()
    report = learning.it.report()
    assert (report.learned, report.repeats, report.waiting) == (2, [], 0)
