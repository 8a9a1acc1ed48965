"""Thinking and the form of the answer, as a request asks for them in every dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.api.dialects import OPTION_BYTES, AnswerForm, Thinking
from gateway.api.prompt import view_of
from gateway.api.schemas import ChatRequest, Generation, ResponsesRequest, check_generation, decode
from gateway.predict.prompt_view import PromptView, prompt_key, template_key

MESSAGES = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
OTHER = {"type": "object", "properties": {"b": {"type": "string"}}}
GARBAGE: list[Any] = [
    None,
    5,
    -1,
    1.5,
    "x",
    True,
    [],
    [[]],
    {},
    {"type": 5},
    {"google": 1},
    "é" * 99,
]
OPTIONS = (
    *("tools", "functions", "response_format", "text", "reasoning_effort", "reasoning"),
    *("thinking", "enable_thinking", "thinking_budget", "chat_template_kwargs"),
    *("extra_body", "google", "verbosity", "guided_regex", "guided_choice"),
    *("guided_grammar", "structured_outputs", "regex", "ebnf", "grammar"),
)


def read(kind: type[Generation], **members: Any) -> Generation:
    request = decode(json.dumps({"model": "m", **members}).encode(), kind)
    check_generation(request)
    return request


def chat(**members: Any) -> PromptView:
    return view_of("t", read(ChatRequest, messages=MESSAGES, **members), 2000)


def gemini(**config: Any) -> dict[str, Any]:
    return {"google": {"thinking_config": config}}


# -- thinking ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "on", "budget", "effort"),
    [
        ({}, None, None, None),
        ({"reasoning_effort": "high"}, None, None, "high"),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, None, None, "low"),
        ({"thinking": {"type": "enabled"}}, True, None, None),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "minimal"}, False, None, "minimal"),
        ({"thinking": {"type": "auto"}}, None, None, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, True, 2048, None),
        ({"enable_thinking": False}, False, None, None),
        ({"enable_thinking": True, "thinking_budget": 500}, True, 500, None),
        ({"thinking_budget": 0}, False, 0, None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False, None, None),
        ({"chat_template_kwargs": {"thinking": True}}, True, None, None),
        ({"reasoning": {"enabled": True, "max_tokens": 4096}}, True, 4096, None),
        (gemini(thinking_budget=800, include_thoughts=True), None, 800, None),
        ({"extra_body": gemini(thinking_budget=0)}, False, 0, None),
        ({"extra_body": gemini(thinking_budget=-1)}, None, None, None),
        (gemini(thinking_level="LOW"), None, None, "low"),
        # two that disagree: the switch holds
        ({"enable_thinking": True, "thinking_budget": 0}, True, 0, None),
    ],
)
def test_view_reads_thinking_in_every_dialect(
    members: dict[str, Any], on: bool | None, budget: int | None, effort: str | None
) -> None:
    """The switch, the budget and the level are read, whatever the provider calls them."""
    view = chat(**members)
    assert (view.thinking, view.thinking_budget, view.reasoning_effort) == (on, budget, effort)


def test_view_of_responses_reads_reasoning_and_format() -> None:
    """/v1/responses has both in places of its own."""
    request = read(
        ResponsesRequest,
        input="Hello",
        instructions="Be brief.",
        reasoning={"effort": "medium"},
        text={"format": {"type": "json_schema", "name": "x", "schema": {}}, "verbosity": "low"},
    )
    view = view_of("t", request, 2000)
    assert (view.reasoning_effort, view.json_format) == ("medium", 2)
    assert (view.text, view.system, view.messages) == ("Hello", "Be brief.", 2)


# -- the form of the answer ------------------------------------------------------------------------

CONSTRAINTS: list[tuple[dict[str, Any], int]] = [
    ({"response_format": {"type": "json_object"}}, 1),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, 2),
    ({"response_format": {"type": "structural_tag", "structures": []}}, 0),
    ({"response_format": {"type": "grammar", "grammar": "root ::= [0-9]+"}}, 0),
    ({"response_format": {"type": "regex", "pattern": "[0-9]+"}}, 0),
    ({"guided_json": SCHEMA}, 2),
    ({"guided_regex": "[0-9]+"}, 0),
    ({"guided_choice": ["yes", "no"]}, 0),
    ({"guided_grammar": "root ::= 'x'"}, 0),
    ({"structured_outputs": {"json": SCHEMA}}, 2),
    ({"structured_outputs": {"json_object": True}}, 1),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, 0),
    ({"structured_outputs": {"regex": "[0-9]+"}}, 0),
    ({"extra_body": {"guided_choice": ["yes", "no"]}}, 0),
    ({"extra_body": {"structured_outputs": {"json": SCHEMA}}}, 2),
    ({"regex": "[0-9]+"}, 0),
    ({"ebnf": "root ::= 'x'"}, 0),
    ({"grammar": "root ::= 'x'"}, 0),
    ({"json_schema": SCHEMA}, 2),
]


@pytest.mark.parametrize(("members", "json_format"), CONSTRAINTS)
def test_view_reads_every_constraint(members: dict[str, Any], json_format: int) -> None:
    """Each constraint has both digests, and tells whether it makes the answer JSON."""
    view = chat(**members)
    assert (view.json_format, len(view.shape), len(view.form)) == (json_format, 16, 16)


def test_view_of_each_constraint_has_a_digest_of_its_own() -> None:
    """Requests under two constraints are never taken for repeats of each other."""
    digests = [chat(**members).shape for members, _ in CONSTRAINTS]
    assert digests == [chat(**members).shape for members, _ in CONSTRAINTS]
    # A choice and a schema are the same constraints inside `extra_body` and outside it.
    assert len(set(digests)) == len(digests) - 2


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": None, "guided_json": None},
        {"guided_choice": [], "structured_outputs": {}, "guided_regex": "", "regex": False},
        {"response_format": 5, "extra_body": "x"},
        {"text": {"format": {"type": "text"}}},
    ],
)
def test_view_of_a_plain_answer_has_no_digest(members: dict[str, Any]) -> None:
    """Absent, empty and malformed members constrain nothing."""
    view = chat(**members)
    assert (view.shape, view.form) == ("", "")


@pytest.mark.parametrize(
    ("members", "verbosity"),
    [
        ({"verbosity": "low"}, "low"),
        ({"verbosity": "HIGH"}, "high"),
        ({"text": {"verbosity": "medium"}}, "medium"),
        ({"verbosity": 5}, None),
        ({"verbosity": ["x"] * 9999}, None),
        ({"text": "low"}, None),
    ],
)
def test_view_reads_the_verbosity(members: dict[str, Any], verbosity: str | None) -> None:
    """OpenAI's level is read in either API's place; any other value is none."""
    assert chat(**members).verbosity == verbosity
    responses = read(ResponsesRequest, input="hi", **members)
    assert view_of("t", responses, 2000).verbosity == verbosity


def test_view_of_responses_reads_the_constraint() -> None:
    """/v1/responses has the schema in `text.format`."""

    def of(schema: Any) -> PromptView:
        format = {"type": "json_schema", "name": "x", "schema": schema}
        return view_of("t", read(ResponsesRequest, input="hi", text={"format": format}), 2000)

    assert of(SCHEMA).json_format == 2
    assert of(SCHEMA).shape != of(OTHER).shape
    assert of(SCHEMA).form != of(OTHER).form


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"verbosity": "low"}, {"verbosity": "high"}),
        ({"guided_choice": ["yes", "no"]}, {}),
        ({"guided_json": SCHEMA}, {"guided_json": OTHER}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": OTHER}}},
        ),
    ],
)
def test_history_keeps_two_constraints_apart(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Two constraints are two templates and two prompts: neither learns the other's lengths."""
    first, second = chat(**one), chat(**two)
    assert template_key(first, b"k") != template_key(second, b"k")
    assert prompt_key(first, b"k") != prompt_key(second, b"k")
    assert template_key(first, b"k") == template_key(chat(**one), b"k") != ""


