"""Prices by model, in US dollars per million tokens.

Providers price up to six kinds of tokens and, for prompts beyond some length, all of them anew.
Cached and audio prompt tokens are parts of the prompt, reasoning and audio output tokens parts
of the output (OpenAI's `usage` details count them so); a kind without a price of its own costs as
much as the whole it is part of. The prompt's length chooses the rates of the whole request.
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


class Rates(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """US dollars per million tokens; None: the same as the kind it is part of."""

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
        """US dollars of one request; a part counts at most as much as its whole."""
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


class LongPromptRates(Rates, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rates for prompts of more than `above_prompt_tokens`."""

    above_prompt_tokens: Annotated[int, Meta(ge=1)]


class Price(Rates, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The rates of a model, and those of its long prompts."""

    tiers: list[LongPromptRates] = []

    def __post_init__(self) -> None:
        bounds = [tier.above_prompt_tokens for tier in self.tiers]
        if sorted(set(bounds)) != bounds:
            raise ValueError("tiers: expected rising above_prompt_tokens")

    def rates(self, prompt_tokens: float) -> Rates:
        """The rates for a prompt of this length."""
        for above in reversed(self.tiers):
            if prompt_tokens > above.above_prompt_tokens:
                return above
        return self

    def of(self, usage: Usage) -> float:
        """US dollars of a finished request with all its choices."""
        return self.rates(usage.prompt_tokens).usd(
            usage.prompt_tokens,
            usage.output_tokens,
            cached=usage.cached_tokens,
            reasoning=usage.reasoning_tokens,
            audio_prompt=usage.audio_prompt_tokens,
            audio_output=usage.audio_output_tokens,
        )


class _PricesFile(Struct, forbid_unknown_fields=True):
    models: dict[str, Price]


def load_prices(path: Path) -> Mapping[str, Price]:
    """Prices by model from a prices.toml.

    Raises:
        SettingsError: it cannot be read, or is not of the expected shape.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=_PricesFile).models
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
