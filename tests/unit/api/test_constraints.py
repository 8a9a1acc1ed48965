"""The shape an answer is asked to have, in every dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.api.constraints import DIGEST_BYTES, Shape, shape_of
from gateway.api.prompt import view_of
from gateway.api.schemas import ChatRequest, Generation, ResponsesRequest, decode
from gateway.predict.view import PromptView, prompt_key, template_key

MESSAGES = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
OTHER = {"type": "object", "properties": {"b": {"type": "string"}}}


def read(kind: type[Generation] = ChatRequest, **members: Any) -> Generation:
    if kind is ChatRequest:
        members |= {"messages": MESSAGES}
    return decode(json.dumps({"model": "m", **members}).encode(), kind)


def shape(**members: Any) -> Shape:
    return shape_of(read(**members))


def view(**members: Any) -> PromptView:
    return view_of("t", read(**members), 2000)


CONSTRAINTS: list[tuple[dict[str, Any], str | None]] = [
    ({"response_format": {"type": "json_object"}}, "json_object"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        "json_schema",
    ),
    ({"response_format": {"type": "structural_tag", "structures": []}}, "structural_tag"),
    ({"response_format": {"type": "grammar", "grammar": "root ::= [0-9]+"}}, "grammar"),
    ({"response_format": {"type": "regex", "pattern": "[0-9]+"}}, "regex"),
    ({"guided_json": SCHEMA}, "json_schema"),
    ({"guided_regex": "[0-9]+"}, None),
    ({"guided_choice": ["yes", "no"]}, None),
    ({"guided_grammar": "root ::= 'x'"}, None),
    ({"structured_outputs": {"json": SCHEMA}}, "json_schema"),
    ({"structured_outputs": {"json_object": True}}, "json_object"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, None),
    ({"structured_outputs": {"regex": "[0-9]+"}}, None),
    ({"extra_body": {"guided_choice": ["yes", "no"]}}, None),
    ({"extra_body": {"structured_outputs": {"json": SCHEMA}}}, "json_schema"),
    ({"regex": "[0-9]+"}, None),
    ({"ebnf": "root ::= 'x'"}, None),
    ({"grammar": "root ::= 'x'"}, None),
    ({"json_schema": SCHEMA}, "json_schema"),
]


@pytest.mark.parametrize(("members", "format"), CONSTRAINTS)
def test_shape_reads_every_constraint(members: dict[str, Any], format: str | None) -> None:
    """Each has a digest, and says whether it makes the answer JSON."""
    found = shape(**members)
    assert (found.format, len(found.digest)) == (format, 16)


def test_shape_tells_constraints_apart() -> None:
    """No two of them share a digest, and the same one twice is the same."""
    digests = [shape(**members).digest for members, _ in CONSTRAINTS]
    again = [shape(**members).digest for members, _ in CONSTRAINTS]
    assert digests == again
    # one choice and one schema are told the same way at the top and in extra_body
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
def test_shape_of_plain_text_is_none(members: dict[str, Any]) -> None:
    """Nothing asked for, or nothing that reads: no digest."""
    assert shape(**members).digest == ""


def test_shape_of_a_long_constraint_is_told_by_its_beginning_and_length() -> None:
    """What differs within either differs."""
    pad = "x" * DIGEST_BYTES
    one, two, three = (shape(guided_regex=text).digest for text in (pad, "y" + pad, pad + "z"))
    assert len({one, two, three}) == 3


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
def test_shape_reads_verbosity(members: dict[str, Any], verbosity: str | None) -> None:
    """OpenAI's level, in either API's place; anything else is none."""
    assert shape(**members).verbosity == verbosity
    assert shape_of(read(ResponsesRequest, input="hi", **members)).verbosity == verbosity


def test_shape_of_responses_reads_the_format() -> None:
    """/v1/responses: `text.format`, its schema told from another."""

    def of(schema: Any) -> Shape:
        format = {"type": "json_schema", "name": "x", "schema": schema}
        return shape_of(read(ResponsesRequest, input="hi", text={"format": format}))

    assert of(SCHEMA).format == "json_schema"
    assert of(SCHEMA) != of(OTHER)


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
def test_history_tells_shapes_apart(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Two shapes are two templates and two prompts, so neither learns the other's lengths."""
    first, second = view(**one), view(**two)
    assert template_key(first, b"k") != template_key(second, b"k")
    assert prompt_key(first, b"k") != prompt_key(second, b"k")
    assert template_key(first, b"k") == template_key(view(**one), b"k") != ""


def test_history_takes_a_schema_made_per_request_for_one_template() -> None:
    """Another enum, another title: the same template, so its lengths are learned; another
    prompt, so a forecast for the one is not handed to the other."""
    first, second = (
        view(guided_json=SCHEMA | {"title": f"at {now}", "enum": ids})
        for now, ids in (("12:31", ["a1"]), ("12:47", ["b7", "b9"]))
    )
    assert template_key(first, b"k") == template_key(second, b"k") != ""
    assert prompt_key(first, b"k") != prompt_key(second, b"k")


def test_repeat_with_thinking_switched_is_another_prompt() -> None:
    """A cached forecast of the one must not answer the other."""
    on, off, unsaid = (
        prompt_key(view(**more), b"k")
        for more in ({"enable_thinking": True}, {"enable_thinking": False}, {})
    )
    assert len({on, off, unsaid}) == 3