def test_history_takes_a_schema_made_per_request_for_one_template() -> None:
    """Another enum and title give the same template, whose lengths are learned, but another
    prompt: a forecast for the one is not handed to the other."""
    first, second = (
        chat(guided_json=SCHEMA | {"title": f"at {now}", "enum": ids})
        for now, ids in (("12:31", ["a1"]), ("12:47", ["b7", "b9"]))
    )
    assert template_key(first, b"k") == template_key(second, b"k") != ""
    assert prompt_key(first, b"k") != prompt_key(second, b"k")


def test_repeat_with_thinking_switched_is_another_prompt() -> None:
    """A cached forecast with thinking is not handed to a request without it."""
    on, off, unset = (
        prompt_key(chat(**more), b"k")
        for more in ({"enable_thinking": True}, {"enable_thinking": False}, {})
    )
    assert len({on, off, unset}) == 3


def test_view_reads_the_format_of_chat() -> None:
    """`response_format` decides whether the answer is JSON."""
    assert chat(response_format={"type": "json_object"}).json_format == 1
    assert chat(response_format={"type": "json_schema", "json_schema": {}}).json_format == 2
    assert chat(response_format={"type": "text"}).json_format == 0


# -- what cannot be read -------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_view_ignores_a_malformed_option(name: str) -> None:
    """A member that is only forecast by raises no error: it is for the provider to refuse."""
    plain = chat()
    for value in GARBAGE:
        view = chat(**{name: value})
        assert (view.text, view.json_format, view.tool_names) == (plain.text, 0, ())
        assert view.thinking_budget in (None, 5 if name == "thinking_budget" else None)


def test_view_ignores_a_huge_option() -> None:
    """An object of options is small; a large one is not decoded on the loop."""
    pad = "x" * OPTION_BYTES
    assert chat(chat_template_kwargs={"enable_thinking": True}).thinking is True
    assert chat(chat_template_kwargs={"enable_thinking": True, "pad": pad}).thinking is None


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "google", "thinking_config", "thinking_budget", "effort", "name"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(OPTIONS), _json))
@hypothesis_settings(max_examples=200, deadline=None, database=None)
def test_view_of_any_json_is_well_typed(members: dict[str, Any]) -> None:
    """For any JSON in an option the members of the view have their own types."""
    view = chat(**members)
    assert view.thinking in (True, False, None)
    assert view.thinking_budget is None or view.thinking_budget >= 0
    assert view.reasoning_effort is None or 0 < len(view.reasoning_effort) <= 64
    assert all(isinstance(name, str) and name for name in view.tool_names)


@given(st.dictionaries(st.sampled_from(OPTIONS), st.sampled_from(GARBAGE), max_size=2))
def test_plain_requests_read_like_all_others(members: dict[str, Any]) -> None:
    """A request without special members, which is not looked into, reads as if it were."""
    request = read(ChatRequest, messages=MESSAGES, **members)
    for kind in (Thinking, AnswerForm):
        seen, whole = kind.of(request), kind(request)
        assert all(getattr(seen, name) == getattr(whole, name) for name in kind.__slots__)
