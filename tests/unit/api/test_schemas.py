"""Decoding of request bodies, and the errors for those that cannot be read."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.api.control import IngestRequest, PredictRequest
from gateway.api.schemas import (
    MAX_CHOICES,
    MAX_TOKENS,
    ChatRequest,
    CompletionRequest,
    ResponsesRequest,
    RoutedRequest,
    check_generation,
    check_messages,
    check_positive,
    decode,
)
from gateway.errors import InvalidRequest

QUICK = hypothesis_settings(max_examples=200, deadline=None, database=None)
MESSAGES = [{"role": "user", "content": "hi"}]
KINDS = [
    RoutedRequest,
    ChatRequest,
    CompletionRequest,
    IngestRequest,
    PredictRequest,
    ResponsesRequest,
]


def chat(**members: Any) -> bytes:
    return json.dumps({"model": "m", "messages": MESSAGES, **members}).encode()


def refused(body: bytes, kind: type = ChatRequest) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode(body, kind)
    assert caught.value.status == 400
    assert caught.value.type == "invalid_request_error"
    return caught.value


# -- decode ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "code", "message"),
    [
        (b"", None, "invalid_json", "parse the JSON body"),
        (b"{", None, "invalid_json", "parse the JSON body"),
        (b'{"model": "m",}', None, "invalid_json", "parse the JSON body"),
        (b'{"model": NaN}', None, "invalid_json", "parse the JSON body"),
        (b'{"model": "\xff"}', None, "invalid_json", "parse the JSON body"),
        (chat(x="\ud800"), None, "invalid_json", "parse the JSON body"),
        (b'{"x": ' + b"[" * 100_000, None, "invalid_json", "nested too deeply"),
        (b"[]", None, "invalid_type", "expected"),
        (b'"model"', None, "invalid_type", "expected"),
        (b"{}", "model", "missing_required_parameter", "'model'"),
        (b'{"model": "m"}', "messages", "missing_required_parameter", "'messages'"),
        (chat(model=None), "model", "invalid_type", "expected `str`, got `null`"),
        (chat(max_tokens="5"), "max_tokens", "invalid_type", "got `str`"),
        (chat(max_tokens=5.5), "max_tokens", "invalid_type", "got `float`"),
        (chat(max_tokens=True), "max_tokens", "invalid_type", "got `bool`"),
        (chat(stream="yes"), "stream", "invalid_type", "expected `bool | null`, got `str`"),
        (chat(messages={}), "messages", "invalid_type", "got `object`"),
        (
            chat(messages=[*MESSAGES, {"content": "x"}]),
            "messages[1].role",
            "missing_required_parameter",
            "'messages[1].role'",
        ),
        (chat(messages=[{"role": 1}]), "messages[0].role", "invalid_type", "got `int`"),
        (
            chat(messages=[{"role": "user", "content": [{"text": 5}]}]),
            "messages[0].content[0].text",
            "invalid_type",
            "got `int`",
        ),
        (
            chat(stream_options={"include_usage": "yes"}),
            "stream_options.include_usage",
            "invalid_type",
            "got `str`",
        ),
    ],
)
def test_decode_names_the_member_and_the_expected_type(
    body: bytes, param: str | None, code: str, message: str
) -> None:
    """Errors have OpenAI's `param` and `code`, so that a client's code can tell one fault from
    another."""
    error = refused(body)
    assert (error.param, error.code) == (param, code)
    assert message in error.message


def test_decode_refuses_bytes_that_are_not_utf8() -> None:
    """Unread members count, too: they are relayed, and a body may be edited."""
    for body in (b'{"model": "m", "\xff": 1}', b'{"model": "m", "x": "\xff"}'):
        assert refused(body, RoutedRequest).code == "invalid_json"
    assert decode('{"model": "é", "ü": "日本"}'.encode(), RoutedRequest).model == "é"


def test_decode_names_unknown_members_of_own_routes() -> None:
    """The gateway's own routes are strict, so that a misspelt member has an effect."""
    error = refused(b'{"prompt": "x", "max_token": 5}', PredictRequest)
    assert (error.param, error.code) == ("max_token", "unknown_parameter")
    assert error.message == "Unknown parameter: 'max_token'."


