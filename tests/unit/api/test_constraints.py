"""Digests of the constraints of an answer: which requests are taken for repeats, and which for
requests of one application."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.constraints import NODES, READ_BYTES, exact_digest, outline_digest

Json = dict[str, Any]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = ("response_format", "guided_json", "structured_outputs", "guided_choice", "regex")


def exact(value: Any, name: str = "guided_json") -> str:
    return exact_digest([(name, msgspec.Raw(json.dumps(value).encode()))])


def outline(value: Any, name: str = "guided_json") -> str:
    return outline_digest([(name, msgspec.Raw(json.dumps(value).encode()))])


def schema(**more: Any) -> Json:
    properties = {
        "name": {"type": "string", "description": "of the customer"},
        "tags": {"type": "array", "items": {"type": "string", "enum": ["id-1", "id-2"]}},
    }
    return {"type": "object", "properties": properties, "required": ["name"]} | more


def with_property(name: str, of: Json) -> Json:
    return schema(properties=schema()["properties"] | {name: of})


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (schema(title="order of 12:31:05"), schema(title="order of 12:31:09")),
        (schema(description="for Mr Smith"), schema()),
        (schema(default={"name": "x"}, examples=[{"a": {}}]), schema()),
        (
            with_property("id", {"enum": ["a-17", "b-19"]}),
            with_property("id", {"enum": ["q-3", "r-5", "s-7"]}),
        ),
        (
            with_property("at", {"const": "2026-11-24"}),
            with_property("at", {"const": "2026-11-25"}),
        ),
        (with_property("row_17", {"type": "number"}), with_property("row_23", {"type": "number"})),
        ({"anyOf": [{"const": 1}, {"const": 2}]}, {"anyOf": [{"const": 3}]}),
        (with_property("x", {"pattern": "^a-17$"}), with_property("x", {"pattern": "^b-3$"})),
        (schema(maxItems=100), schema(maxItems=101)),
        ({"properties": {"a": {}, "b": {}}}, {"properties": {"b": {}, "a": {}}}),
        ({"type": ["string", "null"]}, {"type": ["null", "string"]}),
        ({"$ref": "#/$defs/T17"}, {"$ref": "#/$defs/T18"}),
    ],
)
def test_outline_ignores_what_differs_from_request_to_request(one: Any, two: Any) -> None:
    """Values, titles, descriptions, patterns, bounds, digits and order are no part of an outline,
    but of the exact digest."""
    assert outline(one) == outline(two)
    assert exact(one) != exact(two)


@pytest.mark.parametrize(
    "other",
    [
        with_property("more", {"type": "string"}),
        schema(properties={"name": {"type": "string"}}),
        schema(properties=schema()["properties"] | {"name": {"type": "number"}}),
        schema(properties=schema()["properties"] | {"tags": {"type": "array"}}),
        schema(type="array"),
        {"anyOf": [schema(), {"type": "null"}]},
        {"items": schema()},
        {},
    ],
)
def test_outline_differs_with_names_and_types(other: Json) -> None:
    """A property, its type, an alternative or a list of items more makes another outline."""
    assert outline(other) != outline(schema())


def test_outline_of_a_response_format_ignores_its_name() -> None:
    """The name of a format may be made anew for each request; its kind and schema count."""

    def chat(name: str, inner: Any) -> str:
        stated = {"type": "json_schema", "json_schema": {"name": name, "schema": inner}}
        return outline(stated, "response_format")

    assert chat("order_at_1231", schema(title="a")) == chat("order_at_1232", schema(title="b"))
    assert chat("a", schema()) != chat("a", {"type": "string"})
    assert outline({"type": "json_object"}, "response_format") != chat("a", schema())
    grammars = [{"type": "grammar", "grammar": text} for text in ("root ::= a", "root ::= b")]
    assert len({outline(grammar, "response_format") for grammar in grammars}) == 2


def test_outline_reads_every_form_of_a_constraint() -> None:
    """A schema may be sent as text; of choices the longest counts, of other text all but digits."""
    for wrap, name in ((lambda x: {"json": x}, "structured_outputs"), (lambda x: x, "guided_json")):
        texts = [json.dumps(schema(title=title)) for title in "ab"]
        assert outline(wrap(texts[0]), name) == outline(wrap(texts[1]), name)
        assert outline(wrap(texts[0]), name) != outline(wrap(json.dumps({"type": "null"})), name)
    for name, wrap in (("guided_choice", list), ("structured_outputs", lambda x: {"choice": x})):
        ids, others, long = ["id-17", "id-18"], ["id-99", "id-21", "id-3"], ["a" * 300]
        assert outline(wrap(ids), name) == outline(wrap(others), name)
        assert outline(wrap(ids), name) != outline(wrap(long), name)
    texts = ["id-[0-9]+-17", "id-[0-9]+-18", "x"]
    first, same, other = (outline(text, "regex") for text in texts)
    assert first == same != other


def test_digests_without_constraints_are_empty() -> None:
    """A request without constraints keeps the keys it had before constraints were read."""
    assert exact_digest([]) == outline_digest([]) == ""


def test_exact_digest_covers_the_member_and_the_length() -> None:
    """Of a long constraint the beginning counts, and the length."""
    pad = "x" * READ_BYTES
    digests = {exact(text, "regex") for text in (pad, "y" + pad, pad + "z")}
    assert len(digests | {exact(pad, "grammar")}) == 4


@given(JSON, st.sampled_from(NAMES))
def test_outline_takes_any_json(value: Any, name: str) -> None:
    """Any value has an outline, and the same one each time."""
    assert outline(value, name) == outline(value, name) != ""


@pytest.mark.parametrize(
    "text",
    [
        b'{"type": "\\ud800", "properties": {"\\udfff": {"type": ["\\ud800"]}}}',
        b'{"minItems": 1e400, "maxItems": 123456789012345678901234567890}',
        b'{"items":' * 20_000 + b"{}" + b"}" * 20_000,
        b'{"$defs":{"a":{"items":{"$ref":"#/$defs/a"}}},"$ref":"#/$defs/a"}',
        b"not json",
    ],
)
def test_outline_takes_any_bytes(text: bytes) -> None:
    """Lone surrogates, huge numbers, endless nesting and references to themselves are read."""
    for name in NAMES:
        assert len(outline_digest([(name, msgspec.Raw(text))])) == 16


def test_outline_reads_a_bounded_part() -> None:
    """Beyond a number of objects, and beyond a size, schemas have one outline."""
    few = {f"k{'x' * i}": {"type": "string"} for i in range(NODES - 20)}
    many = {f"k{'x' * i}": {"type": "string"} for i in range(NODES + 50)}
    for properties, differs in ((few, True), (many, False)):
        last = {next(iter(reversed(properties))): {"type": "number"}}
        assert len(json.dumps({"properties": properties})) < READ_BYTES
        one, two = ({"properties": p} for p in (properties, properties | last))
        assert (outline(one) != outline(two)) is differs
    huge = {"enum": ["x" * READ_BYTES]}
    assert outline(huge) == outline(huge | {"type": "string"}) != outline({"enum": ["x"]})
    assert exact(huge) != exact(huge | {"type": "string"})
