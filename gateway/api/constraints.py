"""The shape an answer is asked to have: a format, a grammar, a choice, a verbosity.

A list of choices or a schema says more of an answer's length than its prompt does, and each
provider has a member of its own for it:

- OpenAI: `response_format`, in the responses API `text.format`; `verbosity`, `text.verbosity`
- vLLM: `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar`; lately one
  `structured_outputs` of `json`, `json_object`, `regex`, `choice`, `grammar`, `structural_tag`
- SGLang: `regex`, `ebnf`; llama.cpp: `grammar`, `json_schema`

All but OpenAI's may also stand inside `extra_body`, where a client sent that as it was told.

The models were fitted on rows without any of this and cannot read it. What can is history:
the constraint goes into the request's prompt key, as a digest of its bytes, and into its
template, as one of what a schema made anew for each request keeps (skeleton.py), so answers of
one schema are told from those of another (predict/view.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

from msgspec import Raw, Struct

from gateway.api.schemas import (
    NULL,
    Generation,
    ResponseFormat,
    given,
    read_loose,
    read_option,
    word_of,
)
from gateway.api.skeleton import form_of

DIGEST_BYTES = 64 * 1024  # of a constraint; of a longer one its beginning and its length
PLAIN = ("text", None)  # formats that constrain nothing

_JSON, _SCHEMA = "json_object", "json_schema"


class Shape(Struct, frozen=True):
    """What of an answer's shape is asked for."""

    format: str | None = None  # "json_object", "json_schema", another kind's name, or nothing
    digest: str = ""  # of the constraints, 16 hexadecimal digits; "" where there is none
    form: str = ""  # likewise of their skeletons
    verbosity: str | None = None


class _Text(Struct):
    format: Raw = NULL
    verbosity: Raw = NULL


def shape_of(request: Generation) -> Shape:
    """Read from every member that states it; what cannot be read is not there."""
    text = read_loose(request.text, _Text) or _Text()
    stated = request.response_format if given(request.response_format) else text.format
    format = _format(stated)
    constraints = list(_constraints(request))
    if format not in PLAIN:
        constraints.insert(0, ("response_format", stated))
    verbosity = word_of(read_option(request.verbosity)) or word_of(read_option(text.verbosity))
    kind, digest = _kind(format, constraints), _digest(constraints)
    return Shape(kind, digest, form_of(constraints), verbosity)


def _format(stated: Raw) -> str | None:
    found = read_loose(stated, ResponseFormat)
    return None if found is None else found.type


class _Extra(Struct):
    """What vLLM and others read; the same members as in `Generation`."""

    guided_json: Raw = NULL
    guided_regex: Raw = NULL
    guided_choice: Raw = NULL
    guided_grammar: Raw = NULL
    structured_outputs: Raw = NULL
    regex: Raw = NULL
    ebnf: Raw = NULL
    grammar: Raw = NULL
    json_schema: Raw = NULL


def _constraints(request: Generation) -> Iterator[tuple[str, Raw]]:
    """Members that constrain the answer, by name; those of `extra_body` after the others."""
    for holder in (request, read_loose(request.extra_body, _Extra)):
        for name in _Extra.__struct_fields__ if holder is not None else ():
            raw: Raw = getattr(holder, name)
            if given(raw) and bytes(memoryview(raw)[:5]) not in (b"false", b'""', b"[]", b"{}"):
                yield name, raw


def _kind(format: str | None, constraints: list[tuple[str, Raw]]) -> str | None:
    """The stated format, unless a constraint of another member makes it JSON."""
    if format not in PLAIN:
        return format
    for name, raw in constraints:
        if name in ("guided_json", "json_schema"):
            return _SCHEMA
        if name == "structured_outputs":
            options = read_loose(raw, _Structured) or _Structured()
            if given(options.json):
                return _SCHEMA
            if bytes(options.json_object) == b"true":
                return _JSON
    return format


class _Structured(Struct):
    json: Raw = NULL
    json_object: Raw = NULL


def _digest(constraints: list[tuple[str, Raw]]) -> str:
    if not constraints:
        return ""
    hash = blake2b(digest_size=8)
    for name, raw in constraints:
        hash.update(f"{name}\x00{len(raw)}\x00".encode())
        hash.update(memoryview(raw)[:DIGEST_BYTES])
    return hash.hexdigest()
