"""The lesson of a request: all that the predictor learns from its answer."""

from __future__ import annotations

from msgspec import Struct

from gateway.predict.prompt_view import PromptView


class Lesson(Struct, frozen=True):
    """One answer, its length and its request. Counts of None are not known."""

    view: PromptView
    output_tokens: int  # per choice
    prompt_tokens: int | None
    censored: bool
    success: bool
    wall_s: float
    cached_tokens: int = 0  # of the prompt
    reasoning_tokens: int = 0  # of the output, per choice
    running: bool = False  # not ended yet: a lower bound, and no history
