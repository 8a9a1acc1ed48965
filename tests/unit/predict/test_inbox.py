"""What waits for the predictor thread."""

from __future__ import annotations

from gateway.predict.features import PromptView
from gateway.predict.inbox import Inbox, Question, Result
from gateway.predict.lesson import Lesson

VIEW = PromptView.of_prompt("x", tenant="t", model="m")
QUESTION = Question(VIEW, lambda _: None, lambda: True)
RESULT = Result(Lesson(VIEW, 1, 1, False, True, 0.0), None)


def nothing() -> None:
    """An order."""


def test_inbox_hands_out_orders_then_questions_then_results() -> None:
    """Whatever came first: orders, forecasts, results."""
    inbox = Inbox()
    assert inbox.tell(RESULT, 5)
    assert inbox.ask(QUESTION, 5)
    inbox.order(nothing)
    assert [inbox.take() for _ in range(3)] == [nothing, QUESTION, RESULT]


def test_inbox_queues_are_bounded_each() -> None:
    """A full queue refuses; the other still takes."""
    inbox = Inbox()
    assert [inbox.ask(QUESTION, 2) for _ in range(3)] == [True, True, False]
    assert [inbox.tell(RESULT, 1) for _ in range(2)] == [True, False]
    assert (inbox.questions, inbox.results) == (2, 1)


def test_inbox_closing_lets_results_through_and_nothing_else() -> None:
    """Closed: questions are dropped, results come, then None; nothing more goes in."""
    inbox = Inbox()
    inbox.ask(QUESTION, 5)
    inbox.tell(RESULT, 5)
    inbox.close(60.0)
    assert not inbox.ask(QUESTION, 5)
    assert not inbox.tell(RESULT, 5)
    assert [inbox.take(), inbox.take()] == [RESULT, None]


def test_inbox_closed_without_time_leaves_results_to_be_counted() -> None:
    """When the stop may take no time, what is left is abandoned, and its number known."""
    inbox = Inbox()
    inbox.tell(RESULT, 5)
    inbox.tell(RESULT, 5)
    inbox.close(0.0)
    assert inbox.take() is None
    assert inbox.abandon() == 2
    assert inbox.abandon() == 0
