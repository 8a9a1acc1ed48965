"""Answers of the demo provider: the same choices in each of OpenAI's three forms.

A form makes the whole body, or the stream in three parts: its opening, events with tokens of one
choice, its ending. Streams follow the platform documentation: chat and legacy completions end with
`[DONE]`, before it a usage chunk if one was requested (all other chunks then have `"usage": null`);
the Responses API names and numbers its events and ends with `response.completed` (or
`.incomplete`), which has the usage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from gateway.demo.requests import Choice, DemoRequest, Json

_encode = msgspec.json.encode
FINGERPRINT = "fp_sagesched_demo"


class AnswerWriter(Protocol):
    """Writes an answer in one of OpenAI's three forms, as one body or a stream in three parts."""

    def body(self) -> Json:
        """The body of an answer that is not streamed."""

    def opening(self) -> bytes:
        """The events before the first token."""

    def tokens(self, index: int, tokens: Sequence[str]) -> bytes:
        """One event per token of choice `index`."""

    def ending(self) -> bytes:
        """The events after the last token."""


def output_tokens(choices: Sequence[Choice]) -> int:
    """Number of output tokens of all choices."""
    return sum(len(choice.tokens) for choice in choices)


def usage(request: DemoRequest, choices: Sequence[Choice]) -> Json:
    """The `usage` member of chat and legacy completions."""
    output = output_tokens(choices)
    return {
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": output,
        "total_tokens": request.prompt_tokens + output,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


class _Completions:
    """Common part of chat and legacy completions: one chunk format, `[DONE]` at the end."""

    name: str
    chunk_name: str

    def __init__(
        self, request: DemoRequest, choices: Sequence[Choice], id: str, created: int
    ) -> None:
        self._request, self._choices, self._id = request, choices, id
        self._created = created
        self._around = [self._frame(index) for index in range(len(choices))]

    def body(self) -> Json:
        return {
            **self._head(self.name),
            "choices": [self._answer(i, choice) for i, choice in enumerate(self._choices)],
            "usage": usage(self._request, self._choices),
        }

    def tokens(self, index: int, tokens: Sequence[str]) -> bytes:
        before, after = self._around[index]
        return b"".join(before + _encode(token) + after for token in tokens)

    def ending(self) -> bytes:
        out = [
            self._chunk(index, self._end_of(choice), choice.finish)
            for index, choice in enumerate(self._choices)
        ]
        if self._request.include_usage:
            last = {**self._head(self.chunk_name), "choices": []}
            out.append(_event({**last, "usage": usage(self._request, self._choices)}))
        return b"".join([*out, b"data: [DONE]\n\n"])

    def _head(self, name: str) -> Json:
        return {
            "id": self._id,
            "object": name,
            "created": self._created,
            "model": self._request.model,
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        }

    def _chunk(self, index: int, content: Json, finish: str | None = None) -> bytes:
        choice = {"index": index, **content, "logprobs": None, "finish_reason": finish}
        counted = {"usage": None} if self._request.include_usage else {}
        return _event({**self._head(self.chunk_name), "choices": [choice], **counted})

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        """The bytes before and after a token; encoding a whole chunk per token would be slow."""
        mark = "\x00token\x00"
        before, after = self._chunk(index, self._content(index, mark)).split(_encode(mark))
        return before, after

    def _answer(self, index: int, choice: Choice) -> Json:
        raise NotImplementedError

    def _content(self, index: int, token: str) -> Json:
        raise NotImplementedError

    def _end_of(self, choice: Choice) -> Json:
        raise NotImplementedError


class Chat(_Completions):
    name, chunk_name = "chat.completion", "chat.completion.chunk"

    def opening(self) -> bytes:
        out = []
        for index, choice in enumerate(self._choices):
            delta: Json = {"role": "assistant", "content": "", "refusal": None}
            if choice.tool is not None:
                delta |= {"content": None, "tool_calls": [{"index": 0, **self._call(index, "")}]}
            out.append(self._chunk(index, {"delta": delta}))
        return b"".join(out)

    def _content(self, index: int, token: str) -> Json:
        if self._choices[index].tool is None:
            return {"delta": {"content": token}}
        return {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": token}}]}}

    def _end_of(self, choice: Choice) -> Json:
        return {"delta": {}}

    def _answer(self, index: int, choice: Choice) -> Json:
        message: Json = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.tool is not None:
            message |= {"content": None, "tool_calls": [self._call(index, choice.text)]}
        message["annotations"] = []
        return {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": choice.finish,
        }

    def _call(self, index: int, arguments: str) -> Json:
        function = {"name": self._choices[index].tool, "arguments": arguments}
        return {"id": f"call_{self._id[-20:]}{index}", "type": "function", "function": function}


class Completions(_Completions):
    name = chunk_name = "text_completion"

    def opening(self) -> bytes:
        return b""

    def _content(self, index: int, token: str) -> Json:
        return {"text": token}

    def _end_of(self, choice: Choice) -> Json:
        return {"text": ""}

    def _answer(self, index: int, choice: Choice) -> Json:
        return {
            "text": choice.text,
            "index": index,
            "logprobs": None,
            "finish_reason": choice.finish,
        }


class Responses:
    """The Responses API's form, with one output item: a message, or the call of a tool."""

    def __init__(
        self, request: DemoRequest, choices: Sequence[Choice], id: str, created: int
    ) -> None:
        self._request, self._choices, self._choice = request, choices, choices[0]
        self._id, self._created, self._number = id, created, -1
        kind = "msg" if self._choice.tool is None else "fc"
        self._item_id = id.replace("resp", kind)
        self._where = {"item_id": self._item_id, "output_index": 0}
        self._part_at = {**self._where, "content_index": 0}

    def body(self) -> Json:
        return self._response(self._status, [self._item(self._status, self._choice.text)])

    def opening(self) -> bytes:
        start = self._response("in_progress", [])
        out = [
            self._event("response.created", response=start),
            self._event("response.in_progress", response=start),
            self._event(
                "response.output_item.added", output_index=0, item=self._item("in_progress", None)
            ),
        ]
        if self._choice.tool is None:
            part = _text_part("")
            out.append(self._event("response.content_part.added", **self._part_at, part=part))
        return b"".join(out)

    def tokens(self, index: int, tokens: Sequence[str]) -> bytes:
        if self._choice.tool is not None:
            name, at = "response.function_call_arguments.delta", self._where
            return b"".join(self._event(name, **at, delta=token) for token in tokens)
        name, at = "response.output_text.delta", self._part_at
        return b"".join(self._event(name, **at, delta=token, logprobs=[]) for token in tokens)

    def ending(self) -> bytes:
        text, item = self._choice.text, self._item(self._status, self._choice.text)
        if self._choice.tool is not None:
            name = "response.function_call_arguments.done"
            out = [self._event(name, **self._where, name=self._choice.tool, arguments=text)]
        else:
            part = _text_part(text)
            out = [
                self._event("response.output_text.done", **self._part_at, text=text, logprobs=[]),
                self._event("response.content_part.done", **self._part_at, part=part),
            ]
        out.append(self._event("response.output_item.done", output_index=0, item=item))
        response = self._response(self._status, [item])
        return b"".join([*out, self._event(f"response.{self._status}", response=response)])

    @property
    def _status(self) -> str:
        return "incomplete" if self._choice.finish == "length" else "completed"

    def _event(self, name: str, /, **content: Any) -> bytes:
        self._number += 1
        payload = {"type": name, "sequence_number": self._number, **content}
        return b"event: " + name.encode() + b"\n" + _event(payload)

    def _item(self, status: str, text: str | None) -> Json:
        """The output item; with text None as it begins, without content."""
        item: Json = {"id": self._item_id, "status": status}
        if self._choice.tool is not None:
            call = {"call_id": f"call_{self._id[5:25]}", "name": self._choice.tool}
            return {**item, "type": "function_call", **call, "arguments": text or ""}
        content = [] if text is None else [_text_part(text)]
        return {**item, "type": "message", "role": "assistant", "content": content}

    def _response(self, status: str, output: list[Json]) -> Json:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": cut,
            "instructions": None,
            "metadata": {},
            "model": self._request.model,
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": None if status == "in_progress" else self._usage(),
        }

    def _usage(self) -> Json:
        output = output_tokens(self._choices)
        return {
            "input_tokens": self._request.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._request.prompt_tokens + output,
        }


def _text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _event(payload: Json) -> bytes:
    return b"data: " + _encode(payload) + b"\n\n"
