"""What a provider says of its own answer: usage, finish reason, error. Pure.

Counting is done on the way: the meter looks only into events that name what it wants, so
a stream costs a few substring searches an event. Usage may come on a chunk with choices,
on a final one without, twice, or never (public gateway threads, summed up in the team's
field notes): the last one that counts anything wins, and where there is none, the events
that carried content are counted instead and the usage is marked as estimated.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from gateway.types import Usage
from gateway.upstream.sse import Splitter, data_of


class _PromptDetails(Struct):
    cached_tokens: int | None = None


class _OutputDetails(Struct):
    reasoning_tokens: int | None = None


class _UsageFields(Struct):
    """Chat completions, completions, embeddings, and the responses API's names."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    input_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Choice(Struct):
    finish_reason: str | None = None


class _Inner(Struct):
    """`response` inside the responses API's terminal events."""

    usage: _UsageFields | None = None
    status: str | None = None


class _Answer(Struct):
    usage: _UsageFields | None = None
    choices: list[_Choice] | None = None
    response: _Inner | None = None
    status: str | None = None
    error: Raw = Raw(b"null")  # a union with Raw would not decode


_answers = msgspec.json.Decoder(_Answer)
_members = msgspec.json.Decoder(dict[str, Raw])
_json = msgspec.json.Encoder()


def _usage(fields: _UsageFields | None) -> Usage | None:
    if fields is None:
        return None
    prompt = fields.prompt_tokens if fields.prompt_tokens is not None else fields.input_tokens
    output = (
        fields.completion_tokens if fields.completion_tokens is not None else fields.output_tokens
    )
    if prompt is None and output is None:
        return None
    cached = fields.prompt_tokens_details or fields.input_tokens_details
    reasoning = fields.completion_tokens_details or fields.output_tokens_details
    return Usage(
        prompt_tokens=max(prompt or 0, 0),
        output_tokens=max(output or 0, 0),
        cached_tokens=max((cached.cached_tokens if cached else None) or 0, 0),
        reasoning_tokens=max((reasoning.reasoning_tokens if reasoning else None) or 0, 0),
    )


def answer_usage(body: bytes) -> tuple[Usage | None, str | None]:
    """Usage and finish reason of a whole JSON answer; (None, None) where it has none."""
    try:
        answer = _answers.decode(body)
    except msgspec.MsgspecError:
        return None, None
    finish = next((c.finish_reason for c in answer.choices or () if c.finish_reason), None)
    return _usage(answer.usage), finish or answer.status


class StreamMeter:
    """Reads a stream of events on its way to the client.

    Args:
        hide_usage: the gateway asked for usage on its own account: the usage chunk and the
            `usage` members are taken out, all else stays byte for byte.
        max_event_bytes: longer events pass in pieces, unread.

    Attributes after the stream: `usage`, `finish_reason`, `error` (the provider's error
    object, where the stream carried one), `done` (it ended as its protocol ends).
    """

    __slots__ = (
        "_hide",
        "_splitter",
        "content_events",
        "done",
        "error",
        "finish_reason",
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

    def feed(self, chunk: bytes) -> bytes:
        """The bytes the client gets for `chunk`: whole events only."""
        events = self._splitter.feed(chunk)
        if len(events) == 1:
            return self._event(events[0])
        return b"".join([self._event(event) for event in events])

    def rest(self) -> bytes:
        """What a stream that ended in good order held after its last whole event."""
        held = self._splitter.rest()
        return self._event(held) if held.strip() else b""

    def estimated(self, prompt_tokens: int) -> Usage:
        """Usage by count of events: what is known of a stream that was cut."""
        return Usage(prompt_tokens, self.content_events, estimated=True)

    def _event(self, event: bytes) -> bytes:
        if b"[DONE]" in event and (data_of(event) or b"").startswith(b"[DONE]"):
            self.done = True
            return event
        if b'"usage"' in event or b'"error"' in event or b'"finish_reason"' in event:
            return self._read(event)
        if b"delta" in event or b'"text"' in event:
            self.content_events += 1
        return event

    def _read(self, event: bytes) -> bytes:
        data = data_of(event)
        if data is None:
            return event
        try:
            answer = _answers.decode(data)
        except msgspec.MsgspecError:
            return event
        if answer.choices:
            self.content_events += 1
            for choice in answer.choices:
                self.finish_reason = choice.finish_reason or self.finish_reason
        inner = answer.response
        usage = _usage(answer.usage) or _usage(inner.usage if inner else None)
        if usage is not None and (self.usage is None or usage.output_tokens or usage.prompt_tokens):
            self.usage = usage
        if inner is not None and inner.status in ("completed", "incomplete", "failed"):
            self.finish_reason = inner.status
            self.done = True
        if bytes(answer.error) != b"null":
            self._remember_error(answer.error)
        if self._hide and b'"usage"' in data:
            return self._without_usage(event, data, bool(answer.choices))
        return event

    def _remember_error(self, raw: Raw) -> None:
        value = msgspec.json.decode(raw)
        if value:
            self.error = value if isinstance(value, dict) else {"message": str(value)}

    def _without_usage(self, event: bytes, data: bytes, has_choices: bool) -> bytes:
        members = _members.decode(data)
        if members.pop("usage", None) is None:
            return event
        if not has_choices and members.get("choices") is not None and "error" not in members:
            return b""  # the chunk that only carries usage
        return b"data: " + _json.encode(members) + b"\n\n"
