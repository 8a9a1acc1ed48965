"""Usage, finish reason and error from a provider's answer. Pure.

A stream is read on its way to the client. Every event is decoded, but into the few members that
say something beside content: the parser skips all others, which costs less than a search for
their names. Usage may come on a chunk with choices, on a final one without, twice, or never: the
last one with a count above 0 is used, and where there is none the events with content are counted
and the usage is marked as estimated.

Nothing in an answer may break the stream: one with a malformed member (a number for a text, say)
is decoded member by member, and one that is no JSON passes unchanged.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from gateway.types import Usage
from gateway.upstream.sse import Piece, Splitter, data_of, with_data

MAX_TOKENS = 10**9
"""Counts above this are cut to it, so that they fit a 64-bit column."""

_NO_ERROR = Raw(b"null")  # a union with Raw would not decode
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_TERMINAL = frozenset({"completed", "incomplete", "failed", "cancelled"})
# An event without choices that names one of these is no content, whatever else it names.
_NO_CONTENT = (b'"usage"', b'"error"', b'"response"', b'"finish_reason"')
# The last member of nearly every event, and the brace that ends its data.
_LAST_NULLS = (b',"usage":null}', b', "usage": null}')
# Members by which a chunk without choices is more than the usage chunk (Azure's first one).
_PAYLOAD = ("error", "prompt_filter_results")


class _PromptDetails(Struct):
    cached_tokens: int | None = None
    audio_tokens: int | None = None


class _OutputDetails(Struct):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


_NO_PROMPT_DETAILS, _NO_OUTPUT_DETAILS = _PromptDetails(), _OutputDetails()


class _UsageFields(Struct):
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

    usage: _UsageFields | None = None
    status: str | None = None
    error: Raw = _NO_ERROR


class _Answer(Struct):
    type: str | None = None
    usage: _UsageFields | UnsetType | None = UNSET
    choices: list[_Choice] | None = None
    response: _Inner | None = None
    status: str | None = None
    error: Raw = _NO_ERROR


_answers = msgspec.json.Decoder(_Answer)
_fields = {
    field.name: msgspec.json.Decoder(field.type) for field in msgspec.structs.fields(_Answer)
}
_members = msgspec.json.Decoder(dict[str, Raw])
_json = msgspec.json.Encoder()


def _answer(data: bytes) -> _Answer:
    """The answer's members that can be read. Raises one of _DECODE_ERRORS for no JSON object."""
    try:
        return _answers.decode(data)
    except msgspec.ValidationError:
        return _odd_answer(data)


def _odd_answer(data: bytes) -> _Answer:
    """An answer with members of other types than ours, which are left out."""
    members = _members.decode(data)
    read: dict[str, Any] = {"usage": None} if "usage" in members else {}
    for name in _fields.keys() & members.keys():
        with contextlib.suppress(*_DECODE_ERRORS):
            read[name] = _fields[name].decode(members[name])
    return _Answer(**read)


def _count(value: int | None) -> int:
    return min(max(value or 0, 0), MAX_TOKENS)


def _usage(fields: _UsageFields | UnsetType | None) -> Usage | None:
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
        answer = _answer(body)
    except _DECODE_ERRORS:
        return None, None
    finish = next((c.finish_reason for c in answer.choices or () if c.finish_reason), None)
    return _usage(answer.usage), finish or answer.status


def tail_usage(tail: bytes) -> Usage | None:
    """Usage from the end of a JSON answer that was too long to keep; None if it is not there."""
    at = tail.rfind(b'"usage"')
    start = tail.find(b"{", at)
    if at < 0 or start < 0:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(tail[start:].decode("utf-8", "replace"))
        return _usage(msgspec.convert(value, _UsageFields))
    except (ValueError, RecursionError):
        return None


