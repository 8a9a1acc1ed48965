"""The predictor: stage 0 on the caller's thread, one thread for the rest."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import Unavailable
from gateway.predict.artefacts import Artefacts
from gateway.predict.backend import Backend, BackendGone, Local, Setup
from gateway.predict.calibrate import Calibration
from gateway.predict.features import PromptView
from gateway.predict.inbox import Stored
from gateway.predict.learner import KEEP_EVERY
from gateway.predict.lesson import Lesson
from gateway.predict.predictor import Predictor
from gateway.predict.refit import refit
from gateway.predict.refits import CURRENT, Refits
from gateway.predict.remote import Remote
from gateway.settings.schema import Predict
from gateway.shipped import own_command, own_environ, shipped
from gateway.types import HistoryRow, Rung, Workload
from tests.unit.predict.conftest import Damage, flip, replace
from tests.unit.predict.rows import ruled_rows

Make = Callable[..., Predictor]
WAIT_S = 30.0


def view(text: str = "Write a short poem about the sea", **more: Any) -> PromptView:
    return PromptView.of_prompt(text, tenant=more.pop("tenant", "a"), model="m", **more)


def always() -> bool:
    return True


class Inbox:
    """Takes what comes home from the thread."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._here = threading.Condition()

    def __call__(self, item: Any) -> None:
        with self._here:
            self.items.append(item)
            self._here.notify()

    def wait(self, count: int = 1) -> list[Any]:
        with self._here:
            assert self._here.wait_for(lambda: len(self.items) >= count, WAIT_S)
        return self.items


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Predictor] = []

    def build(
        settings: Predict | None = None, folder: Path | None = None, **more: Any
    ) -> Predictor:
        predictor = Predictor(
            settings or Predict(), folder or shipped("models"), key=b"key", **more
        )
        made.append(predictor)
        predictor.start()
        return predictor

    yield build
    for predictor in made:
        predictor.stop(10)


def refined(predictor: Predictor, seen: PromptView) -> Workload:
    inbox = Inbox()
    assert predictor.refine(seen, inbox, always)
    found: Workload = inbox.wait()[0]
    return found


def learned(predictor: Predictor, seen: PromptView, tokens: int, **more: Any) -> HistoryRow:
    inbox = Inbox()
    values = {"prompt_tokens": None, "censored": False, "success": True, "wall_s": 1.0} | more
    assert predictor.learn(seen, output_tokens=tokens, done=inbox, **values)
    row: HistoryRow = inbox.wait()[0]
    return row


class Gate:
    """Holds the predictor thread inside an item until it is opened."""

    def __init__(self, predictor: Predictor) -> None:
        self._entered, self._open = threading.Event(), threading.Event()
        assert predictor.refine(view("gate"), lambda _: None, self._wait)
        assert self._entered.wait(WAIT_S)

    def _wait(self) -> bool:
        self._entered.set()
        return not self._open.wait(WAIT_S)

    def open(self) -> None:
        self._open.set()


def test_predictor_becomes_ready_and_refines(make: Make) -> None:
    """With the shipped artefacts a refinement comes home from the thread."""
    predictor = make()
    found = refined(predictor, view())
    assert found.rung is Rung.MODEL_ONLY
    shot = predictor.snapshot()
    assert (shot.ready, shot.state, shot.encoder) == (True, "ready", "minilm-l6-length-1")


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


def test_stage0_answers_a_repeat_from_the_cache(make: Make) -> None:
    """A refined prompt is answered with its refinement, another limit or tenant is not."""
    predictor = make()
    found = refined(predictor, view())
    assert predictor.forecast(view()) == found
    assert predictor.snapshot().cache_hits == 1
    predictor.forecast(view(max_tokens=7))
    predictor.forecast(view(tenant="b"))
    assert predictor.snapshot().cache_hits == 1


def test_predictor_fills_its_index_from_history(make: Make) -> None:
    """Rows given at start serve as neighbours."""
    rows = [learned(make(), view(), 800) for _ in range(2)] * 3
    other = make(history=lambda _: [rows])
    found = refined(other, view())
    assert found.rung is Rung.TENANT_NEIGHBORS
    assert other.snapshot().index_rows == 6


