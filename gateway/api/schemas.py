"""Bodies of `/v1/*` requests: the members that the gateway owns or forecasts by, their bounds, and
errors in OpenAI's wording. Every other member passes through unread.
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
    """Raises BodyTooLarge for JSON with so many members that decoding it would hold up the loop.

    Braces and commas inside strings count, too: no text within today's context windows has so
    many.
    """
    if len(body) > COMPLEX_BYTES and (
        body.count(b"{") > MAX_OBJECTS or body.count(b",") > MAX_COMMAS
    ):
        raise BodyTooLarge(
            "The JSON body has too many members.", code="request_too_complex", should_retry=False
        )


class ContentPart(Struct):
    """A part of a message's content. Only text is read."""

    type: str = ""
    text: str | None = None


class ChatMessage(Struct):
    """A message of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None


class StreamMembers(Struct):
    """The member `stream_options`."""

    include_usage: bool | None = None


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
    """Members shared by the generating routes. Those of type Raw are read for the forecast alone
    (dialects.py, prompt.py); their values are for the provider to judge."""

    model: str
    stream: bool | None = None
    stream_options: StreamMembers | None = None
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
        """The largest of the limits, None without one. A smaller one beside it must not shrink
        the reservation below what the provider may generate."""
        limits = [self.max_tokens, self.max_completion_tokens, self.max_output_tokens]
        return max([limit for limit in limits if limit is not None], default=None)


class ChatRequest(Generation, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage]


class CompletionRequest(Generation, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: Raw = NULL


class ResponsesRequest(Generation, kw_only=True):
    """The body of POST /v1/responses."""

    input: Raw = NULL
    instructions: Raw = NULL


class RoutedRequest(Struct):
    """The body of a route that generates no text: the members it is routed by."""

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
            body.decode()  # msgspec checks decoded strings alone, but all of them are relayed
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
    """Check the values that types do not bound. Raises InvalidRequest."""
    if not request.model.strip():
        raise InvalidRequest("'model' must not be empty.", param="model", code="invalid_value")
    check_positive(request.max_tokens, "max_tokens", MAX_TOKENS)
    check_positive(request.max_completion_tokens, "max_completion_tokens", MAX_TOKENS)
    check_positive(request.max_output_tokens, "max_output_tokens", MAX_TOKENS)
    check_positive(request.n, "n", MAX_CHOICES)
    check_positive(request.best_of, "best_of", MAX_CHOICES)


def check_messages(messages: list[Any] | None) -> None:
    """Raises InvalidRequest without a message."""
    if not messages:
        raise InvalidRequest(
            "'messages' must hold at least one message.", param="messages", code="empty_array"
        )
