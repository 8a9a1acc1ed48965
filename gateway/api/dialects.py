"""Members by which a request asks for thinking and for a form of its answer, in every dialect.

Providers that speak OpenAI's format have members of their own for both. None of them is the
gateway's: whether a value is right is for the provider to say. A value that does not read as
expected counts as absent here, and goes on to the provider as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any, TypeVar

import msgspec
from msgspec import MsgspecError, Raw, Struct

from gateway.api.constraints import Constraint
from gateway.api.schemas import MAX_TOKENS, NULL, ConstraintMembers, Generation

T = TypeVar("T")
Json = dict[str, Any]

LOOSE_BYTES = 2**20  # of a member without a fixed type; a longer one counts as absent
OPTION_BYTES = 16 * 1024  # of an object of options; a longer one counts as absent
LEVEL_CHARS = 32


# -- members without a fixed type --------------------------------------------------------------


def is_given(raw: Raw) -> bool:
    """False for an absent member and for null."""
    return raw is not NULL and (len(raw) != 4 or bytes(raw) != b"null")


def read_member(raw: Raw, kind: type[T]) -> T | None:
    """The member as `kind`; None where it is absent, huge or of another kind."""
    if not is_given(raw) or len(raw) > LOOSE_BYTES:
        return None
    try:
        return msgspec.json.decode(raw, type=kind)
    except (MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _option(raw: Raw) -> Any:
    """The member as it is; None where it is absent or large."""
    if raw is NULL or len(raw) > OPTION_BYTES:
        return None
    return read_member(raw, object)


def _options(raw: Raw) -> Json:
    return _object(_option(raw))


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _level(value: object) -> str | None:
    """The name of a level, in lower case."""
    return value[:LEVEL_CHARS].lower() if isinstance(value, str) and value else None


# -- thinking ----------------------------------------------------------------------------------


class Thinking:
    """The thinking a request asks for: a switch `on`, a `budget` in tokens, the name of a level
    `effort` in lower case. Each is None where the members are absent or malformed.

    - OpenAI: `reasoning_effort`; /v1/responses: `reasoning.effort`
    - Ark (Doubao), Kimi, GLM, DeepSeek: `thinking.type` enabled | disabled | auto; Anthropic's
      `thinking.budget_tokens`
    - Qwen (DashScope): `enable_thinking`, `thinking_budget`; vLLM and SGLang the same inside
      `chat_template_kwargs`, where DeepSeek's template calls it `thinking`
    - OpenRouter: `reasoning.enabled`, `reasoning.max_tokens`
    - Gemini: `google.thinking_config` with `thinking_budget` (0 off, -1 as the model likes) and
      `thinking_level`, at the top or inside `extra_body`

    Where two members differ, the plainer one counts: a switch before a budget.
    """

    __slots__ = ("budget", "effort", "on")

    @classmethod
    def of(cls, request: Generation) -> Thinking:
        """The thinking of a request. Most have none of the members, which is seen at once."""
        return NO_THINKING if _thinking_members(request) == _NO_THINKING_MEMBERS else cls(request)

    def __init__(self, request: Generation) -> None:
        template = _options(request.chat_template_kwargs)
        thinking = _options(request.thinking)
        reasoning = _options(request.reasoning)
        gemini = _gemini(request)
        budget = _first(
            _tokens(value)
            for value in (
                _option(request.thinking_budget),
                template.get("thinking_budget"),
                thinking.get("budget_tokens"),
                reasoning.get("max_tokens"),
                gemini.get("thinking_budget"),
            )
        )
        self.effort: str | None = _first(
            _level(value)
            for value in (
                _option(request.reasoning_effort),
                reasoning.get("effort"),
                thinking.get("effort"),
                gemini.get("thinking_level"),
            )
        )
        self.on: bool | None = _first(
            _switch(value)
            for value in (
                _option(request.enable_thinking),
                template.get("enable_thinking"),
                template.get("thinking"),
                thinking.get("type", _option(request.thinking)),
                reasoning.get("enabled"),
                False if budget == 0 else None,
            )
        )
        self.budget: int | None = budget


_THINKING_MEMBERS = (
    *("chat_template_kwargs", "thinking", "reasoning", "thinking_budget", "reasoning_effort"),
    *("enable_thinking", "google", "extra_body"),
)
_thinking_members = attrgetter(*_THINKING_MEMBERS)
_NO_THINKING_MEMBERS = (NULL,) * len(_THINKING_MEMBERS)


def _gemini(request: Generation) -> Json:
    google = _options(request.google)
    if not google:
        google = _object(_options(request.extra_body).get("google"))
    return _object(google.get("thinking_config"))


def _first(values: Iterator[Any]) -> Any:
    return next((value for value in values if value is not None), None)


_SWITCH = {"enabled": True, "disabled": False}  # "auto" and "adaptive" leave it to the model


def _switch(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return _SWITCH.get(value) if isinstance(value, str) else None


def _tokens(value: object) -> int | None:
    """A budget; None for a negative one, too (Gemini's -1: as many as the model likes)."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= MAX_TOKENS else None


# -- the form of the answer --------------------------------------------------------------------


class _Format(Struct):
    type: str | None = None


class _Text(Struct):
    """`text` of the responses API."""

    format: Raw = NULL
    verbosity: Raw = NULL


class _StructuredOutputs(Struct):
    json: Raw = NULL
    json_object: Raw = NULL


_PLAIN = ("text", None)  # formats that constrain nothing
_EMPTY = (b"false", b'""', b"[]", b"{}")  # members that constrain nothing


class AnswerForm:
    """The form a request asks for: `format` ("json_object", "json_schema", the name of another
    kind or None), `constraints`, and the level `verbosity` or None.

    - OpenAI: `response_format`, in the responses API `text.format`; `verbosity`, `text.verbosity`
    - vLLM: `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar`; later one
      `structured_outputs` of `json`, `json_object`, `regex`, `choice`, `grammar`, `structural_tag`
    - SGLang: `regex`, `ebnf`; llama.cpp: `grammar`, `json_schema`

    All but OpenAI's may also stand inside `extra_body`.
    """

    __slots__ = ("constraints", "format", "verbosity")

    @classmethod
    def of(cls, request: Generation) -> AnswerForm:
        """The form of a request. Most have none of the members, which is seen at once."""
        return NO_FORM if _form_members(request) == _NO_FORM_MEMBERS else cls(request)

    def __init__(self, request: Generation) -> None:
        text = read_member(request.text, _Text) or _Text()
        stated = request.response_format if is_given(request.response_format) else text.format
        read = read_member(stated, _Format)
        format = None if read is None else read.type
        self.constraints = list(_constraints(request))
        if format not in _PLAIN:
            self.constraints.insert(0, ("response_format", stated))
        self.format: str | None = format if format not in _PLAIN else _json_kind(self.constraints)
        self.verbosity = _level(_option(request.verbosity)) or _level(_option(text.verbosity))


_FORM_MEMBERS = (
    *("response_format", "text", "verbosity", "extra_body"),
    *ConstraintMembers.__struct_fields__,
)
_form_members = attrgetter(*_FORM_MEMBERS)
_NO_FORM_MEMBERS = (NULL,) * len(_FORM_MEMBERS)


def _constraints(request: Generation) -> Iterator[Constraint]:
    """The members that constrain the answer; those of `extra_body` after the others."""
    for holder in (request, read_member(request.extra_body, ConstraintMembers)):
        for name in ConstraintMembers.__struct_fields__ if holder is not None else ():
            raw: Raw = getattr(holder, name)
            if is_given(raw) and bytes(memoryview(raw)[:5]) not in _EMPTY:
                yield name, raw


def _json_kind(constraints: list[Constraint]) -> str | None:
    """The format of the constraint that makes the answer JSON; None where there is none."""
    for name, raw in constraints:
        if name in ("guided_json", "json_schema"):
            return "json_schema"
        if name == "structured_outputs":
            options = read_member(raw, _StructuredOutputs) or _StructuredOutputs()
            if is_given(options.json):
                return "json_schema"
            if bytes(options.json_object) == b"true":
                return "json_object"
    return None


_NOTHING = Generation(model="")
NO_THINKING, NO_FORM = Thinking(_NOTHING), AnswerForm(_NOTHING)