def test_predictor_takes_history_a_page_at_a_time(make: Make) -> None:
    """Each page is in the index before the next is asked for; rows of the encoder are asked for."""
    row = learned(make(), view(), 800)
    seen: list[int] = []
    asked: list[str] = []

    def pages(encoder: str) -> Iterator[list[HistoryRow]]:
        asked.append(encoder)
        for _ in range(4):
            seen.append(other.snapshot().index_rows)
            yield [row] * 3

    other = Predictor(Predict(), shipped("models"), key=b"key", history=pages)
    other.start()
    try:
        refined(other, view())
        assert (seen, asked) == ([0, 3, 6, 9], [row.encoder])
    finally:
        other.stop(10)


def test_predictor_skips_an_item_nobody_waits_for(make: Make) -> None:
    """`wanted` is asked just before work; False means no work and no answer."""
    predictor = make()
    inbox = Inbox()
    assert predictor.refine(view(), inbox, lambda: False)
    refined(predictor, view("another"))
    assert inbox.items == []
    assert predictor.snapshot().skipped_late == 1


def test_predictor_refuses_when_a_queue_is_full(make: Make) -> None:
    """Beyond its bound a queue says False at once, and counts what it lost."""
    predictor = make(Predict(queue_items=2, learn_items=1))
    gate = Gate(predictor)
    inbox = Inbox()
    assert [predictor.refine(view(), inbox, always) for _ in range(3)] == [True, True, False]
    told = {"prompt_tokens": 1, "censored": False, "success": True, "wall_s": 1.0}
    assert [predictor.learn(view(), output_tokens=9, **told) for _ in range(2)] == [True, False]
    shot = predictor.snapshot()
    assert (shot.forecast_queue, shot.learn_queue) == (2, 1)
    assert (shot.dropped_full, shot.learn_lost) == (1, 1)
    gate.open()
    inbox.wait(2)


def test_predictor_forecasts_before_it_learns(make: Make) -> None:
    """A result that waits lets later forecasts pass."""
    predictor = make()
    gate = Gate(predictor)
    order = Inbox()
    told = {"prompt_tokens": 1, "censored": False, "success": True, "wall_s": 1.0}
    assert predictor.learn(view(), output_tokens=9, done=order, **told)
    assert predictor.refine(view(), order, always)
    gate.open()
    kinds = [type(item) for item in order.wait(2)]
    assert kinds == [Workload, HistoryRow]


def test_predictor_survives_callers_that_fail(make: Make) -> None:
    """An exception in `wanted` or `done` costs that item only."""
    predictor = make()

    def fail(*_: object) -> bool:
        raise RuntimeError("the caller's fault")

    assert predictor.refine(view(), fail, always)
    assert predictor.refine(view(), lambda _: None, fail)
    told = {"prompt_tokens": 1, "censored": False, "success": True, "wall_s": 1.0}
    assert predictor.learn(view(), output_tokens=9, done=fail, **told)
    assert refined(predictor, view()).p50 > 0
    assert predictor.snapshot().ready


@pytest.mark.parametrize(
    ("damage", "rung"),
    [
        (flip("encoder.onnx"), Rung.MODEL_ONLY),
        (replace("encoder.onnx", b"garbage"), Rung.MODEL_ONLY),
        (flip("stage0.txt"), Rung.HEURISTIC),
        (replace("manifest.toml", b"\x00"), Rung.HEURISTIC),
    ],
)
def test_predictor_degrades_with_a_bad_artefact(
    make: Make, damaged: Callable[[Damage], Path], damage: Damage, rung: Rung
) -> None:
    """A wrong or missing file is said in the state; forecasts go on, one rung lower."""
    predictor = make(folder=damaged(damage))
    refined(predictor, view())
    assert predictor.snapshot().state.startswith("degraded: ")
    assert predictor.forecast(view("something not seen yet")).rung is rung
    assert learned(predictor, view(), 100).output_tokens == 100


