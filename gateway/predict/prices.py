"""Money: price profiles by model, in US dollars per million tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from gateway.errors import SettingsError


class Price(Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars per million tokens."""

    prompt: float
    output: float

    def usd(self, prompt_tokens: float, output_tokens: float) -> float:
        """The price of one request."""
        return (prompt_tokens * self.prompt + output_tokens * self.output) / 1e6


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
