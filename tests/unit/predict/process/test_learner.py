"""What becomes of a result: learned at once, or drafted, stored and then learned."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence

import pytest

from gateway.errors import Unavailable
from gateway.predict.calibrate import Calibration
from gateway.predict.lesson import Lesson
from gateway.predict.process.backend import Backend, BackendGone, Local, Setup
from gateway.predict.process.inbox import Stored
from gateway.predict.process.learner import KEEP_EVERY
from gateway.predict.process.predictor import Predictor
from gateway.predict.process.remote import Remote
from gateway.settings.schema import Predict
from gateway.shipped import own_command, own_environ
from gateway.types import HistoryRow, Rung
from tests.unit.predict.process.asking import (
    WAIT_S,
    Fragile,
    Gate,
    Inbox,
    Make,
    always,
    learned,
    refined,
    view,
)


def test_predictor_knows_at_once_what_it_learned(make: Make) -> None:
    """After one answer the next forecast, refined or stage 0, follows it."""
    predictor = make()
    before = refined(predictor, view())
    row = learned(predictor, view(), 2500)
    assert (row.output_tokens, row.tenant, len(row.vector)) == (2500, "a", 768)
    after = refined(predictor, view())
    assert after.rung is Rung.TENANT_NEIGHBORS
    assert after.p50 > 2 * before.p50
    assert predictor.forecast(view()) == after
    assert predictor.snapshot().cache_hits == 1
    assert predictor.snapshot().index_rows == 1


def test_answer_still_running_is_not_counted_as_ended(make: Make) -> None:
    """It stores no calibration and prepares no repeat."""
    kept: list[bytes] = []
    predictor = make(keep=kept.append)
    for _ in range(20):
        assert predictor.observe(view(), 5000)
    refined(predictor, view("another"))
    predictor.forecast(view())
    assert kept == []
    assert predictor.snapshot().cache_hits == 0


def test_observed_answers_are_not_stored_or_indexed(make: Make) -> None:
    """A running answer raises the forecast of its source and leaves no row."""
    predictor = make()
    before = refined(predictor, view("another")).p50
    for _ in range(40):
        assert predictor.observe(view("running"), 9000)
    learned(predictor, view("barrier"), 10)
    assert refined(predictor, view("another")).p50 > before
    assert predictor.snapshot().index_rows == 1


def test_predictor_loses_nothing_in_a_flood_it_can_learn_briefly(make: Make) -> None:
    """Past half the queue results are learned without the encoder, and all of them are."""
    predictor = make(Predict(learn_items=100))
    gate = Gate(predictor)
    rows = Inbox()
    told = {"prompt_tokens": 1, "censored": False, "success": True, "wall_s": 1.0}
    for i in range(100):
        seen = view(f"Tell me about the number {i}")
        assert predictor.learn(seen, output_tokens=9, done=rows, **told)
    gate.open()
    found = rows.wait(100)
    assert all(isinstance(row, HistoryRow) for row in found)
    assert [bool(row.vector) for row in found] == [False] * 64 + [True] * 36
    shot = predictor.snapshot()
    assert (shot.learned_briefly, shot.learn_lost) == (64, 0)


def test_learning_that_fails_is_told(make: Make) -> None:
    """Whoever waits for a lesson to be learned hears of the error instead of nothing."""
    predictor = make()
    told = Inbox()
    assert predictor.learn(
        view(),
        output_tokens="many",  # type: ignore[arg-type]  # nothing after the API expects that
        prompt_tokens=1,
        censored=False,
        success=True,
        wall_s=1.0,
        done=told,
    )
    assert [type(x) for x in told.wait()] == [TypeError]


def test_predictor_keeps_its_calibration_between_runs(make: Make) -> None:
    """Stored now and then and at the stop; the next process begins with it."""
    kept: list[bytes] = []
    predictor = make(keep=kept.append)
    for _ in range(KEEP_EVERY + 1):
        told = {"prompt_tokens": 1, "censored": False, "success": True, "wall_s": 1.0}
        assert predictor.learn(view("again"), output_tokens=3000, **told)
    refined(predictor, view("again"))
    learned(predictor, view("again"), 3000)
    assert len(kept) == 1
    predictor.stop(10)
    assert len(kept) == 2
    other = make(state=kept[-1])
    refined(other, view())
    fresh = make()
    refined(fresh, view())
    unseen = view("Something about the mountains")
    assert other.forecast(unseen).p50 > 2 * fresh.forecast(unseen).p50


class Shelf:
    """Stores rows when it is told to, or not."""

    def __init__(self, room: bool = True) -> None:
        self.rows: list[HistoryRow] = []
        self._room = room
        self._asked: queue.SimpleQueue[Stored] = queue.SimpleQueue()
        self._here = threading.Event()

    def __call__(self, row: HistoryRow, stored: Stored) -> bool:
        if self._room:
            self.rows.append(row)
            self._asked.put(stored)
            self._here.set()
        return self._room

    def wait(self) -> None:
        """Until a row is here to be stored."""
        assert self._here.wait(WAIT_S)

    def say(self, error: Exception | None) -> None:
        self._asked.get(timeout=WAIT_S)(error)


def kept_by(predictor: Predictor, shelf: Shelf, tokens: int = 2500, text: str = "") -> Inbox:
    told = {"prompt_tokens": 1, "censored": False, "success": True, "wall_s": 1.0}
    inbox = Inbox()
    seen = view(text) if text else view()
    assert predictor.learn(seen, output_tokens=tokens, done=inbox, urgent=True, keep=shelf, **told)
    return inbox


def test_row_to_be_kept_is_learned_once_it_is_stored(make: Make) -> None:
    """Until then nobody is told, and nothing is known of it; then both."""
    predictor, shelf = make(), Shelf()
    before = refined(predictor, view())
    inbox = kept_by(predictor, shelf)
    shelf.wait()
    assert refined(predictor, view()) == before
    assert (predictor.snapshot().index_rows, inbox.items) == (0, [])
    shelf.say(None)
    assert inbox.wait() == shelf.rows
    assert predictor.snapshot().index_rows == 1
    assert refined(predictor, view()).rung is Rung.TENANT_NEIGHBORS


def test_row_that_is_not_stored_is_never_learned(make: Make) -> None:
    """A full disk, or no room in the queue: told, and the forecast is as it was."""
    predictor = make()
    before = refined(predictor, view())
    failing = Shelf()
    inbox = kept_by(predictor, failing)
    failing.say(OSError("the disk is full"))
    assert [type(x) for x in inbox.wait()] == [OSError]
    assert [type(x) for x in kept_by(predictor, Shelf(room=False)).wait()] == [Unavailable]
    predictor.reconfigure(Predict())  # empties the cache of repeats
    assert refined(predictor, view()) == before
    assert predictor.snapshot().index_rows == 0
    assert predictor._stage0.calibration == Calibration()


def test_row_stored_while_its_backend_went_is_in_the_index_once(make: Make) -> None:
    """The next backend reads it from history; it is not learned a second time."""
    shelf = Shelf()
    predictor = make(history=lambda _: [shelf.rows], open_backend=Fragile)
    inbox = kept_by(predictor, shelf)
    shelf.wait()
    assert predictor.refine(view("fatal"), lambda _: None, always)
    assert refined(predictor, view()).rung is Rung.TENANT_NEIGHBORS
    assert (predictor.snapshot().restarts, predictor.snapshot().index_rows) == (1, 1)
    shelf.say(None)
    assert inbox.wait() == shelf.rows
    learned(predictor, view("another"), 5)
    assert predictor.snapshot().index_rows == 2


class Killed(Remote):
    """The real child, which is killed as soon as a lesson of a certain word is sent to it."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(own_command("predictor"), setup, own_environ())

    def learn(self, lessons: Sequence[Lesson]) -> list[HistoryRow | Exception]:
        if any("fatal" in lesson.view.text for lesson in lessons):
            os.kill(self.pid, signal.SIGKILL)
        return super().learn(lessons)