def test_predictor_forecasts_before_start_and_after_stop(make: Make) -> None:
    """Without a thread there is a forecast; refining and learning say False."""
    idle = Predictor(Predict(), shipped("models"))
    assert idle.forecast(view()).rung is Rung.HEURISTIC
    assert idle.snapshot().state == "starting"
    predictor = make()
    refined(predictor, view())
    predictor.stop(10)
    assert predictor.forecast(view("another")).rung is Rung.MODEL_ONLY
    assert not predictor.refine(view(), lambda _: None, always)
    shot = predictor.snapshot()
    assert not shot.ready
    assert shot.state == "degraded: the predictor thread has ended"


def test_predictor_outlives_its_thread(make: Make) -> None:
    """A thread that dies is said in the state; stage 0 goes on."""

    class Fatal(BaseException):
        """What nothing on the thread may take."""

    def broken(_: str) -> list[list[HistoryRow]]:
        raise Fatal

    predictor = make(history=broken)
    predictor._thread.join(WAIT_S)
    assert predictor.snapshot().state == "degraded: the predictor thread died: Fatal"
    assert not predictor.snapshot().ready
    assert predictor.forecast(view()).rung is Rung.MODEL_ONLY
    assert not predictor.refine(view(), lambda _: None, always)


def test_predictor_tries_again_when_history_cannot_be_read(make: Make) -> None:
    """The store may be busy or failing just then."""
    asked = 0

    def failing(_: str) -> list[list[HistoryRow]]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise OSError("not now")
        return []

    predictor = make(history=failing)
    assert refined(predictor, view()).p50 > 0
    assert (predictor.snapshot().state, predictor.snapshot().restarts) == ("ready", 1)


def test_predictor_keeps_its_calibration_when_its_backend_has_gone(make: Make) -> None:
    """Stage 0 says the same before and after; so does what is stored."""
    kept: list[bytes] = []
    predictor = make(open_backend=Fragile, keep=kept.append)
    for _ in range(20):
        learned(predictor, view(), 2500)
    before = predictor.forecast(view("Write of the sea at night"))
    told = Inbox()
    assert predictor.refine(view("fatal"), told, always)
    refined(predictor, view())
    assert predictor.snapshot().restarts == 1
    predictor.reconfigure(Predict())  # empties the cache of repeats
    assert predictor.forecast(view("Write of the sea at night")) == before
    assert kept[-1] == predictor._stage0.calibration.dump()


def test_reset_learned_outlives_a_backend_that_goes_with_it(make: Make) -> None:
    """What was forgotten does not come back with the next backend."""

    class Forgetful(Local):
        def forget(self) -> None:
            raise BackendGone("it died of forgetting")

    kept: list[bytes] = []
    predictor = make(open_backend=Forgetful, keep=kept.append)
    for _ in range(5):
        learned(predictor, view(), 3000)
    predictor.reset_learned()
    refined(predictor, view())
    assert predictor.snapshot().restarts == 1
    assert predictor._stage0.calibration == Calibration()
    assert kept[-1] == Calibration().dump()


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


class Fragile(Local):
    """A backend that is gone, for good, when it reads a certain word."""

    _gone = False

    def _read(self, *views: PromptView) -> None:
        self._gone = self._gone or any("fatal" in one.text for one in views)
        if self._gone:
            raise BackendGone("it read the word")

    def forecast(self, view: PromptView) -> Workload:
        self._read(view)
        return super().forecast(view)

    def learn(self, lessons: Sequence[Lesson]) -> list[HistoryRow | Exception]:
        self._read(*(lesson.view for lesson in lessons))
        return super().learn(lessons)

    def draft(self, lessons: Sequence[Lesson]) -> list[HistoryRow | Exception]:
        self._read()
        return super().draft(lessons)


def test_predictor_replaces_a_backend_that_has_gone(make: Make) -> None:
    """History fills the new one, the calibration goes on, what waits is answered, the item
    that it died of is told; meanwhile stage 0 forecasts."""
    stored: list[HistoryRow] = []
    predictor = make(history=lambda _: [stored], open_backend=Fragile)
    for _ in range(8):
        stored.append(learned(predictor, view(), 2500))
    before = refined(predictor, view())
    told = Inbox()
    values = {"prompt_tokens": None, "censored": False, "success": True, "wall_s": 1.0}
    assert predictor.learn(view("fatal"), output_tokens=5, done=told, **values)
    assert [type(x) for x in told.wait()] == [BackendGone]
    assert predictor.forecast(view("meanwhile")).rung is Rung.MODEL_ONLY
    after = refined(predictor, view())
    assert after.rung is before.rung is Rung.TENANT_NEIGHBORS
    shot = predictor.snapshot()
    assert (shot.state, shot.ready, shot.restarts, shot.index_rows) == ("ready", True, 1, 8)
    assert shot.learn_lost == 1


