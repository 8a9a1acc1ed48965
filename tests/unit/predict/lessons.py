"""Requests and lessons for the forecaster's tests."""

from __future__ import annotations

from typing import Any

from gateway.predict.lesson import Lesson
from gateway.predict.prompt_view import PromptView

PROMPT = "Write a short poem about the sea"


def view(text: str = PROMPT, tenant: str = "a", **more: Any) -> PromptView:
    """A request of `tenant`, to the model "m" by default."""
    return PromptView.of_prompt(text, tenant=tenant, model=more.pop("model", "m"), **more)


def lesson(seen: PromptView, tokens: int, **more: Any) -> Lesson:
    """A successful, complete answer to the request, but for `more`."""
    values = {"prompt_tokens": None, "censored": False, "success": True, "wall_s": 1.0} | more
    return Lesson(view=seen, output_tokens=tokens, **values)
