"""The meter of a stream of events on its way to the client (`StreamMeter`). Pure.

Every event is decoded (usage.py), which costs less than a search for the members that matter.
Usage may come on a chunk with choices, on a final one without, twice, or never: the last one with
a count above 0 is used, and where there is none the events with content are counted and the usage
is marked as estimated.

Nothing in an answer may break the stream: an event that is no JSON passes unchanged.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw

from gateway.types import Usage
from gateway.upstream.sse import Piece, Splitter, data_of, with_data
from gateway.upstream.usage import DECODE_ERRORS, NO_ERROR, AnswerMembers, answer_members, usage_of

_TERMINAL = frozenset({"completed", "incomplete", "failed", "cancelled"})
# An event without choices that names one of these is no content, whatever else it names.
_NO_CONTENT = (b'"usage"', b'"error"', b'"response"', b'"finish_reason"')
# The last member of nearly every event, and the brace that ends its data.
_LAST_NULLS = (b',"usage":null}', b', "usage": null}')
# Members by which a chunk without choices is more than the usage chunk (Azure's first one).
_PAYLOAD = ("error", "prompt_filter_results")

_members = msgspec.json.Decoder(dict[str, Raw])
_json = msgspec.json.Encoder()


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
            answer = answer_members(data)
        except DECODE_ERRORS:
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
        if answer.usage or answer.response or answer.error is not NO_ERROR:
            self._read(answer)
        if answer.type == "error" and self.error is None:  # the responses API's error event
            self._remember_error(Raw(data))
        if self._hide and answer.usage is not UNSET:
            return self._without_usage(event, data, choices == [])
        return event

    def _read(self, answer: AnswerMembers) -> None:
        """Remember what an event says beside its content."""
        inner = answer.response
        usage = usage_of(answer.usage) or usage_of(inner.usage if inner else None)
        if usage is not None and (self.usage is None or usage.output_tokens or usage.prompt_tokens):
            self.usage = usage
        if inner is not None and inner.status in _TERMINAL:
            self.finish_reason = inner.status
            self.done = True
            self._remember_error(inner.error)
        if answer.error is not NO_ERROR:
            self._remember_error(answer.error)

    def _remember_error(self, raw: Raw) -> None:
        if bytes(raw) == b"null":
            return
        try:
            value = msgspec.json.decode(raw)
        except DECODE_ERRORS:
            value = "an error that cannot be read"
        if value:
            self.error = value if isinstance(value, dict) else {"message": str(value)}

    def _without_usage(self, event: bytes, data: bytes, no_choices: bool) -> bytes:
        last = data[data.rfind(b",") :]
        if last in _LAST_NULLS and event.count(last) == 1:
            return event.replace(last, b"}")
        try:
            members = _members.decode(data)
        except DECODE_ERRORS:
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
