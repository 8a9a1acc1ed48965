"""Work that waits for the predictor's child."""

from __future__ import annotations

from asyncio import Future
from collections import Counter
from random import Random
from typing import Any, cast

from gateway.predict.lesson import Lesson
from gateway.predict.process.pending import (
    PROMISES,
    PendingForecast,
    PendingWork,
    PromisedLesson,
)
from gateway.predict.prompt_view import PromptView

VIEW = PromptView.of_prompt("x", tenant="t", model="m")
FORECAST = PendingForecast(VIEW, lambda _: None, lambda: True)
PROMISE = PromisedLesson(Lesson(VIEW, 2, 1, False, True, 0.0), cast("Future[Any]", None))


def lesson(tokens: int = 1) -> Lesson:
    return Lesson(VIEW, tokens, 1, False, True, 0.0)


def pending(seed: int = 1) -> PendingWork:
    return PendingWork(Random(seed))


def test_pending_queues_are_bounded_each() -> None:
    """A full queue refuses, or drops its oldest forecast; the others still take."""
    work = pending()
    assert [work.add_forecast(FORECAST, 2) for _ in range(3)] == [True, True, True]
    assert work.dropped == 1
    assert [work.add_lesson(lesson(), 1) for _ in range(2)] == [True, False]
    assert [work.add_promise(PROMISE, 1) for _ in range(2)] == [True, False]
    assert (work.forecasts, work.lessons) == (2, 2)


def test_pending_is_handed_out_in_order() -> None:
    """Forecasts one by one, promises as many as a question has, lessons all at once."""
    work = pending()
    assert work.empty
    for number in range(3):
        work.add_lesson(lesson(number), 9)
    for _ in range(PROMISES + 1):
        work.add_promise(PROMISE, 99)
    work.add_forecast(FORECAST, 5)
    assert (work.take_forecast(), work.take_forecast()) == (FORECAST, None)
    assert [len(work.take_promises()) for _ in range(3)] == [PROMISES, 1, 0]
    assert not work.empty
    assert [one.output_tokens for one in work.take_lessons()] == [0, 1, 2]
    assert work.take_lessons() == []
    assert work.empty


def test_pending_forecasts_come_newest_first() -> None:
    """The last to come is the first to go; where there is no room the oldest is dropped."""
    work, asked = pending(), [PendingForecast(VIEW, lambda _: None, bool) for _ in range(4)]
    for one in asked:
        work.add_forecast(one, 3)
    taken = [work.take_forecast() for _ in range(4)]
    assert [asked.index(one) for one in taken if one is not None] == [3, 2, 1]


def test_pending_that_is_closed_hands_out_lessons_and_takes_nothing() -> None:
    """Closing drops forecasts, and takes nothing more."""
    work = pending()
    work.add_lesson(lesson(), 5)
    work.add_forecast(FORECAST, 5)
    work.close()
    assert not work.add_forecast(FORECAST, 5)
    assert not work.add_promise(PROMISE, 5)
    assert not work.add_lesson(lesson(), 5)
    assert work.take_forecast() is None
    assert len(work.take_lessons()) == 1


def test_pending_abandoned_gives_out_every_lesson() -> None:
    """All lessons are handed over, and forecasts are dropped."""
    work = pending()
    work.add_lesson(lesson(), 5)
    work.add_promise(PROMISE, 5)
    work.add_forecast(FORECAST, 5)
    assert work.abandon() == ([lesson()], [PROMISE])
    assert work.empty


def test_pending_list_that_is_full_keeps_each_lesson_with_the_same_chance() -> None:
    """Of 40 lessons for 10 places each is kept in a quarter of the runs, the first (short answers,
    in a burst) as often as the last: within four standard deviations of 4,000 runs."""
    kept: Counter[int] = Counter()
    runs, room, came = 4000, 10, 40
    chance = Random(7)
    for _ in range(runs):
        work = PendingWork(chance)
        for number in range(came):
            work.add_lesson(lesson(number), room)
        taken = work.take_lessons()
        assert len(taken) == room
        kept.update(one.output_tokens for one in taken)
    expected = runs * room / came
    allowed = 4 * (expected * (1 - room / came)) ** 0.5
    assert all(abs(kept[number] - expected) < allowed for number in range(came))
