"""What of a constraint stays the same when it is made for each request."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.skeleton import DEPTH, NODES, READ_BYTES, form_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = ("response_format", "guided_json", "structured_outputs", "guided_choice", "regex")


def form(value: Any, name: str = "guided_json") -> str:
    return form_of([(name, msgspec.Raw(json.dumps(value).encode()))])


def schema(**more: Any) -> dict[str, Any]:
    properties = {
        "name": {"type": "string", "description": "of the customer"},
        "tags": {"type": "array", "items": {"type": "string", "enum": ["id-1", "id-2"]}},
    }
    return {"type": "object", "properties": properties, "required": ["name"]} | more


def with_property(name: str, of: dict[str, Any]) -> dict[str, Any]:
    return schema(properties=schema()["properties"] | {name: of})


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (schema(title="order of 12:31:05"), schema(title="order of 12:31:09")),
        (schema(description="for Mr Smith"), schema()),
        (schema(default={"name": "x"}, examples=[1, 2]), schema()),
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
def test_form_of_a_schema_is_blind_to_what_requests_fill_in(one: Any, two: Any) -> None:
    """Enum values, constants, titles, descriptions, patterns, digits in names, order."""
    assert form(one) == form(two)


@pytest.mark.parametrize(
    "other",
    [
        with_property("more", {"type": "string"}),
        schema(properties={"name": {"type": "string"}}),
        schema(properties=schema()["properties"] | {"name": {"type": "number"}}),
        schema(properties=schema()["properties"] | {"tags": {"type": "array"}}),
        schema(type="array"),
        schema(additionalProperties=False),
        schema(maxProperties=3),
        {"anyOf": [schema(), {"type": "null"}]},
        {"items": schema()},
        {},
    ],
)
def test_form_of_a_schema_tells_structures_apart(other: dict[str, Any]) -> None:
    """Names, types, nesting, alternatives, bounds."""
    assert form(other) != form(schema())


def test_form_of_a_format_is_that_of_its_schema() -> None:
    """Its name may be made per request; the responses API has one layer less."""

    def chat(name: str, inner: Any) -> str:
        stated = {"type": "json_schema", "json_schema": {"name": name, "schema": inner}}
        return form(stated, "response_format")

    assert chat("order_at_1231", schema(title="a")) == chat("order_at_1232", schema(title="b"))
    assert chat("a", schema()) != chat("a", {"type": "string"})
    responses = {"type": "json_schema", "name": "x", "schema": schema()}
    assert form(responses, "response_format") == chat("y", schema())
    assert form({"type": "json_object"}, "response_format") != chat("a", schema())


def test_form_of_vllms_members() -> None:
    """A schema as an object or as text; a choice by its longest option; text without digits."""
    as_object, as_text = {"json": schema(title="a")}, {"json": json.dumps(schema(title="b"))}
    assert form(as_object, "structured_outputs") == form(as_text, "structured_outputs")
    assert form(json.dumps(schema(title="b"))) == form(schema())
    for name, wrap in (("guided_choice", list), ("structured_outputs", lambda x: {"choice": x})):
        ids, others, long = ["id-17", "id-18"], ["id-99", "id-21", "id-3"], ["a" * 300]
        assert form(wrap(ids), name) == form(wrap(others), name) != form(wrap(long), name)
    assert form("id-[0-9]+-17", "regex") == form("id-[0-9]+-18", "regex") != form("x", "regex")


def test_form_of_none_is_none() -> None:
    """Requests without constraints keep the keys they had."""
    assert form_of([]) == ""


@given(JSON, st.sampled_from(NAMES))
def test_form_never_raises(value: Any, name: str) -> None:
    """Whatever JSON stands there; and it is the same each time."""
    assert form(value, name) == form(value, name) != ""


@pytest.mark.parametrize(
    "text",
    [
        b'{"type": "\\ud800", "properties": {"\\udfff": {"type": ["\\ud800"]}}}',
        b'{"minItems": 1e400, "maxItems": 123456789012345678901234567890}',
        b'{"items":' * 20_000 + b"{}" + b"}" * 20_000,
        b"not json",
    ],
)
def test_form_takes_any_bytes(text: bytes) -> None:
    """Lone surrogates, numbers without end, nesting without end, no JSON at all."""
    for name in NAMES:
        assert len(form_of([(name, msgspec.Raw(text))])) == 16


def test_form_reads_so_much_and_no_more() -> None:
    """Beyond a depth, a number of nodes, a size, schemas are not told apart."""
    deep: Any = {"type": "string"}
    other: Any = {"type": "number"}
    for _ in range(DEPTH + 1):
        deep, other = {"items": deep}, {"items": other}
    assert form(deep) == form(other)
    assert form(deep["items"]["items"]) != form(other["items"]["items"])
    many: Any = {f"k{'x' * i}": {"type": "string"} for i in range(NODES + 50)}
    last = {f"k{'x' * (NODES + 49)}": {"type": "number"}}
    many_bytes = json.dumps({"properties": many})
    assert len(many_bytes) < READ_BYTES
    assert form({"properties": many}) == form({"properties": many | last})
    huge = {"enum": ["x" * READ_BYTES]}
    assert form(huge) == form(huge | {"type": "string"}) != form({"enum": ["x"]})
