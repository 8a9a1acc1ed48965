"""Digests of the constraints an answer is held to: a schema, a grammar, a list of choices.

A constraint decides an answer's length more than its prompt does, and the shipped models were
fitted on requests without one. So it enters the forecast through history, by two digests:

- the exact digest covers a constraint's bytes. It is part of a request's prompt key: a request
  that differs in its constraint is not taken for a repeat;
- the outline digest covers the names and types of a schema's properties. It is part of a
  request's template key. Applications make schemas anew for each request, with the ids at hand
  in an enum or the time in a title; by their bytes each would be a template of its own, from
  which no later request could learn. Digits in names are blanked for the same reason.

An outline leaves out the nesting of properties and their bounds. Of a list of choices it has the
size of the longest; of everything else, such as a grammar, the bytes, with digits blanked. Both
digests read a bounded part of any input, and follow no reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any

import msgspec
from msgspec import Raw

READ_BYTES = 64 * 1024  # of one constraint; of a longer one the outline has the length alone
NODES = 256  # objects and lists of a schema that are visited
NAME_CHARS = 128

Constraint = tuple[str, Raw]  # the name of a member, and its JSON

_SCHEMAS = ("guided_json", "json_schema")
_VALUES = frozenset({"enum", "const", "default", "examples"})  # differ from request to request
_BLANKED = {ord(digit): "0" for digit in "123456789"}
_BLANKED_BYTES = bytes(ord("0") if chr(byte) in "123456789" else byte for byte in range(256))


def exact_digest(constraints: Sequence[Constraint]) -> str:
    """16 hexadecimal digits; "" without constraints."""
    if not constraints:
        return ""
    hash = blake2b(digest_size=8)
    for name, raw in constraints:
        hash.update(f"{name}\x00{len(raw)}\x00".encode())
        hash.update(memoryview(raw)[:READ_BYTES])
    return hash.hexdigest()


def outline_digest(constraints: Sequence[Constraint]) -> str:
    """16 hexadecimal digits; "" without constraints. Never raises."""
    if not constraints:
        return ""
    outlines = [(name, _outline(name, raw)) for name, raw in constraints]
    return blake2b(repr(outlines).encode("utf-8", "replace"), digest_size=8).hexdigest()


def _outline(name: str, raw: Raw) -> object:
    if len(raw) > READ_BYTES:
        return len(raw).bit_length()
    text = bytes(raw)
    value = _decoded(text)
    choices = value.get("choice") if isinstance(value, dict) else value
    if isinstance(choices, list):
        longest = max((len(one) for one in choices if isinstance(one, str)), default=0)
        return longest.bit_length()
    properties = _properties(value)
    if len(properties) > 1 or name in _SCHEMAS:
        return sorted(properties)
    return text.translate(_BLANKED_BYTES)


def _decoded(text: bytes) -> Any:
    """The value, a schema that was sent as text decoded, too; None for what is not JSON."""
    try:
        value = msgspec.json.decode(text)
        if isinstance(value, dict) and isinstance(value.get("json"), str):
            value = value["json"]
        return msgspec.json.decode(value) if isinstance(value, str) else value
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return None


def _properties(value: Any) -> set[tuple[str, str]]:
    """Name and type of every object in a schema; alternatives and items under their keyword."""
    properties: set[tuple[str, str]] = set()
    waiting: list[tuple[str, Any]] = [("", value)] if isinstance(value, dict) else []
    for _ in range(NODES):
        if not waiting:
            break
        name, node = waiting.pop()
        if isinstance(node, dict):
            properties.add((name[:NAME_CHARS].translate(_BLANKED), _type(node.get("type"))))
            inner = (pair for pair in node.items() if pair[0] not in _VALUES)
        else:
            inner = ((name, item) for item in node)
        waiting += islice((pair for pair in inner if isinstance(pair[1], dict | list)), NODES)
    return properties


def _type(type: object) -> str:
    if isinstance(type, list):
        type = "|".join(sorted(str(one) for one in type[:8]))
    return type[:NAME_CHARS] if isinstance(type, str) else ""