class StreamMeter:
    """Reader of a stream of events on its way to the client.

    Args:
        hide_usage: the gateway asked for usage, not the client: the usage chunk and the `usage`
            members are removed, everything else passes byte for byte.
        max_event_bytes: longer events pass in pieces, unread.

    Attributes after the stream: `usage`, `finish_reason`, `error` (the provider's error object),
    `done` (the stream ended as its protocol requires).
    """

    __slots__ = (
        "_finished",
        "_hide",
        "_splitter",
        "content_events",
        "done",
        "error",
        "finish_reason",
        "seen_data",
        "usage",
    )

    def __init__(self, *, hide_usage: bool, max_event_bytes: int = 2**20) -> None:
        self._splitter = Splitter(max_event_bytes)
        self._hide = hide_usage
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.error: dict[str, Any] | None = None
        self.content_events = 0
        self.done = False
        self.seen_data = False  # an event other than a comment has passed
        self._finished: set[int] = set()

    @property
    def finished_choices(self) -> int:
        """Number of choices that have their finish reason."""
        return len(self._finished)

    @property
    def output_tokens(self) -> int:
        """Output tokens of all choices so far; a lower bound, as an event may carry several."""
        usage, events = self.usage, self.content_events
        return events if usage is None else max(events, usage.output_tokens)

    def feed(self, chunk: bytes) -> bytes:
        """The bytes for the client after `chunk`: whole events only."""
        if self._splitter.takes_whole(chunk):  # one write of the provider is one event
            return self._data(chunk, chunk[6:-2])
        return b"".join([self._event(event) for event in self._splitter.feed(chunk)])

    def rest(self) -> bytes:
        """The bytes for the client at the stream's end, after the last whole event."""
        return self._event(self._splitter.rest())

    def estimated(self, prompt_tokens: int) -> Usage:
        """Usage by the number of events, for a stream that was cut."""
        return Usage(prompt_tokens, self.content_events, estimated=True)

    def _event(self, event: bytes) -> bytes:
        if isinstance(event, Piece):
            self.seen_data = True
            return event
        data = data_of(event)
        return event if data is None else self._data(event, data)

    def _data(self, event: bytes, data: bytes) -> bytes:
        """The bytes for the client of an event with these data."""
        self.seen_data = True
        if data.startswith(b"[DONE]"):
            self.done = True
            return event
        try:
            answer = _answer(data)
        except _DECODE_ERRORS:
            return event
        choices = answer.choices
        if choices:
            self.content_events += 1
            for choice in choices:
                if choice.finish_reason:
                    self.finish_reason = choice.finish_reason
                    self._finished.add(choice.index)
        elif (b"delta" in event or b'"text"' in event) and not any(w in event for w in _NO_CONTENT):
            self.content_events += 1
        if answer.usage or answer.response or answer.error is not _NO_ERROR:
            self._read(answer)
        if answer.type == "error" and self.error is None:  # the responses API's error event
            self._remember_error(Raw(data))
        if self._hide and answer.usage is not UNSET:
            return self._without_usage(event, data, choices == [])
        return event

    def _read(self, answer: _Answer) -> None:
        """Remember what an event says beside its content."""
        inner = answer.response
        usage = _usage(answer.usage) or _usage(inner.usage if inner else None)
        if usage is not None and (self.usage is None or usage.output_tokens or usage.prompt_tokens):
            self.usage = usage
        if inner is not None and inner.status in _TERMINAL:
            self.finish_reason = inner.status
            self.done = True
            self._remember_error(inner.error)
        if answer.error is not _NO_ERROR:
            self._remember_error(answer.error)

    def _remember_error(self, raw: Raw) -> None:
        if bytes(raw) == b"null":
            return
        try:
            value = msgspec.json.decode(raw)
        except _DECODE_ERRORS:
            value = "an error that cannot be read"
        if value:
            self.error = value if isinstance(value, dict) else {"message": str(value)}

    def _without_usage(self, event: bytes, data: bytes, no_choices: bool) -> bytes:
        last = data[data.rfind(b",") :]
        if last in _LAST_NULLS and event.count(last) == 1:
            return event.replace(last, b"}")
        try:
            members = _members.decode(data)
        except _DECODE_ERRORS:
            return event
        usage = members.pop("usage", None)
        if usage is None:
            return event
        if bytes(usage) != b"null":
            # Parsers index choices[0], so a chunk that carries nothing but usage is removed whole.
            no_choices = no_choices or bytes(members.get("choices", b"")) == b"null"
            if no_choices and all(bytes(members.get(p, b"null")) == b"null" for p in _PAYLOAD):
                return b""
        return with_data(event, _json.encode(members))