def test_predictor_is_not_ready_while_its_backend_is_gone(make: Make) -> None:
    """The state says why, and stopping does not wait for the pause to pass."""
    opened = 0

    def once(setup: Setup) -> Local:
        nonlocal opened
        opened += 1
        if opened > 1:
            raise BackendGone("no more memory")
        return Fragile(setup)

    predictor = make(open_backend=once)
    lost = Inbox()
    assert predictor.refine(view("fatal"), lost, always)
    gone = threading.Event()

    def look() -> bool:
        shot = predictor.snapshot()
        return not shot.ready and "predictor's process" in shot.state

    until = time.monotonic() + WAIT_S
    while not look() and time.monotonic() < until:
        gone.wait(0.01)
    assert look()
    began_s = time.monotonic()
    predictor.stop(WAIT_S)
    assert time.monotonic() - began_s < 5
    assert lost.items == []


def test_predictor_learns_what_waits_before_it_stops(make: Make) -> None:
    """Stopping drops forecasts, and takes in results for as long as it may."""
    predictor = make()
    gate = Gate(predictor)
    forecasts, rows = Inbox(), Inbox()
    told = {"prompt_tokens": 1, "censored": False, "success": True, "wall_s": 1.0}
    assert predictor.refine(view(), forecasts, always)
    for _ in range(3):
        assert predictor.learn(view(), output_tokens=9, done=rows, **told)
    stopping = threading.Thread(target=predictor.stop, args=(WAIT_S,))
    stopping.start()
    gate.open()
    stopping.join(WAIT_S)
    assert len(rows.items) == 3
    assert forecasts.items == []


def test_predictor_disabled_is_off_and_cheap(make: Make) -> None:
    """enabled = false: heuristics, no thread, nothing learned or lost."""
    predictor = make(Predict(enabled=False))
    assert predictor.forecast(view()).rung is Rung.HEURISTIC
    assert not predictor.refine(view(), lambda _: None, always)
    shot = predictor.snapshot()
    assert (shot.state, shot.ready, shot.dropped_full) == ("off", False, 0)


class Watched(Local):
    """A backend that says when it is ended."""

    def __init__(self, setup: Setup, ended: threading.Event) -> None:
        super().__init__(setup)
        self._ended = ended

    def close(self) -> None:
        self._ended.set()


def test_predictor_switched_off_ends_its_backend_and_on_again_opens_one(make: Make) -> None:
    """Off: nothing is left of it but the calibration and history; on: it is as it was."""
    ended, kept = threading.Event(), list[HistoryRow]()
    predictor = make(
        Predict(enabled=False),
        open_backend=lambda setup: Watched(setup, ended),
        history=lambda _: [kept],
    )
    for _ in range(2):
        predictor.reconfigure(Predict(enabled=True))
        kept += [learned(predictor, view(), 2500)]
        before = predictor.forecast(view("Write of the sea at night")).p50
        assert not ended.is_set()
        predictor.reconfigure(Predict(enabled=False))
        assert ended.wait(WAIT_S)
        shot = predictor.snapshot()
        assert (shot.state, shot.ready, shot.index_rows, shot.restarts) == ("off", False, 0, 0)
        assert predictor.forecast(view()).rung is Rung.HEURISTIC
        assert not predictor.refine(view(), lambda _: None, always)
        ended.clear()
    predictor.reconfigure(Predict(enabled=True))
    assert refined(predictor, view()).rung is Rung.TENANT_NEIGHBORS
    assert predictor.snapshot().index_rows == 2
    assert predictor.forecast(view("Write of the sea at night")).p50 == before
    assert predictor.snapshot().state == "ready"


