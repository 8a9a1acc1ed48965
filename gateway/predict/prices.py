"""Money: price profiles by model, in US dollars per million tokens.

Providers price five kinds of tokens and, past some prompt length, all of them anew. Cached
and audio prompt tokens are parts of the prompt, reasoning and audio output tokens parts of
the output (so counted by OpenAI's `usage` details); a kind without a price of its own costs
what the whole does. The tier is chosen by the prompt's length and holds for the whole request.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from gateway.errors import SettingsError
from gateway.types import Usage

Dollars = Annotated[float, Meta(ge=0, le=1_000_000)]


class Tier(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """US dollars per million tokens; None: as the kind it is part of."""

    prompt: Dollars
    output: Dollars
    cached: Dollars | None = None  # prompt tokens read from the provider's cache
    reasoning: Dollars | None = None
    audio_prompt: Dollars | None = None
    audio_output: Dollars | None = None

    def usd(
        self,
        prompt_tokens: float,
        output_tokens: float,
        cached: float = 0.0,
        reasoning: float = 0.0,
        audio_prompt: float = 0.0,
        audio_output: float = 0.0,
    ) -> float:
        """The price of one request; the parts are within the whole they belong to."""
        total = prompt_tokens * self.prompt + output_tokens * self.output
        for tokens, own, whole in (
            (min(cached, prompt_tokens), self.cached, self.prompt),
            (min(reasoning, output_tokens), self.reasoning, self.output),
            (min(audio_prompt, prompt_tokens), self.audio_prompt, self.prompt),
            (min(audio_output, output_tokens), self.audio_output, self.output),
        ):
            if own is not None:
                total += tokens * (own - whole)
        return total / 1e6


class Above(Tier, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Prices that hold when the prompt is longer."""

    above_prompt_tokens: Annotated[int, Meta(ge=1)]


class Price(Tier, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model's prices, and those of its longer contexts."""

    tiers: list[Above] = []

    def __post_init__(self) -> None:
        bounds = [tier.above_prompt_tokens for tier in self.tiers]
        if sorted(set(bounds)) != bounds:
            raise ValueError("tiers: expected rising above_prompt_tokens")

    def tier(self, prompt_tokens: float) -> Tier:
        """What holds for a prompt of this length."""
        for above in reversed(self.tiers):
            if prompt_tokens > above.above_prompt_tokens:
                return above
        return self

    def of(self, usage: Usage) -> float:
        """US dollars of a finished request, all its choices."""
        return self.tier(usage.prompt_tokens).usd(
            usage.prompt_tokens,
            usage.output_tokens,
            cached=usage.cached_tokens,
            reasoning=usage.reasoning_tokens,
            audio_prompt=usage.audio_prompt_tokens,
            audio_output=usage.audio_output_tokens,
        )


class _File(Struct, forbid_unknown_fields=True):
    models: dict[str, Price]


def load_prices(path: Path) -> Mapping[str, Price]:
    """The profiles of a prices.toml.

    Raises:
        SettingsError: it cannot be read, or is not of the expected shape.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=_File).models
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
