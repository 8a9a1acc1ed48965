"""The demo's language: lengths that can be learned and that repeat."""

from __future__ import annotations

import statistics

import pytest

from gateway.demo import language

ESSAY = "Write an essay about volcanoes"


def lengths(prompt: str, count: int = 100) -> list[int]:
    return [len(language.answer(prompt, attempt=i)) for i in range(count)]


def test_answer_repeats_for_the_same_seed_prompt_and_attempt() -> None:
    """Equal seed, prompt and attempt give equal tokens; a change of any gives others."""
    first = language.answer(ESSAY, seed=1, attempt=2)
    assert first == language.answer(ESSAY, seed=1, attempt=2)
    assert first != language.answer(ESSAY, seed=1, attempt=3)
    assert first != language.answer(ESSAY, seed=2, attempt=2)
    assert first != language.answer(ESSAY + "!", seed=1, attempt=2)


@pytest.mark.parametrize(
    ("prompt", "kind", "low", "high"),
    [
        ("Hello!", "greeting", 5, 20),
        ("Answer in one word: is water wet?", "label", 1, 4),
        ("Explain tides in one sentence.", "brief", 10, 64),
        ("List 10 ideas for a picnic", "list", 65, 400),
        ("Write a Python function that sorts", "code", 80, 500),
        ("Write 300 words about bread", "length", 150, 700),
        (ESSAY, "essay", 257, 2000),
        ("Do you remember the lake?", "chat", 20, 250),
    ],
)
def test_length_follows_the_form_of_the_request(
    prompt: str, kind: str, low: int, high: int
) -> None:
    """Every form has its own range of lengths."""
    assert language.kind_of(prompt) == kind
    assert low <= statistics.median(lengths(prompt)) <= high


def test_length_is_noisy_around_its_median() -> None:
    """Lengths of one prompt vary by about the stated sigma around the median."""
    got = lengths(ESSAY, 300)
    middle = language.median_tokens(ESSAY)
    assert 0.93 * middle < statistics.median(got) < 1.07 * middle
    ratio = statistics.quantiles(got, n=10)[-1] / statistics.median(got)
    assert 1.2 < ratio < 1.6  # exp(1.28 × 0.25) = 1.38


def test_length_depends_on_the_topic() -> None:
    """Topics differ in length by more than the form shows."""
    topics = ["volcanoes", "bicycles", "lighthouses", "mushrooms", "clocks", "glaciers"]
    medians = [language.median_tokens(f"Write an essay about {t}") for t in topics]
    assert max(medians) > 1.3 * min(medians)


def test_answer_beyond_its_limit_has_one_token_more() -> None:
    """A longer answer gives limit + 1 tokens, a shorter one all of its own."""
    whole = language.answer(ESSAY)
    assert language.answer(ESSAY, limit=5) == whole[:6]
    assert language.answer(ESSAY, limit=len(whole)) == whole


@pytest.mark.parametrize("text", ["a  b\n\nccc", " leading and incomprehensibilities. \n", "“ü”—x"])
def test_tokens_join_to_their_text(text: str) -> None:
    """The tokens joined are the text."""
    assert "".join(language.tokenise(text)) == text


def test_count_tokens_reads_no_text() -> None:
    """The number of prompt tokens depends on the length alone."""
    assert language.count_tokens("x" * 4200) == language.count_tokens("yz" * 2100) == 1000
    assert language.count_tokens("") == 0