def test_predictor_does_what_was_let_in_before_it_was_switched_off(make: Make) -> None:
    """Forecasts and results that wait are answered, and then the backend ends."""
    ended, answers, rows = threading.Event(), Inbox(), Inbox()
    predictor = make(open_backend=lambda setup: Watched(setup, ended))
    gate = Gate(predictor)
    told = {"prompt_tokens": 1, "censored": False, "success": True, "wall_s": 1.0}
    assert predictor.refine(view(), answers, always)
    assert predictor.learn(view(), output_tokens=9, done=rows, **told)
    predictor.reconfigure(Predict(enabled=False))
    gate.open()
    assert ended.wait(WAIT_S)
    assert [type(x) for x in answers.wait()] == [Workload]
    assert [type(x) for x in rows.wait()] == [HistoryRow]


def test_predictor_stops_while_it_is_switched_off(make: Make) -> None:
    """A resting thread ends like a working one; orders reach it meanwhile."""
    ended = threading.Event()
    predictor = make(open_backend=lambda setup: Watched(setup, ended))
    refined(predictor, view())
    predictor.reconfigure(Predict(enabled=False))
    assert ended.wait(WAIT_S)
    predictor.reset_learned()
    predictor.stop(WAIT_S)
    assert not predictor._thread.alive
    assert predictor._stage0.calibration == Calibration()


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


def test_reconfigure_takes_effect_on_the_thread(make: Make) -> None:
    """A smaller window keeps the newest rows; an encoder not shipped is said, not used."""
    predictor = make()
    for i in range(4):
        learned(predictor, view(f"Tell me about the number {i}"), 100)
    predictor.reconfigure(Predict(history_window_size=2))
    refined(predictor, view())
    assert predictor.snapshot().index_rows == 2
    predictor.reconfigure(Predict(embedding_model_name="another"))  # wants a restart
    refined(predictor, view())
    assert predictor.snapshot().state == "ready"


def test_encoder_that_is_not_shipped_is_said(make: Make) -> None:
    """No artefact of that name: degraded, with the reason, and forecasts go on."""
    predictor = make(settings=Predict(embedding_model_name="another"))
    assert refined(predictor, view()).rung is Rung.MODEL_ONLY
    assert "no artefact for the encoder 'another'" in predictor.snapshot().state


def test_history_row_that_cannot_be_used_is_passed_over(make: Make) -> None:
    """One damaged row is no reason to forget the others."""
    good = HistoryRow(1.0, "a", "m", "", b"k" * 16, "", b"", 1, 5, 0, False, True)
    predictor = make(history=lambda _: [[None, good]])
    assert refined(predictor, view()) is not None
    assert predictor.snapshot().ready


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


def test_reset_learned_needs_no_thread() -> None:
    """With the predictor off since the start there is nobody to follow the order: what is kept is
    overwritten all the same, so that no restart brings it back."""
    kept: list[bytes] = []
    predictor = Predictor(Predict(enabled=False), shipped("models"), key=b"key", keep=kept.append)
    predictor.reset_learned()
    assert kept == [Calibration().dump()]


def test_reset_learned_forgets_everything_learned(make: Make) -> None:
    """Index, calibration and cache are empty; the forecast is the untaught one."""
    predictor = make()
    before = refined(predictor, view())
    for _ in range(3):
        learned(predictor, view(), 3000)
    predictor.reset_learned()
    assert predictor.forecast(view()).rung is Rung.MODEL_ONLY
    assert predictor.forecast(view()).p50 < 1000
    assert refined(predictor, view()) == before
    assert predictor.snapshot().index_rows == 0


@pytest.mark.parametrize(
    "text", ["", " ", "x" * 1_000_000, "\x00\xff", "\ud800", "😀" * 3000, "请写一首诗" * 1000]
)
def test_predictor_takes_any_text(make: Make, text: str) -> None:
    """Empty, huge, binary, surrogates, emoji, Chinese: stage 0, refine and learn answer."""
    predictor = make()
    seen = view(text)
    refined(predictor, seen)
    learned(predictor, seen, 10)
    assert predictor.forecast(seen).p50 >= 0
    assert predictor.snapshot().ready


