"""What the predictor reads of a request."""

from __future__ import annotations

import time
from math import isnan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from gateway.predict.features import MAX_CHARS, NAMES, PromptView, cut, features, prompt_key


def view(text: object, **more: Any) -> PromptView:
    return PromptView.of_prompt(text, tenant="t", model="m", **more)


class Part(Struct):
    type: str = "text"
    text: str | None = None


class Message(Struct):
    role: str
    content: str | list[Part] | None = None


def test_view_takes_the_last_user_text_and_counts_the_rest() -> None:
    """Text is the last user message; system, answers and tools are counted."""
    seen = PromptView.of_chat(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello there"},
            {"role": "tool", "content": "42"},
            {"role": "user", "content": "And now?"},
        ],
        tenant="t",
        model="m",
        tools=2,
        response_format="json_schema",
    )
    assert (seen.text, seen.system, seen.messages, seen.turns) == ("And now?", "Be brief.", 5, 2)
    assert (seen.answers, seen.prior_chars, seen.tool_results) == (1, 11, 1)
    assert (seen.tools, seen.json_format, seen.chars) == (2, 2, 9 + 2 + 11 + 2 + 8)


def test_view_reads_structs_and_parts_like_dicts_and_strings() -> None:
    """Decoded structs, dicts, one string or several parts give the same view."""
    plain = view("one\ntwo")
    parts = [Part(text="one"), Part(type="image_url"), Part(text="two")]
    struct = PromptView.of_chat([Message("user", parts)], tenant="t", model="m")
    dicts = PromptView.of_chat(
        [{"role": "user", "content": [{"text": "one"}, {"image": 1}, "two"]}],
        tenant="t",
        model="m",
    )
    assert struct.text == dicts.text == plain.text


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "text",
        17,
        [],
        [None, 3, "x", []],
        [{"role": 5, "content": "x"}],
        [{"content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": {"a": 1}}],
        [{"role": "user", "content": [None, 7, {"text": 9}, {"text": None}]}],
        [{"role": "user", "content": b"\xff\x00\xfe" * 9000}],
        [{"role": "user", "content": "\ud800 lone \udfff surrogates"}],
        [{"role": "user", "content": "\x00\x01\x02"}],
        [{"role": "user", "content": "😀" * 9000}],
        [{"role": "user", "content": "请写一首诗" * 2000}],
    ],
)
def test_view_of_garbage_is_a_view(messages: object) -> None:
    """Whatever comes in, a view, its features and its hash come out."""
    seen = PromptView.of_chat(messages, tenant="t", model="m", n=0, max_tokens=-3)
    assert len(features(seen)) == len(NAMES)
    assert len(prompt_key(seen, b"k")) == 16
    assert seen.prompt_tokens >= 0
    assert (seen.n, seen.max_tokens) == (1, None)


@given(st.text(alphabet=st.characters(), max_size=300))
def test_features_are_numbers_for_any_text(text: str) -> None:
    """Any text gives as many floats as there are names, none infinite."""
    row = features(view(text))
    assert len(row) == len(NAMES)
    assert all(isnan(value) or abs(value) < 1e9 for value in row)


def test_view_of_a_megabyte_costs_what_a_kilobyte_does() -> None:
    """Nothing after the cut grows with the prompt; its true length is kept."""
    large = "word " * 200_000
    begin = time.process_time()
    for _ in range(200):
        seen = view(large)
        features(seen)
        prompt_key(seen, b"k")
    assert time.process_time() - begin < 1.0  # reading all of it 200 times takes some 20 s
    assert len(seen.text) == MAX_CHARS
    assert seen.text_chars == len(large)


def test_cut_keeps_head_and_tail() -> None:
    """Of a long text the beginning and the end remain; a short one is whole."""
    text = "a" * 5000 + "z" * 5000
    short = cut(text, 100)
    assert (len(short), short[0], short[-1]) == (100, "a", "z")
    assert cut("short", 100) == "short"


def test_prompt_key_is_blind_to_case_and_space_and_needs_the_key() -> None:
    """Equal up to case and white space; other for another text, system or key."""
    first = prompt_key(view("Hello  World"), b"k")
    assert first == prompt_key(view(" hello world\n"), b"k")
    assert first != prompt_key(view("hello worlds"), b"k")
    assert first != prompt_key(view("Hello  World"), b"other")
    system = PromptView.of_chat(
        [{"role": "system", "content": "x"}, {"role": "user", "content": "Hello World"}],
        tenant="t",
        model="m",
    )
    assert first != prompt_key(system, b"k")


def test_prompt_key_tells_long_prompts_apart_that_share_both_ends() -> None:
    """What the cut hides still shows in the true length."""
    ends = "a" * 3000, "z" * 3000
    one, two = (prompt_key(view(ends[0] + "m" * n + ends[1]), b"k") for n in (10, 11))
    assert one != two


def test_prompt_tokens_estimate_follows_the_script() -> None:
    """ASCII counts a quarter of its characters, Chinese more than half."""
    assert 250 <= view("a" * 1000).prompt_tokens <= 260
    assert 600 <= view("字" * 1000).prompt_tokens <= 800


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Write a 1,500-word essay", 1950),
        ("in three words", None),
        ("Answer in 2 sentences.", 50),
        ("写一篇800字的文章", 720),
    ],
)
def test_features_see_the_size_asked_for(text: str, tokens: float | None) -> None:
    """ "300 words", "2 sentences" and "800字" become tokens; no size is NaN."""
    value = features(view(text))[NAMES.index("asked_size")]
    if tokens is None:
        assert isnan(value)
    else:
        assert 2.718281828**value - 1 == pytest.approx(tokens, rel=0.01)


def test_features_take_the_means_given() -> None:
    """Means of model and task stand at the end, NaN when not known."""
    assert features(view("x"), 5.5, 4.5)[-2:] == [5.5, 4.5]
    assert all(isnan(value) for value in features(view("x"))[-2:])
