"""What of a constraint stays the same when it is made anew for each request.

Applications write schemas by code: an enum of the ids at hand, a title with the time in it, a
description with the customer's name. By its bytes each would be a template of its own, whose
corrections no second request ever profits from. What such a schema keeps is its skeleton:

- kept: types, names of properties, how they nest, alternatives (each kind once), references,
  and what bounds the answer's length, in powers of two (`minItems`, `maxItems`, …)
- left out: values of enums and constants (their types stay), titles, descriptions, examples,
  defaults, patterns; digits in names, as in a system prompt's (predict/view.py)

A choice is told by the size of its longest option. Grammars and regular expressions have no
skeleton that could be read here: they are told by their bytes, digits left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Raw

NODES = 256  # of a schema that are read; walking them takes about a millisecond
DEPTH = 32
OPTIONS = 16  # of an enum whose types are read
READ_BYTES = 64 * 1024  # of a longer constraint its kind and size are all that is told
KEPT = 64  # constraints met lately: most applications send the same one again and again

Tree = list[Any] | str | int | None

_NESTED = ("items", "additionalProperties", "contains", "not", "if", "then", "else")
_ALTERNATIVES = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_BOUNDS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_SCHEMAS = ("guided_json", "json_schema")
_DIGITS = bytes(ord("0") if chr(byte).isdigit() else byte for byte in range(128)) + bytes(
    range(128, 256)
)


def form_of(constraints: list[tuple[str, Raw]]) -> str:
    """A digest of the constraints' skeletons, 16 hexadecimal digits; "" where there is none."""
    if not constraints:
        return ""
    told = [[name, _form(name, raw)] for name, raw in constraints]
    return blake2b(msgspec.msgpack.encode(told), digest_size=8).hexdigest()


def _form(name: str, raw: Raw) -> Any:
    if len(raw) > READ_BYTES:
        return len(raw).bit_length()
    return _read(name, bytes(raw))


@lru_cache(KEPT)
def _read(name: str, raw: bytes) -> Any:
    try:
        return _skeleton(name, msgspec.json.decode(raw))
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return raw.translate(_DIGITS)


def _skeleton(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        if name in _SCHEMAS:
            return _Walk().schema(value)
        if name == "response_format":
            return _format(value)
        if name == "structured_outputs":
            return [[_blanked(key), _option(key, part)] for key, part in sorted(value.items())]
    if name == "guided_json" and isinstance(value, str):
        return _option("json", value)
    if isinstance(value, list) and name == "guided_choice":
        return _choice(value)
    return _text(value)


def _format(format: dict[str, Any]) -> Any:
    """`{"type": …, "json_schema": {"schema": …}}`; in the responses API without the layer; of
    another kind, such as a grammar, all members but a name."""
    inner = format.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else format.get("schema")
    if isinstance(schema, dict):
        return [_types(format.get("type")), _Walk().schema(schema)]
    return [[_blanked(key), _text(part)] for key, part in sorted(format.items()) if key != "name"]


def _option(key: str, value: Any) -> Any:
    if key == "json" and isinstance(value, str):  # vLLM takes a schema as text, too
        value = msgspec.json.decode(value)
    if key == "json" and isinstance(value, dict):
        return _Walk().schema(value)
    if key == "choice" and isinstance(value, list):
        return _choice(value)
    return _text(value)


def _choice(options: list[Any]) -> int:
    longest = max((len(one) for one in options if isinstance(one, str)), default=0)
    return longest.bit_length()


def _text(value: Any) -> bytes:
    return msgspec.json.encode(value).translate(_DIGITS)


class _Walk:
    """Through one schema, at most `NODES` of it."""

    def __init__(self) -> None:
        self._left = NODES

    def schema(self, value: object, depth: int = 0) -> Tree:
        self._left -= 1
        if not isinstance(value, dict) or depth > DEPTH or self._left < 0:
            return str(value) if isinstance(value, bool) else None
        return list(self._parts(value, depth))

    def _parts(self, of: dict[str, Any], depth: int) -> Iterator[list[Tree]]:
        """In a fixed order, whatever the order they were written in."""
        if (type := of.get("type")) is not None:
            yield ["type", _types(type)]
        for name in ("$ref", "format"):
            if isinstance(of.get(name), str):
                yield [name, _blanked(of[name])]
        if isinstance(of.get("enum"), list):
            kinds = {_kind(option) for option in of["enum"][:OPTIONS]}
            yield ["enum", *sorted(kinds)]
        if "const" in of:
            yield ["enum", _kind(of["const"])]
        for name in _BOUNDS:
            if isinstance(of.get(name), int):
                yield [name, abs(of[name]).bit_length()]
        for name in _NAMED:
            if isinstance(of.get(name), dict):
                yield [name, *self._named(of[name], depth)]
        for name in _NESTED:
            if isinstance(of.get(name), dict | bool):
                yield [name, self.schema(of[name], depth + 1)]
        for name in _ALTERNATIVES:
            if isinstance(of.get(name), list):
                yield [name, *self._each_once(of[name], depth)]

    def _named(self, members: dict[str, Any], depth: int) -> list[Tree]:
        """Names that differ by their digits, and are of one kind, count once."""
        found: dict[bytes, Tree] = {}
        for name, schema in members.items():
            if self._left < 0:
                break
            pair: Tree = [_blanked(name), self.schema(schema, depth + 1)]
            found[msgspec.msgpack.encode(pair)] = pair
        return [found[key] for key in sorted(found)]

    def _each_once(self, schemas: list[Any], depth: int) -> list[Tree]:
        found: dict[bytes, Tree] = {}
        for schema in schemas:
            if self._left < 0:
                break
            tree = self.schema(schema, depth + 1)
            found[msgspec.msgpack.encode(tree)] = tree
        return [found[key] for key in sorted(found)]


def _types(type: object) -> Tree:
    if isinstance(type, list):
        return [_blanked(one) for one in sorted(map(str, type[:OPTIONS]))]
    return _blanked(str(type))


def _kind(value: object) -> str:
    kind = value.__class__.__name__
    return "number" if kind in ("int", "float") else kind


def _blanked(name: str) -> str:
    return name[:128].encode("utf-8", "replace").translate(_DIGITS).decode("utf-8")