def test_forecast_never_raises(make: Make) -> None:
    """Even a view of wrong types gets a forecast."""
    predictor = make()
    refined(predictor, view())
    broken = PromptView(tenant="a", model="m", text=None)  # type: ignore[arg-type]
    assert predictor.forecast(broken).rung is Rung.HEURISTIC


def test_snapshot_counts_forecasts_by_rung(make: Make) -> None:
    """Each forecast given, of either stage, is counted under its rung."""
    predictor = make()
    refined(predictor, view())
    predictor.forecast(view("one"))
    predictor.forecast(view("two"))
    shot = predictor.snapshot()
    assert shot.forecasts[Rung.MODEL_ONLY] == 3
    assert set(shot.forecasts) == set(Rung)


def test_profile_tells_typical_length_and_price(make: Make) -> None:
    """A model's profile has its typical length; a price where one is known."""
    predictor = make()
    refined(predictor, view())
    profile = predictor.profile("m")
    assert profile["typical_output_tokens"] is not None
    assert profile["usd_per_million_output_tokens"] is None


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


def test_predictor_begins_anew_with_a_state_of_another_kind(make: Make) -> None:
    """A stored calibration that cannot be read costs itself alone."""
    predictor = make(state=b"\xff\x00")
    assert refined(predictor, view()).p50 > 0
    assert predictor.snapshot().state == "ready"


def test_observed_answers_are_not_stored_or_indexed(make: Make) -> None:
    """A running answer raises the forecast of its source and leaves no row."""
    predictor = make()
    before = refined(predictor, view("another")).p50
    for _ in range(40):
        assert predictor.observe(view("running"), 9000)
    learned(predictor, view("barrier"), 10)
    assert refined(predictor, view("another")).p50 > before
    assert predictor.snapshot().index_rows == 1


def test_reconfigure_takes_private_tenants(make: Make) -> None:
    """A tenant that becomes private takes its rows out of the others' sight."""
    predictor = make()
    for _ in range(2):
        learned(predictor, view(tenant="a"), 3000)
    assert refined(predictor, view(tenant="b")).rung is Rung.GLOBAL_NEIGHBORS
    predictor.reconfigure(Predict(), private={"a"})
    assert refined(predictor, view(tenant="b")).rung is Rung.MODEL_ONLY
    assert refined(predictor, view(tenant="a")).rung is Rung.TENANT_NEIGHBORS
    row = learned(predictor, view(tenant="a"), 3000)
    assert not row.shared


def test_predictor_takes_a_refit_into_force(
    make: Make, artefacts: Artefacts, tmp_path: Path
) -> None:
    """The child's version replaces the models on both threads; a reset returns to shipped."""
    assert refit(ruled_rows(artefacts, 400), artefacts, tmp_path).accepted
    (tmp_path / CURRENT).unlink()
    child = [sys.executable, "-c", f"open({str(tmp_path / CURRENT)!r}, 'w').write('1')"]
    settings = Predict(refit_every_s=1e-6, refit_min_rows=100)
    predictor = make(settings, refits=Refits(tmp_path, child))
    seen = view("8461 992 7731 5528 9936 1288")
    before = refined(predictor, seen).p50
    for i in range(20):
        learned(predictor, view(f"one {i}"), 100)
    shipped_p50 = predictor.forecast(view("7461 993 7735 5528 9936 1289")).p50
    until = time.monotonic() + WAIT_S
    while predictor.snapshot().version == 0 and time.monotonic() < until:
        predictor.tick()
        refined(predictor, view("barrier"))
    shot = predictor.snapshot()
    assert (shot.version, shot.state) == (1, "ready")
    assert shot.refit in ("accepted", "running")
    assert refined(predictor, seen).p50 > 3 * before
    assert predictor.forecast(view("7461 993 7735 5528 9936 1289")).p50 > 1.5 * shipped_p50
    again = make(refits=Refits(tmp_path))
    assert refined(again, seen).p50 > 3 * before
    again.reset_learned()
    assert refined(again, seen).p50 == pytest.approx(before, rel=0.05)
    assert again.snapshot().version == 0
