"""What the gateway reads of requests, and what it answers. Only the fields it owns or
forecasts by; everything else in a body passes through unread.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from gateway.errors import BodyTooLarge, InvalidRequest

T = TypeVar("T")
MAX_CHOICES = 128
MAX_TOKENS = 2**31 - 1  # beyond any provider's, within a 64-bit column


NULL = Raw(b"null")  # a union with Raw would not decode
MAX_OBJECTS = 500_000
MAX_COMMAS = 1_000_000
COMPLEX_BYTES = 512 * 1024  # smaller bodies cannot be complex enough to matter


def check_complexity(body: bytes) -> None:
    """Raises BodyTooLarge for JSON with so many members that reading it would hold up the loop.

    Counts characters, which may also stand inside strings: half a million objects in one
    request are no conversation, and no text within today's context windows has so many.
    """
    if len(body) > COMPLEX_BYTES and (
        body.count(b"{") > MAX_OBJECTS or body.count(b",") > MAX_COMMAS
    ):
        raise BodyTooLarge(
            "The JSON body has too many members.", code="request_too_complex", should_retry=False
        )


class Part(Struct):
    type: str = ""
    text: str | None = None


class Message(Struct):
    role: str
    content: str | list[Part] | None = None


class StreamOptions(Struct):
    include_usage: bool | None = None


class ResponseFormat(Struct):
    type: str | None = None


class ConstraintMembers(Struct):
    """Members by which servers other than OpenAI's constrain an answer. Clients send them in a
    request, or in its `extra_body`."""

    guided_json: Raw = NULL
    guided_regex: Raw = NULL
    guided_choice: Raw = NULL
    guided_grammar: Raw = NULL
    structured_outputs: Raw = NULL
    regex: Raw = NULL
    ebnf: Raw = NULL
    grammar: Raw = NULL
    json_schema: Raw = NULL


class Generation(ConstraintMembers, kw_only=True):
    """Members shared by the generating routes. Those of type Raw are read by prompt.py alone,
    for the forecast; their values are for the provider to judge."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    temperature: float | None = None
    stop: Raw = NULL
    tools: Raw = NULL
    functions: Raw = NULL
    response_format: Raw = NULL
    text: Raw = NULL
    reasoning_effort: Raw = NULL
    reasoning: Raw = NULL
    thinking: Raw = NULL
    enable_thinking: Raw = NULL
    thinking_budget: Raw = NULL
    chat_template_kwargs: Raw = NULL
    extra_body: Raw = NULL
    google: Raw = NULL
    verbosity: Raw = NULL

    @property
    def limit(self) -> int | None:
        """The larger of the limits given: the smaller one beside it must not shrink a
        reservation that the provider will not honour."""
        given = [
            limit
            for limit in (self.max_tokens, self.max_completion_tokens, self.max_output_tokens)
            if limit is not None
        ]
        return max(given) if given else None


class LooseMessage(Struct):
    """An input item of the responses API, as far as it reads like a message."""

    role: str = ""
    content: str | list[Part] | None = None


LOOSE_BYTES = 2**20  # of a member without a fixed type, read only to forecast by


def given(raw: Raw) -> bool:
    return raw is not NULL and (len(raw) != 4 or bytes(raw) != b"null")


def read_loose(raw: Raw, kind: type[T]) -> T | None:
    """A member of no fixed type, where it reads as `kind` and is not huge; else None."""
    if not given(raw) or len(raw) > LOOSE_BYTES:
        return None
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


OPTION_BYTES = 16 * 1024  # an object of options that is longer is none
WORD = 32  # characters of a level that are kept


def read_option(raw: Raw) -> Any:
    """A member as it is, where it is small; None where it is absent."""
    if raw is NULL or len(raw) > OPTION_BYTES:
        return None
    return read_loose(raw, object)


def word_of(value: object) -> str | None:
    """The name of a level, in lower case."""
    return value[:WORD].lower() if isinstance(value, str) and value else None


class ChatRequest(Generation, kw_only=True):
    messages: list[Message]


class CompletionRequest(Generation, kw_only=True):
    prompt: Raw = NULL


class ResponsesRequest(Generation, kw_only=True):
    input: Raw = NULL
    instructions: Raw = NULL


class RoutedRequest(Struct):
    """A route the gateway only routes."""

    model: str | None = None
    stream: bool | None = None
    input: Raw = NULL  # of embeddings


_WHAT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")
_UNKNOWN = re.compile(r"unknown field `(?P<field>[^`]+)`")


def decode(body: bytes, kind: type[T]) -> T:
    """Decode a JSON body. Raises InvalidRequest with OpenAI's wording and `param`."""
    try:
        if not body.isascii():
            body.decode()  # msgspec looks at the strings it keeps; the rest is relayed, too
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"We could not parse the JSON body of your request: {error}", code="invalid_json"
        ) from None
    except RecursionError:
        raise InvalidRequest("The JSON body is nested too deeply.", code="invalid_json") from None


def _invalid(text: str) -> InvalidRequest:
    match = _WHAT.match(text)
    what = match["what"] if match else text
    path = ((match["path"] if match else None) or "$").removeprefix("$").removeprefix(".")
    missing, unknown = _MISSING.search(what), _UNKNOWN.search(what)
    if missing:
        param = f"{path}.{missing['field']}".lstrip(".")
        return InvalidRequest(
            f"Missing required parameter: '{param}'.",
            param=param,
            code="missing_required_parameter",
        )
    if unknown:
        param = f"{path}.{unknown['field']}".lstrip(".")
        return InvalidRequest(
            f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter"
        )
    what = what[:1].lower() + what[1:]
    if not path:
        return InvalidRequest(f"The body is not valid: {what}.", code="invalid_type")
    return InvalidRequest(
        f"Invalid value for '{path}': {what}.",
        param=path,
        code="invalid_type",
    )


def check_positive(value: int | None, name: str, most: int | None = None) -> None:
    """Raises InvalidRequest unless `value` is None or in [1, most]."""
    if value is None:
        return
    if value < 1 or (most is not None and value > most):
        bound = "at least 1" if most is None else f"between 1 and {most}"
        raise InvalidRequest(
            f"Invalid value for '{name}': expected {bound}, got {value}.",
            param=name,
            code="invalid_value",
        )


def check_generation(request: Generation) -> None:
    """The rules over values that types do not carry."""
    if not request.model.strip():
        raise InvalidRequest("'model' must not be empty.", param="model", code="invalid_value")
    check_positive(request.max_tokens, "max_tokens", MAX_TOKENS)
    check_positive(request.max_completion_tokens, "max_completion_tokens", MAX_TOKENS)
    check_positive(request.max_output_tokens, "max_output_tokens", MAX_TOKENS)
    check_positive(request.n, "n", MAX_CHOICES)
    check_positive(request.best_of, "best_of", MAX_CHOICES)


def check_messages(messages: list[Any] | None) -> None:
    if not messages:
        raise InvalidRequest(
            "'messages' must hold at least one message.", param="messages", code="empty_array"
        )
