"""Rule of what a finished request teaches the predictor."""

from __future__ import annotations

from gateway.predict.lesson import Lesson
from gateway.predict.prompt_view import PromptView
from gateway.types import CUT_FINISH_REASONS, JobRecord, Outcome

TEACHING_OUTCOMES = frozenset(
    {Outcome.OK, Outcome.CANCELLED, Outcome.UPSTREAM_ERROR, Outcome.STALLED, Outcome.SHUTDOWN}
)
"""Ends after which an answer, or a part of it, may have come."""


def lesson_of(view: PromptView, record: JobRecord) -> Lesson | None:
    """The lesson of one request; None where no answer came.

    An answer that was cut teaches that its length is at least what came of it.
    """
    usage = record.usage
    if usage is None or record.outcome not in TEACHING_OUTCOMES or usage.output_tokens <= 0:
        return None
    complete = record.outcome is Outcome.OK
    return Lesson(
        view=view,
        output_tokens=max(round(usage.output_tokens / record.n), 1),
        # Of a batch of prompts the view is one, the usage all of them.
        prompt_tokens=None if usage.estimated or view.prompts > 1 else usage.prompt_tokens,
        censored=not complete or record.finish_reason in CUT_FINISH_REASONS,
        success=complete,
        wall_s=record.wall_s,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=round(usage.reasoning_tokens / record.n),
    )
