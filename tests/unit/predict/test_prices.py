"""Prices of requests and the file they come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import SettingsError
from gateway.predict.prices import LongPromptRates, Price, load_prices
from gateway.shipped import shipped
from gateway.types import Usage


def test_shipped_prices_load_and_are_positive() -> None:
    """The shipped file is readable and prices output above prompt, cached tokens below it."""
    prices = load_prices(shipped("config/prices.toml"))
    assert "gpt-5.4-mini" in prices
    for price in prices.values():
        for tier in (price, *price.tiers):
            assert 0 < tier.prompt < tier.output
            assert tier.cached is None or tier.cached < tier.prompt


def test_price_is_per_million_tokens() -> None:
    """A million tokens of each kind costs the sum of both prices."""
    assert Price(prompt=1.0, output=10.0).usd(1e6, 1e6) == pytest.approx(11.0)


def test_price_of_a_part_replaces_that_of_its_whole() -> None:
    """Cached, reasoning and audio tokens have their own price, or else that of their whole."""
    price = Price(
        prompt=2.0, output=8.0, cached=0.5, reasoning=16.0, audio_prompt=40.0, audio_output=80.0
    )
    usage = Usage(1000, 500, cached_tokens=400, reasoning_tokens=100)
    assert price.of(usage) * 1e6 == pytest.approx(600 * 2 + 400 * 0.5 + 400 * 8 + 100 * 16)
    spoken = Usage(1000, 500, audio_prompt_tokens=100, audio_output_tokens=50)
    assert price.of(spoken) * 1e6 == pytest.approx(900 * 2 + 100 * 40 + 450 * 8 + 50 * 80)
    assert Price(prompt=2.0, output=8.0).of(usage) * 1e6 == pytest.approx(1000 * 2 + 500 * 8)


def test_price_parts_are_held_within_the_whole() -> None:
    """A provider that reports more cached than prompt tokens does not make the price negative."""
    price = Price(prompt=2.0, output=8.0, cached=0.0)
    assert price.of(Usage(100, 0, cached_tokens=1000)) == 0.0


def test_long_prompts_have_rates_of_their_own() -> None:
    """Beyond the bound its rates hold for the whole request; at the bound not yet."""
    tiers = [
        LongPromptRates(above_prompt_tokens=1000, prompt=2.0, output=20.0),
        LongPromptRates(above_prompt_tokens=5000, prompt=4.0, output=40.0),
    ]
    price = Price(prompt=1.0, output=10.0, tiers=tiers)
    assert [price.of(Usage(n, 0)) * 1e6 for n in (1000, 1001, 6000)] == pytest.approx(
        [1000, 2002, 24000]
    )


@pytest.mark.parametrize(
    "text",
    [
        "[models",
        "models = 3",
        '[models.m]\nprompt = "x"',
        "[other]\n",
        "[models.m]\nprompt = -1.0\noutput = 1.0",
        "[models.m]\nprompt = 1.0\noutput = 1.0\ncashed = 1.0",
        "[models.m]\nprompt = 1.0\noutput = 1.0\n"
        "[[models.m.tiers]]\nabove_prompt_tokens = 9\nprompt = 1.0\noutput = 1.0\n"
        "[[models.m.tiers]]\nabove_prompt_tokens = 3\nprompt = 1.0\noutput = 1.0\n",
    ],
)
def test_prices_of_a_broken_file_name_it(tmp_path: Path, text: str) -> None:
    """A file that is no price table is a SettingsError with its path."""
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"prices\.toml"):
        load_prices(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        load_prices(tmp_path / "none.toml")
