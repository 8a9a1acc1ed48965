"""Usage, finish reason and error from a provider's answer, whole or one event of a stream. Pure.

An answer is decoded into the few members that say something beside content: the parser skips all
others. One with a malformed member (a number for a text, say) is decoded member by member.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from gateway.types import Usage

MAX_TOKENS = 10**9
"""Counts above this are cut to it, so that they fit a 64-bit column."""

NO_ERROR = Raw(b"null")  # a union with Raw would not decode
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _PromptDetails(Struct):
    cached_tokens: int | None = None
    audio_tokens: int | None = None


class _OutputDetails(Struct):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


_NO_PROMPT_DETAILS, _NO_OUTPUT_DETAILS = _PromptDetails(), _OutputDetails()


class UsageFields(Struct):
    """Members of `usage` in every API: chat and text completions, embeddings, responses, and
    transcriptions (`input_token_details`, as in the realtime API)."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    input_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    output_tokens_details: _OutputDetails | None = None
    input_token_details: _PromptDetails | None = None
    output_token_details: _OutputDetails | None = None


class _Choice(Struct):
    index: int = 0
    finish_reason: str | None = None


class _Inner(Struct):
    """Member `response` of the responses API's terminal events."""

    usage: UsageFields | None = None
    status: str | None = None
    error: Raw = NO_ERROR


class AnswerMembers(Struct):
    """The members of an answer, or of an event, that are read."""

    type: str | None = None
    usage: UsageFields | UnsetType | None = UNSET
    choices: list[_Choice] | None = None
    response: _Inner | None = None
    status: str | None = None
    error: Raw = NO_ERROR


_answers = msgspec.json.Decoder(AnswerMembers)
_fields = {
    field.name: msgspec.json.Decoder(field.type) for field in msgspec.structs.fields(AnswerMembers)
}
_members = msgspec.json.Decoder(dict[str, Raw])


def answer_members(data: bytes) -> AnswerMembers:
    """The answer's members that can be read. Raises one of DECODE_ERRORS for no JSON object."""
    try:
        return _answers.decode(data)
    except msgspec.ValidationError:
        return _odd_answer(data)


def _odd_answer(data: bytes) -> AnswerMembers:
    """An answer with members of other types than ours, which are left out."""
    members = _members.decode(data)
    read: dict[str, Any] = {"usage": None} if "usage" in members else {}
    for name in _fields.keys() & members.keys():
        with contextlib.suppress(*DECODE_ERRORS):
            read[name] = _fields[name].decode(members[name])
    return AnswerMembers(**read)


def _count(value: int | None) -> int:
    return min(max(value or 0, 0), MAX_TOKENS)


def usage_of(fields: UsageFields | UnsetType | None) -> Usage | None:
    """The counts of a `usage` member; None where it has none."""
    if fields is None or fields is UNSET:
        return None
    prompt = fields.prompt_tokens if fields.prompt_tokens is not None else fields.input_tokens
    output = (
        fields.completion_tokens if fields.completion_tokens is not None else fields.output_tokens
    )
    if prompt is None and output is None:
        return None
    of_prompt = (
        fields.prompt_tokens_details
        or fields.input_tokens_details
        or fields.input_token_details
        or _NO_PROMPT_DETAILS
    )
    of_output = (
        fields.completion_tokens_details
        or fields.output_tokens_details
        or fields.output_token_details
        or _NO_OUTPUT_DETAILS
    )
    return Usage(
        prompt_tokens=_count(prompt),
        output_tokens=_count(output),
        cached_tokens=_count(of_prompt.cached_tokens),
        reasoning_tokens=_count(of_output.reasoning_tokens),
        audio_prompt_tokens=_count(of_prompt.audio_tokens),
        audio_output_tokens=_count(of_output.audio_tokens),
    )


def answer_usage(body: bytes) -> tuple[Usage | None, str | None]:
    """Usage and finish reason of a whole JSON answer; None where it has none."""
    try:
        answer = answer_members(body)
    except DECODE_ERRORS:
        return None, None
    finish = next((c.finish_reason for c in answer.choices or () if c.finish_reason), None)
    return usage_of(answer.usage), finish or answer.status


def tail_usage(tail: bytes) -> Usage | None:
    """Usage from the end of a JSON answer that was too long to keep; None if it is not there."""
    at = tail.rfind(b'"usage"')
    start = tail.find(b"{", at)
    if at < 0 or start < 0:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(tail[start:].decode("utf-8", "replace"))
        return usage_of(msgspec.convert(value, UsageFields))
    except (ValueError, RecursionError):
        return None