@pytest.mark.parametrize("backend", [Fragile, Killed])
def test_backend_that_dies_of_a_lesson_beside_a_draft_costs_the_lesson_alone(
    make: Make, backend: Callable[[Setup], Backend]
) -> None:
    """The row somebody is promised is stored, told and in the index once; the lesson is lost
    once; stage 0 forecasts meanwhile, and what waits is answered by the next child."""
    shelf = Shelf()
    predictor = make(history=lambda _: [shelf.rows], open_backend=backend)
    gate = Gate(predictor)
    values = {"prompt_tokens": None, "censored": False, "success": True, "wall_s": 1.0}
    lesson, later = Inbox(), Inbox()
    assert predictor.learn(view("fatal"), output_tokens=5, done=lesson, **values)
    draft = kept_by(predictor, shelf)
    gate.open()
    assert [type(x) for x in lesson.wait()] == [BackendGone]
    assert predictor.forecast(view("meanwhile")).rung is Rung.MODEL_ONLY
    assert predictor.refine(view(), later, always)
    assert [x.rung for x in later.wait()] == [Rung.TENANT_NEIGHBORS]
    shelf.say(None)
    assert draft.wait() == shelf.rows
    assert len(shelf.rows) == 1
    learned(predictor, view("another"), 5)
    shot = predictor.snapshot()
    assert (shot.restarts, shot.index_rows, shot.learn_lost) == (1, 2, 1)
    assert len(lesson.items) == len(draft.items) == len(later.items) == 1


def test_row_stored_is_told_whatever_becomes_of_the_lesson(make: Make) -> None:
    """Its backend dies of it: the row is in history, which is what was promised."""

    class Forgetful(Local):
        def learn(self, lessons: Sequence[Lesson]) -> list[HistoryRow | Exception]:
            raise BackendGone("it cannot learn")

    shelf = Shelf()
    predictor = make(history=lambda _: [shelf.rows], open_backend=Forgetful)
    inbox = kept_by(predictor, shelf)
    shelf.say(None)
    assert inbox.wait() == shelf.rows
    refined(predictor, view())
    assert predictor.snapshot().index_rows == 1


def test_row_stored_after_the_predictor_stopped_is_told(make: Make) -> None:
    """The next start reads it."""
    predictor, shelf = make(), Shelf()
    inbox = kept_by(predictor, shelf)
    shelf.wait()
    predictor.stop(WAIT_S)
    shelf.say(None)
    assert inbox.wait() == shelf.rows
