"""The lesson of a finished request."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from gateway.predict.process.teach_rule import TEACHING_OUTCOMES, lesson_of
from gateway.predict.prompt_view import PromptView
from gateway.types import JobRecord, Outcome, Usage

VIEW = PromptView.of_prompt("Write a poem", tenant="a", model="m")
USAGE = Usage(prompt_tokens=20, output_tokens=90, cached_tokens=5, reasoning_tokens=30)


def record(**more: Any) -> JobRecord:
    values: dict[str, Any] = {
        "outcome": Outcome.OK,
        "status": 200,
        "usage": USAGE,
        "finish_reason": "stop",
    }
    known = {"id": "j", "wall_s": 7.0, "route": "/v1/chat/completions", "tenant": "a", "model": "m"}
    return JobRecord(**(known | values | more))


def test_complete_answer_teaches_its_length() -> None:
    """The lesson has the provider's counts, and the length as a natural one."""
    lesson = lesson_of(VIEW, record())
    assert lesson is not None
    assert (lesson.view, lesson.output_tokens, lesson.prompt_tokens) == (VIEW, 90, 20)
    assert (lesson.cached_tokens, lesson.reasoning_tokens) == (5, 30)
    assert (lesson.censored, lesson.success, lesson.wall_s) == (False, True, 7.0)


@pytest.mark.parametrize("reason", ["length", "max_tokens", "incomplete", "max_output_tokens"])
def test_answer_cut_at_a_bound_teaches_a_lower_bound(reason: str) -> None:
    """A cut answer succeeded and teaches a lower bound, by every dialect's finish reason."""
    lesson = lesson_of(VIEW, record(finish_reason=reason))
    assert lesson is not None
    assert (lesson.censored, lesson.success) == (True, True)


@pytest.mark.parametrize("outcome", sorted(TEACHING_OUTCOMES - {Outcome.OK}))
def test_answer_that_ended_early_teaches_a_lower_bound(outcome: Outcome) -> None:
    """A cancelled, broken, stalled or shut-down answer would have been at least as long as what
    came."""
    lesson = lesson_of(VIEW, record(outcome=outcome, finish_reason=None))
    assert lesson is not None
    assert (lesson.output_tokens, lesson.censored, lesson.success) == (90, True, False)


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - TEACHING_OUTCOMES))
def test_request_without_an_answer_teaches_nothing(outcome: Outcome) -> None:
    """A refused, shed, timed-out or failed request has no length."""
    assert lesson_of(VIEW, record(outcome=outcome)) is None


@pytest.mark.parametrize("usage", [None, structs.replace(USAGE, output_tokens=0)])
def test_answer_without_tokens_teaches_nothing(usage: Usage | None) -> None:
    """An answer without usage, or without output tokens, teaches nothing."""
    assert lesson_of(VIEW, record(usage=usage)) is None


def test_lengths_are_those_of_one_choice() -> None:
    """The usage counts all choices; one choice has at least one token."""
    three = lesson_of(VIEW, record(n=3))
    assert three is not None
    assert (three.output_tokens, three.reasoning_tokens) == (30, 10)
    many = lesson_of(VIEW, record(n=3, usage=structs.replace(USAGE, output_tokens=1)))
    assert many is not None
    assert many.output_tokens == 1


def test_prompt_tokens_that_nobody_counted_are_left_out() -> None:
    """An estimate is no count, and of a batch of prompts the view is only one."""
    guess = lesson_of(VIEW, record(usage=structs.replace(USAGE, estimated=True)))
    batch = lesson_of(structs.replace(VIEW, prompts=2), record())
    for lesson in (guess, batch):
        assert lesson is not None
        assert lesson.prompt_tokens is None
