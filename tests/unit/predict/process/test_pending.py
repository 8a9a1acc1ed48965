"""Work that waits for the predictor's child."""

from __future__ import annotations

from gateway.predict.lesson import Lesson
from gateway.predict.process.pending import (
    BATCH,
    FLOOD_BATCH,
    LINGER_S,
    PendingForecast,
    PendingLesson,
    PendingWork,
)
from gateway.predict.prompt_view import PromptView

VIEW = PromptView.of_prompt("x", tenant="t", model="m")
FORECAST = PendingForecast(VIEW, lambda _: None, lambda: True)
LESSON = PendingLesson(Lesson(VIEW, 1, 1, False, True, 0.0), None)
URGENT = PendingLesson(Lesson(VIEW, 2, 1, False, True, 0.0), None, urgent=True)
NOW_S = 1000.0


def waiting(lessons: int = 0, urgent: int = 0, room: int = 9999) -> PendingWork:
    work = PendingWork()
    for one, count in ((LESSON, lessons), (URGENT, urgent)):
        for _ in range(count):
            work.add_lesson(one, room, NOW_S)
    return work


def batch(work: PendingWork, now_s: float = NOW_S) -> list[PendingLesson]:
    """The next batch of lessons, which is due."""
    taken = work.take(now_s)
    assert isinstance(taken, list)
    return taken


def test_pending_forecasts_come_before_lessons() -> None:
    """A forecast that came after a batch of lessons is handed out before it."""
    work = waiting(BATCH)
    assert work.add_forecast(FORECAST, 5)
    assert work.take(NOW_S) is FORECAST
    assert batch(work) == [LESSON] * BATCH


def test_pending_queues_are_bounded_each() -> None:
    """A full queue refuses, the other still takes."""
    work = PendingWork()
    assert [work.add_forecast(FORECAST, 2) for _ in range(3)] == [True, True, False]
    assert [work.add_lesson(LESSON, 1, NOW_S) for _ in range(2)] == [True, False]
    assert (work.forecasts, work.lessons) == (2, 1)


def test_pending_lesson_that_is_put_back_passes_a_full_queue() -> None:
    """A lesson that is put back was taken before, so no bound applies; only a closed queue refuses
    it."""
    work = waiting(urgent=1, room=1)
    assert work.put_back(URGENT)
    assert batch(work) == [URGENT, URGENT]
    work.close()
    assert not work.put_back(URGENT)


def test_pending_is_empty_when_neither_kind_waits() -> None:
    """Forecasts count, lessons of both kinds count, and nothing is left when all are taken."""
    assert PendingWork().empty
    assert not waiting(1).empty
    assert not waiting(urgent=1).empty
    work = PendingWork()
    work.add_forecast(FORECAST, 5)
    assert not work.empty
    work.take(NOW_S)
    assert work.empty


def test_pending_that_is_closed_hands_out_lessons_and_takes_nothing() -> None:
    """Closing drops forecasts, hands out lessons without delay, and takes nothing more."""
    work = waiting(1)
    work.add_forecast(FORECAST, 5)
    work.close()
    assert not work.add_forecast(FORECAST, 5)
    assert not work.add_lesson(LESSON, 5, NOW_S)
    assert batch(work) == [LESSON]
    assert (work.take(NOW_S), work.due_s()) == (None, None)


def test_pending_abandoned_gives_out_every_lesson() -> None:
    """All lessons are handed over, urgent ones first, and forecasts are dropped."""
    work = waiting(2 * BATCH, urgent=1)
    work.add_forecast(FORECAST, 5)
    assert work.abandon() == [URGENT, *[LESSON] * 2 * BATCH]
    assert work.empty


def test_pending_lessons_linger_to_become_a_batch() -> None:
    """Fewer than a batch wait a moment for more; a whole batch does not."""
    work = waiting(BATCH + 1)
    assert work.due_s() == 0.0
    assert batch(work) == [LESSON] * BATCH
    assert work.due_s() == NOW_S + LINGER_S
    assert work.take(NOW_S + 0.9 * LINGER_S) is None
    assert batch(work, NOW_S + LINGER_S) == [LESSON]
    assert work.due_s() is None


def test_pending_urgent_lesson_takes_the_others_along() -> None:
    """An urgent lesson is due at once, and lessons that linger go with it."""
    work = waiting(1, urgent=1)
    assert work.due_s() == 0.0
    assert batch(work) == [URGENT, LESSON]


def test_pending_urgent_lessons_pass_a_full_queue() -> None:
    """A flood of answers to learn keeps out no row that somebody waits for."""
    work = waiting(40, room=30)
    assert [work.add_lesson(URGENT, 1, NOW_S) for _ in range(2)] == [True, False]
    assert work.lessons == 31
    assert batch(work)[0] is URGENT


def test_pending_hands_out_more_at_once_in_a_flood() -> None:
    """Batches are larger from a queue over half full until it is half full again, and never beside
    an urgent lesson."""
    work = waiting(200, room=200)
    sizes = []
    while work.lessons > BATCH:
        sizes.append(len(batch(work)))
    assert sizes[:2] == [FLOOD_BATCH, FLOOD_BATCH]
    assert set(sizes[2:]) == {BATCH}
    beside = batch(waiting(200, urgent=1, room=200))
    assert (beside[0], len(beside)) == (URGENT, BATCH)


def test_pending_spares_room_for_what_is_not_urgent() -> None:
    """A stream of urgent lessons does not keep the others waiting for ever; alone it fills the
    batch."""
    work = waiting(1, urgent=3 * BATCH)
    first = batch(work)
    assert LESSON in first
    assert first.count(URGENT) >= BATCH // 2
    assert batch(work) == [URGENT] * BATCH
