"""What a finished request teaches, as it travels from the engine to whoever learns."""

from __future__ import annotations

from msgspec import Struct

from gateway.predict.prompt_view import PromptView


class Lesson(Struct, frozen=True):
    """The end of one request, to be learned from."""

    view: PromptView
    output_tokens: int  # per choice
    prompt_tokens: int | None
    censored: bool
    success: bool
    wall_s: float
    cached_tokens: int = 0  # of the prompt
    reasoning_tokens: int = 0  # of the output, per choice
    running: bool = False  # not ended yet: a lower bound, and no history
    brief: bool = False  # in a flood: without the encoder, unless the vector is at hand
