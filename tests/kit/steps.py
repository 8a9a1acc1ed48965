"""The acts of a scripted provider on one request: a list of steps, written as values.

A script is a list of steps, or a function from the request to one. The ready-made
scripts (`answer`, `stream`, `error`) speak OpenAI's chat format; anything else is built
from the steps. A script that began a chunked body and was not cut ends it properly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tests.kit.http1 import Request

JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream; charset=utf-8"}


@dataclass(frozen=True)
class Respond:
    """A whole response: head and body at once, with content-length (or chunked)."""

    status: int = 200
    json: Any = None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False
    close: bool = False  # connection: close, and close it


@dataclass(frozen=True)
class Head:
    """The head alone; the body follows by `Send`. Chunked unless `length` is given."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


@dataclass(frozen=True)
class Send:
    """Bytes of the body; sends a 200 head first where none was sent."""

    data: bytes


@dataclass(frozen=True)
class Stream:
    """Server-sent events, each in a write of its own. dict → JSON, str and bytes as they are."""

    events: Sequence[Any]
    done: bool = False  # end with data: [DONE]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """Bytes straight onto the wire, without any framing."""

    data: bytes


@dataclass(frozen=True)
class Wait:
    """Go on when the test opens the gate: `provider.gate(name).mark()`."""

    gate: str


@dataclass(frozen=True)
class Drip:
    """Body bytes in pieces of `size`, one every `every_s`: a slow provider."""

    data: bytes
    size: int = 1
    every_s: float = 0.005


@dataclass(frozen=True)
class Cut:
    """Close the connection at once, by FIN or, with `rst`, by RST. Ends the script."""

    rst: bool = False


@dataclass(frozen=True)
class Hang:
    """Say nothing more until the peer leaves (or the provider stops)."""


Step = Respond | Head | Send | Stream | Raw | Wait | Drip | Cut | Hang
Script = Sequence[Step] | Callable[[Request], Sequence[Step]]


def event(payload: Any) -> bytes:
    """One server-sent event."""
    if isinstance(payload, bytes):
        return payload
    text = payload if isinstance(payload, str) else msgspec.json.encode(payload).decode()
    return f"data: {text}\n\n".encode()


def completion(text: str, usage: tuple[int, int], **message: Any) -> dict[str, Any]:
    """The body of a chat completion; `usage` is (prompt, output) tokens."""
    return {
        "id": "chatcmpl-kit",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "kit-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **message},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": usage_of(usage),
    }


def usage_of(usage: tuple[int, int]) -> dict[str, int]:
    prompt, output = usage
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One chunk of a streamed chat completion."""
    return {
        "id": "chatcmpl-kit",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "kit-model",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}],
        **more,
    }


def chunks(tokens: Sequence[str], usage: tuple[int, int] | None) -> list[dict[str, Any]]:
    """A whole streamed answer; with `usage` as OpenAI sends it when it was asked for."""
    more: dict[str, Any] = {} if usage is None else {"usage": None}
    first = chunk({"role": "assistant", "content": ""}, **more)
    out = [first, *(chunk({"content": token}, **more) for token in tokens)]
    out.append(chunk({}, "stop", **more))
    if usage is not None:
        out.append(chunk({}, usage=usage_of(usage)) | {"choices": []})
    return out


def answer(
    text: str = "Hello there.", usage: tuple[int, int] = (9, 3), **message: Any
) -> Sequence[Step]:
    """A chat completion, at once."""
    return [Respond(json=completion(text, usage, **message))]


def stream(
    tokens: Sequence[str] = ("Hello", " there", "."), usage: tuple[int, int] | None = None
) -> Script:
    """A streamed chat completion; the usage chunk comes when the request asks for it."""

    def script(request: Request) -> Sequence[Step]:
        asked = bool((request.wants("stream_options") or {}).get("include_usage"))
        counted = (usage or (9, len(tokens))) if asked else None
        return [Stream(chunks(tokens, counted), done=True)]

    return script


def error(
    status: int,
    *,
    retry_after: float | None = None,
    retry_after_ms: int | None = None,
    code: str | None = None,
    type: str | None = None,
    message: str = "scripted error",
    headers: dict[str, str] | None = None,
) -> Sequence[Step]:
    """OpenAI's error body."""
    code = code or {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(status)
    kind = type or ("requests" if status == 429 else "server_error" if status >= 500 else None)
    more = dict(headers or {})
    if retry_after is not None:
        more["retry-after"] = f"{retry_after:g}"
    if retry_after_ms is not None:
        more["retry-after-ms"] = str(retry_after_ms)
    tree = {"message": message, "type": kind or "invalid_request_error", "param": None}
    return [Respond(status, json={"error": {**tree, "code": code}}, headers=more)]


def hello(request: Request) -> Sequence[Step]:
    """The default: a short answer in the form the request asks for."""
    if request.method == "GET":
        models = [{"id": "kit-model", "object": "model", "created": 0, "owned_by": "kit"}]
        return [Respond(json={"object": "list", "data": models})]
    if not request.wants("stream"):
        return answer()
    script = stream()
    return script(request) if callable(script) else script