def test_decode_passes_over_members_of_the_provider() -> None:
    """Members that the gateway does not own may have any value."""
    request = decode(chat(new_thing={"a": 1}, logprobs="whatever"), ChatRequest)
    assert request.model == "m"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ""}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "refusal": "no"},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
        {"role": "developer", "content": "x", "name": "n"},
    ],
)
def test_chat_takes_every_kind_of_message(message: dict[str, Any]) -> None:
    """Texts, parts, tool calls and refusals are read: everything the official client can send."""
    (read,) = decode(chat(messages=[message]), ChatRequest).messages
    assert read.role == message["role"]


def test_generation_takes_nulls_for_absent() -> None:
    """Clients write null for members they leave out."""
    names = ("stream", "stream_options", "max_tokens", "n", "temperature", "stop", "tools")
    request = decode(chat(**dict.fromkeys(names)), ChatRequest)
    check_generation(request)
    assert request.limit is None


@QUICK
@given(
    body=st.binary(max_size=60) | st.text(max_size=60).map(str.encode), kind=st.sampled_from(KINDS)
)
@example(body=b'{"model": "\\ud800"}', kind=RoutedRequest)
@example(body=b"\xef\xbb\xbf{}", kind=RoutedRequest)
def test_decode_raises_invalid_request_alone(body: bytes, kind: type) -> None:
    """Any body is read or refused; none is a fault of the gateway."""
    with contextlib.suppress(InvalidRequest):
        decode(body, kind)


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_output_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": 9}, 9),
        ({"max_tokens": 9, "max_completion_tokens": 5}, 9),
    ],
)
def test_limit_is_the_largest_of_the_limits(limits: dict[str, int], limit: int | None) -> None:
    """A smaller limit beside it must not shrink the reservation below what the provider may
    generate."""
    assert decode(chat(**limits), ChatRequest).limit == limit


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
@pytest.mark.parametrize("value", [0, -1, MAX_TOKENS + 1, 10**30])
def test_check_generation_bounds_the_limits(name: str, value: int) -> None:
    """A limit is at least one token, and at most what a 64-bit sum can hold many of."""
    request = decode(chat(**{name: value}), ChatRequest)
    with pytest.raises(InvalidRequest) as caught:
        check_generation(request)
    assert (caught.value.param, caught.value.code) == (name, "invalid_value")
    assert f"between 1 and {MAX_TOKENS}" in caught.value.message
    check_generation(decode(chat(**{name: 1}), ChatRequest))
    check_generation(decode(chat(**{name: MAX_TOKENS}), ChatRequest))


@pytest.mark.parametrize("name", ["n", "best_of"])
@pytest.mark.parametrize("value", [0, -1, MAX_CHOICES + 1])
def test_check_generation_bounds_the_choices(name: str, value: int) -> None:
    """Each choice is reserved for, so their number has OpenAI's bound."""
    with pytest.raises(InvalidRequest) as caught:
        check_generation(decode(chat(**{name: value}), ChatRequest))
    assert (caught.value.param, caught.value.code) == (name, "invalid_value")
    check_generation(decode(chat(**{name: MAX_CHOICES}), ChatRequest))


@pytest.mark.parametrize("model", ["", " ", "\t\n"])
def test_check_generation_requires_a_model(model: str) -> None:
    """An empty name is a missing model, not an unknown one."""
    with pytest.raises(InvalidRequest) as caught:
        check_generation(decode(chat(model=model), ChatRequest))
    assert caught.value.param == "model"


@pytest.mark.parametrize("messages", [None, []])
def test_check_messages_requires_one(messages: list[Any] | None) -> None:
    """A conversation without messages has nothing to answer."""
    with pytest.raises(InvalidRequest) as caught:
        check_messages(messages)
    assert (caught.value.param, caught.value.code) == ("messages", "empty_array")
    check_messages(MESSAGES)


def test_check_positive_without_an_upper_bound() -> None:
    """None passes as absent, and any positive number passes."""
    check_positive(None, "x")
    check_positive(10**30, "x")
    with pytest.raises(InvalidRequest, match="expected at least 1, got 0"):
        check_positive(0, "x")
