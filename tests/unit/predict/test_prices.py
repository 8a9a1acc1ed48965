"""Price profiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import SettingsError
from gateway.predict.prices import Price, load_prices
from gateway.shipped import shipped


def test_shipped_prices_load_and_are_positive() -> None:
    """The shipped file is readable and prices output above prompt tokens."""
    prices = load_prices(shipped("config/prices.toml"))
    assert "gpt-5.4-mini" in prices
    assert all(0 < p.prompt < p.output for p in prices.values())


def test_price_is_per_million_tokens() -> None:
    """A million of each costs the sum of both prices."""
    assert Price(prompt=1.0, output=10.0).usd(1e6, 1e6) == pytest.approx(11.0)


@pytest.mark.parametrize("text", ["[models", "models = 3", '[models.m]\nprompt = "x"', "[other]\n"])
def test_prices_of_a_broken_file_name_it(tmp_path: Path, text: str) -> None:
    """A file that is no price table is a SettingsError with its path."""
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"prices\.toml"):
        load_prices(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        load_prices(tmp_path / "none.toml")
