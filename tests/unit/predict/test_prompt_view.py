"""The view of a request, for any content."""

from __future__ import annotations

import time
from typing import Any

import pytest
from msgspec import Struct, structs

from gateway.predict.features import NAMES, features
from gateway.predict.prompt_view import MAX_CHARS, PromptView, cut, prompt_key, template_key


def view(text: object, **more: Any) -> PromptView:
    return PromptView.of_prompt(text, tenant="t", model="m", **more)


class Part(Struct):
    type: str = "text"
    text: str | None = None


class Message(Struct):
    role: str
    content: str | list[Part] | None = None


def test_view_takes_the_last_user_text_and_counts_the_rest() -> None:
    """The text is the last user message; system prompt, answers and tool results are counted."""
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
    """Structs, dicts, one string and several parts of the same text give the same view."""
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
    """Any content gives a view, its features and its hash."""
    seen = PromptView.of_chat(messages, tenant="t", model="m", n=0, max_tokens=-3)
    assert len(features(seen)) == len(NAMES)
    assert len(prompt_key(seen, b"k")) == 16
    assert seen.prompt_tokens >= 0
    assert (seen.n, seen.max_tokens) == (1, None)


def test_view_of_a_megabyte_costs_what_a_kilobyte_does() -> None:
    """After the cut no cost grows with the prompt, and its true length is counted."""
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
    """A long text keeps its beginning and end, and a short one all of it."""
    text = "a" * 5000 + "z" * 5000
    short = cut(text, 100)
    assert (len(short), short[0], short[-1]) == (100, "a", "z")
    assert cut("short", 100) == "short"


def test_prompt_key_is_blind_to_case_and_space_and_needs_the_key() -> None:
    """Keys are equal up to case and white space, and differ by text, system prompt and secret."""
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


def test_prompt_key_differs_for_long_prompts_that_share_both_ends() -> None:
    """Prompts that differ only within the cut have different keys, by their true length."""
    ends = "a" * 3000, "z" * 3000
    one, two = (prompt_key(view(ends[0] + "m" * n + ends[1]), b"k") for n in (10, 11))
    assert one != two


def test_prompt_tokens_estimate_follows_the_script() -> None:
    """ASCII counts a quarter of its characters as tokens, Chinese more than half."""
    assert 250 <= view("a" * 1000).prompt_tokens <= 260
    assert 600 <= view("字" * 1000).prompt_tokens <= 800


@pytest.mark.parametrize(
    ("text", "script", "size"),
    [
        ("plain words", "latin", 11),
        ("请写一首关于大海的诗", "cjk", 30),
        ("привет мир", "other", 19),
    ],
)
def test_view_counts_bytes_and_finds_the_script(text: str, script: str, size: int) -> None:
    """The view has the text's bytes in UTF-8 and the script of most of them."""
    seen = PromptView.of_prompt(text, tenant="t", model="m")
    assert (seen.script, seen.bytes) == (script, size)
    assert seen.tokens_by(0.5) == round(size * 0.5) + 7


def test_view_counts_a_cut_text_in_proportion() -> None:
    """All bytes of a long text count though only its ends are read, and tools count too."""
    seen = PromptView.of_prompt("字" * 100_000, tenant="t", model="m", tools_bytes=500)
    assert seen.bytes == pytest.approx(300_500, rel=0.01)
    assert seen.script == "cjk"


def test_template_is_the_application_not_the_question() -> None:
    """Requests of the same system prompt and tools share a template, whatever their question or
    date."""

    def key(system: str, text: str, **more: Any) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        return template_key(PromptView.of_chat(messages, tenant="t", model="m", **more), b"key")

    base = key("You sort mail. Today is 2026-03-01.", "one")
    assert base == key("You sort mail. Today is 2026-11-24.", "two")
    assert base != key("You write mail. Today is 2026-03-01.", "one")
    assert base != key("You sort mail. Today is 2026-03-01.", "one", tool_names=["move"], tools=1)
    bare = PromptView.of_prompt("one", tenant="t", model="m")
    assert template_key(bare, b"key") == ""
    assert template_key(structs.replace(bare, tools=2), b"key") != ""
    assert "mail" not in base


def test_keys_of_unconstrained_requests_are_as_they_were() -> None:
    """Keys of stored history from before constraints were read still match."""
    seen = PromptView.of_chat(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        tenant="t",
        model="m",
    )
    assert prompt_key(seen, b"k").hex() == "22d16518ab42697a57c73f144ce27f67"
    assert template_key(seen, b"k") == "b8065b18453d1131"
