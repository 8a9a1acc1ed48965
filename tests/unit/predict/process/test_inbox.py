"""What waits for the predictor thread."""

from __future__ import annotations

import time

from gateway.predict.lesson import Lesson
from gateway.predict.process.inbox import BATCH, FLOOD_BATCH, LINGER_S, Inbox, Question, Result
from gateway.predict.view import PromptView

VIEW = PromptView.of_prompt("x", tenant="t", model="m")
QUESTION = Question(VIEW, lambda _: None, lambda: True)
RESULT = Result(Lesson(VIEW, 1, 1, False, True, 0.0), None)
URGENT = Result(Lesson(VIEW, 2, 1, False, True, 0.0), None, urgent=True)


def nothing() -> None:
    """An order."""


def test_inbox_hands_out_orders_then_questions_then_results() -> None:
    """Whatever came first: orders, forecasts, results."""
    inbox = Inbox()
    assert inbox.tell(RESULT, 5)
    assert inbox.ask(QUESTION, 5)
    inbox.order(nothing)
    assert [inbox.take() for _ in range(3)] == [nothing, QUESTION, [RESULT]]


def test_inbox_queues_are_bounded_each() -> None:
    """A full queue refuses; the other still takes."""
    inbox = Inbox()
    assert [inbox.ask(QUESTION, 2) for _ in range(3)] == [True, True, False]
    assert [inbox.tell(RESULT, 1) for _ in range(2)] == [True, False]
    assert (inbox.questions, inbox.results) == (2, 1)


def test_inbox_takes_a_settled_result_whatever_waits() -> None:
    """It was let in once; only the end refuses it."""
    inbox = Inbox()
    assert inbox.tell(URGENT, 1)
    assert inbox.settle(URGENT)
    assert inbox.take() == [URGENT, URGENT]
    inbox.close(60.0)
    assert not inbox.settle(URGENT)


def test_inbox_is_empty_when_nothing_that_was_let_in_waits() -> None:
    """Questions and results count, orders do not."""
    inbox = Inbox()
    inbox.order(nothing)
    assert inbox.empty
    for put in (lambda: inbox.ask(QUESTION, 5), lambda: inbox.tell(RESULT, 5)):
        assert put()
        assert not inbox.empty
        while not inbox.empty:
            inbox.take()


def test_inbox_closing_lets_results_through_and_nothing_else() -> None:
    """Closed: questions are dropped, results come, then None; nothing more goes in."""
    inbox = Inbox()
    inbox.ask(QUESTION, 5)
    inbox.tell(RESULT, 5)
    inbox.close(60.0)
    assert not inbox.ask(QUESTION, 5)
    assert not inbox.tell(RESULT, 5)
    assert [inbox.take(), inbox.take()] == [[RESULT], None]


def test_inbox_closed_without_time_leaves_results_to_be_counted() -> None:
    """When the stop may take no time, what is left is abandoned, and its number known."""
    inbox = Inbox()
    inbox.tell(RESULT, 5)
    inbox.tell(RESULT, 5)
    inbox.close(0.0)
    assert inbox.take() is None
    assert inbox.abandon() == 2
    assert inbox.abandon() == 0


def test_inbox_results_linger_to_become_a_batch() -> None:
    """Fewer than a batch wait a moment for more; a batch and an urgent one do not."""
    inbox = Inbox()
    for _ in range(BATCH + 1):
        inbox.tell(RESULT, 99)
    began_s = time.monotonic()
    assert inbox.take() == [RESULT] * BATCH
    assert time.monotonic() - began_s < LINGER_S / 2
    assert inbox.take() == [RESULT]
    assert time.monotonic() - began_s >= LINGER_S / 2
    inbox.tell(RESULT, 99)
    inbox.tell(URGENT, 99)
    began_s = time.monotonic()
    assert inbox.take() == [URGENT, RESULT]
    assert time.monotonic() - began_s < LINGER_S / 2


def test_inbox_urgent_results_pass_a_full_queue() -> None:
    """A flood of answers to learn keeps out no row that somebody waits for."""
    inbox = Inbox()
    for _ in range(40):
        inbox.tell(RESULT, 30)
    assert [inbox.tell(URGENT, 1) for _ in range(2)] == [True, False]
    assert inbox.results == 31
    first = inbox.take()
    assert isinstance(first, list)
    assert first[0] == URGENT


def test_inbox_hands_out_more_at_once_in_a_flood() -> None:
    """Over half full, until it is half full again; never what somebody waits for."""
    inbox = Inbox()
    for _ in range(200):
        inbox.tell(RESULT, 200)
    sizes = []
    while inbox.results > BATCH:
        found = inbox.take()
        assert isinstance(found, list)
        sizes.append(len(found))
    assert sizes[:2] == [FLOOD_BATCH, FLOOD_BATCH]
    assert set(sizes[2:]) == {BATCH}
    for _ in range(200):
        inbox.tell(RESULT, 200)
    inbox.tell(URGENT, 200)
    urgent = inbox.take()
    assert isinstance(urgent, list)
    assert (urgent[0], len(urgent)) == (URGENT, BATCH)


def test_inbox_spares_room_for_what_is_not_urgent() -> None:
    """A stream of urgent results does not keep the others waiting for ever; alone it fills the
    batch."""
    inbox = Inbox()
    for _ in range(3 * BATCH):
        assert inbox.tell(URGENT, 100)
    assert inbox.tell(RESULT, 100)
    batch = inbox.take()
    assert isinstance(batch, list)
    assert RESULT in batch
    assert batch.count(URGENT) >= BATCH // 2
    assert inbox.take() == [URGENT] * BATCH
