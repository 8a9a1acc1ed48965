"""The meter of a stream against a plain reader, which takes the whole stream at once and decodes
every event with the standard library.

The streams are those of chat completions (several choices, tool calls, usage on any chunk), text
completions and the responses API, and of Anthropic's and Gemini's own APIs, which pass unasked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.types import Usage
from gateway.upstream.stream_meter import StreamMeter

# -- the reader ----------------------------------------------------------------------------------


def events_of(stream: bytes) -> Iterator[bytes]:
    """The events of a whole stream with their ends; bytes after the last end are one, too."""
    start = 0
    for match in re.finditer(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)", stream):
        yield stream[start : match.end()]
        start = match.end()
    if start < len(stream):
        yield stream[start:]


def lines_of(event: bytes) -> tuple[list[bytes], bytes | None]:
    """An event's lines other than data, and its data; None where it has none."""
    lines = re.split(rb"\r\n|\n|\r", event.removeprefix(b"\xef\xbb\xbf"))
    data = [line for line in lines if line.split(b":")[0] == b"data"]
    values = [line[5:].removeprefix(b" ") for line in data]
    return [line for line in lines if line not in data], b"\n".join(values) if data else None


def usage_of(fields: Any) -> Usage | None:
    """The counts of a `usage` member."""
    given = fields or {}
    prompt = given.get("prompt_tokens", given.get("input_tokens"))
    output = given.get("completion_tokens", given.get("output_tokens"))
    return None if prompt is None and output is None else Usage(prompt or 0, output or 0)


@dataclass
class Reading:
    """All that a stream says. `sent` is, for each event, its bytes where the client gets it as it
    is; where a member is hidden, its other lines and the members left."""

    usage: Usage | None = None
    finish_reason: str | None = None
    error: Any = None
    done: bool = False
    seen_data: bool = False
    content_events: int = 0
    finished: set[int] = field(default_factory=set)
    sent: list[Any] = field(default_factory=list)

    def read(self, event: bytes, hide: bool) -> None:
        lines, data = lines_of(event)
        self.seen_data = self.seen_data or data is not None
        self.done = self.done or (data or b"").startswith(b"[DONE]")
        try:
            members = json.loads(data or b"")
        except ValueError:
            members = None
        if not isinstance(members, dict):
            self.sent.append(event)
            return
        self._count(event, members)
        if "usage" not in members or not hide:
            self.sent.append(event)
            return
        usage = members.pop("usage")
        empty = "choices" in members and not members["choices"]
        payload = [members.get("error"), members.get("prompt_filter_results")]
        if usage is None or not empty or payload != [None, None]:
            self.sent.append((lines, list(members.items())))

    def _count(self, event: bytes, members: dict[str, Any]) -> None:
        choices, inner = members.get("choices"), members.get("response") or {}
        other = re.search(rb'"(usage|error|response|finish_reason)"', event)
        if choices or (not other and re.search(rb'delta|"text"', event)):
            self.content_events += 1
        for choice in choices or ():
            if choice.get("finish_reason"):
                self.finish_reason = choice["finish_reason"]
                self.finished.add(choice.get("index", 0))
        usage = usage_of(members.get("usage")) or usage_of(inner.get("usage"))
        if usage and (self.usage is None or usage.output_tokens or usage.prompt_tokens):
            self.usage = usage
        error = members.get("error")
        if inner.get("status") in ("completed", "incomplete", "failed", "cancelled"):
            self.finish_reason, self.done = inner["status"], True
            error = error or inner.get("error")
        if members.get("type") == "error" and self.error is None:
            error = error or members
        if error:
            self.error = error if isinstance(error, dict) else {"message": error}


# -- streams -------------------------------------------------------------------------------------

TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "",
        '"usage":null}',
        ',"finish_reason":"stop"',
        '{"error":{"message":"no"}}',
        "data: [DONE]\n\n",
        "\r\n\r\ndata: ",
        "delta \u2028 \\",
        '", "usage": null}',
    ]
)
NUMBERS = st.integers(0, 99)
OPENAI_USAGE = st.fixed_dictionaries({"prompt_tokens": NUMBERS, "completion_tokens": NUMBERS})
NEWER_USAGE = st.fixed_dictionaries({"input_tokens": NUMBERS, "output_tokens": NUMBERS})
ERRORS = st.sampled_from([None, {}, "", "late", {"message": "late", "code": "500"}])
CALLS = st.builds(
    lambda text: [{"index": 0, "id": "call", "function": {"name": "f", "arguments": text}}], TEXTS
)
DELTAS = st.fixed_dictionaries(
    {}, optional={"content": TEXTS, "tool_calls": CALLS, "usage": st.none(), "role": st.just("a")}
)
CHOICE = st.fixed_dictionaries(
    {"index": st.integers(0, 3), "delta": DELTAS},
    optional={
        "finish_reason": st.sampled_from([None, None, None, "", "stop", "length", "tool_calls"]),
        "logprobs": st.none(),
    },
)
CHAT = st.fixed_dictionaries(
    {"id": st.just("c"), "choices": st.none() | st.lists(CHOICE, max_size=3)},
    optional={
        "prompt_filter_results": st.sampled_from([None, [{"prompt_index": 0}]]),
        "error": ERRORS,
        "usage": st.none() | OPENAI_USAGE,
    },
)
COMPLETIONS = st.builds(
    lambda text, reason, more: {"choices": [{"text": text, "finish_reason": reason}], **more},
    TEXTS,
    st.sampled_from([None, None, "stop"]),
    st.fixed_dictionaries({}, optional={"usage": st.none() | OPENAI_USAGE}),
)
RESPONSES = (
    st.builds(lambda text: {"type": "response.output_text.delta", "delta": text}, TEXTS)
    | st.builds(lambda text: {"type": "response.output_text.done", "text": text}, TEXTS)
    | st.builds(lambda text: {"type": "error", "code": "c", "message": text}, TEXTS)
    | st.builds(
        lambda status, usage, error: {
            "type": "response",
            "response": {"status": status, "usage": usage, "error": error},
        },
        st.sampled_from(["in_progress", "completed", "incomplete", "failed", "cancelled"]),
        st.none() | NEWER_USAGE,
        ERRORS,
    )
)
ANTHROPIC = (
    st.builds(lambda usage: {"type": "message_start", "message": {"usage": usage}}, NEWER_USAGE)
    | st.builds(lambda text: {"type": "content_block_delta", "delta": {"text": text}}, TEXTS)
    | st.builds(lambda usage: {"type": "message_delta", "delta": {}, "usage": usage}, NEWER_USAGE)
    | st.builds(lambda text: {"type": "error", "error": {"message": text}}, TEXTS)
    | st.sampled_from([{"type": "ping"}, {"type": "message_stop"}])
)
GEMINI = st.builds(
    lambda text, count: {
        "candidates": [{"content": {"parts": [{"text": text}]}, "finishReason": "STOP"}],
        "usageMetadata": {"candidatesTokenCount": count},
    },
    TEXTS,
    NUMBERS,
)


def _written(body: Any, spaced: bool, ascii_only: bool, end: bytes, before: bytes) -> bytes:
    if not isinstance(body, bytes):
        separators = (", ", ": ") if spaced else (",", ":")
        body = json.dumps(body, separators=separators, ensure_ascii=ascii_only).encode()
    # In two data lines where it breaks after a comma that is followed by a blank.
    body = body.replace(b', "choices"', b"," + end + b'data: "choices"', before == b"id: 1\n")
    return before + b"data: " + body + end + end


def _streams(bodies: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    odd = st.sampled_from([b"[DONE]", b"[DONE] ", b"", b"[1]", b"null", b'{"usage":null', b"delta"])
    event = st.builds(
        _written,
        bodies | bodies | bodies | odd,
        st.booleans(),
        st.booleans(),
        st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"]),
        st.sampled_from([b"", b"", b"", b"event: delta\n", b": delta\n\n", b"\n", b"id: 1\n"]),
    )
    last = st.sampled_from([b"", b"data: [DONE]\n\n", b"data: [DONE]", b"data: {", b": x"])
    return st.builds(lambda all_, end: b"".join(all_) + end, st.lists(event, max_size=8), last)


STREAMS = st.one_of([_streams(s) for s in (CHAT, CHAT, COMPLETIONS, RESPONSES, ANTHROPIC, GEMINI)])


def _cut(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({cut % (len(stream) + 1) for cut in cuts} | {0, len(stream)})
    return [stream[a:b] for a, b in pairwise(places)]


# -- the test ------------------------------------------------------------------------------------


@hypothesis_settings(max_examples=400, deadline=None, database=None)
@given(
    stream=STREAMS,
    hide=st.booleans(),
    cuts=st.lists(st.integers(0, 4000), max_size=30) | st.just(range(4000)) | st.just([]),
)
@example(stream=b'data: {"choices":[{"delta":{}}],"usage":null}\n\n', hide=True, cuts=[])
@example(stream=b'data: {"a":1,\ndata: "b":2,"usage":null}\n\n', hide=True, cuts=[])
@example(stream=b'data: {"delta":{"usage":null}}\n\ndata: {}\n\n', hide=True, cuts=[])
def test_meter_says_what_a_plain_reader_says(
    stream: bytes, hide: bool, cuts: Iterable[int]
) -> None:
    """Usage, reasons, errors, end, counts and the client's bytes are those of decoding every event,
    whatever the dialect, the line ends and the cut."""
    read = Reading()
    for event in events_of(stream):
        read.read(event, hide)
    meter = StreamMeter(hide_usage=hide)
    out = b"".join([*[meter.feed(chunk) for chunk in _cut(stream, cuts)], meter.rest()])

    assert (meter.usage, meter.finish_reason, meter.error, meter.done) == (
        *(read.usage, read.finish_reason, read.error, read.done),
    )
    assert (meter.content_events, meter.finished_choices, meter.seen_data) == (
        *(read.content_events, len(read.finished), read.seen_data),
    )
    got = list(events_of(out))
    assert len(got) == len(read.sent)
    for event, wanted in zip(got, read.sent, strict=True):
        if isinstance(wanted, bytes):
            assert event == wanted
        else:
            lines, data = lines_of(event)
            assert data is not None
            assert (lines, list(json.loads(data).items())) == wanted
