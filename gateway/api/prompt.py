"""The predictor's view of a request: its messages, tools and prompts, of every route.

`dialects.py` reads what a request asks of the answer: thinking, a format, constraints. Members
are only forecast by: what does not read as expected counts as absent, and what is huge is
estimated by its beginning or its length.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from msgspec import MsgspecError, Raw, Struct, structs

from gateway.api.constraints import exact_digest, outline_digest
from gateway.api.dialects import LOOSE_BYTES, AnswerForm, Thinking, is_given, read_member
from gateway.api.schemas import (
    NULL,
    ChatRequest,
    CompletionRequest,
    ContentPart,
    Generation,
    ResponsesRequest,
)
from gateway.predict.prompt_view import TOOL_NAMES, PromptView


def view_of(tenant: str, request: Generation, max_chars: int) -> PromptView:
    """The predictor's view of a request; `max_chars` of its text are kept."""
    thinking, form = Thinking.of(request), AnswerForm.of(request)
    # `functions` is the name that tools had before 2023.
    tools = tools_of(request.tools if is_given(request.tools) else request.functions)
    shared: dict[str, Any] = {
        "tenant": tenant,
        "model": request.model,
        "max_tokens": request.limit,
        "n": request.n or 1,
        "best_of": request.best_of or 1,
        "stop": is_given(request.stop),
        "temperature": request.temperature,
        "reasoning_effort": thinking.effort,
        "thinking": thinking.on,
        "thinking_budget": thinking.budget,
        "tools": tools.count,
        "tool_names": tools.names,
        "tools_bytes": tools.bytes,
        "response_format": form.format,
        "shape": exact_digest(form.constraints) if form.constraints else "",
        "form": outline_digest(form.constraints) if form.constraints else "",
        "verbosity": form.verbosity,
        "stream": request.stream is True,
        "max_chars": max_chars,
    }
    if isinstance(request, ChatRequest):
        return PromptView.of_chat(request.messages, **shared)
    if isinstance(request, ResponsesRequest):
        return PromptView.of_chat(_messages(request), **shared)
    batch = batch_of(request.prompt if isinstance(request, CompletionRequest) else NULL)
    view = PromptView.of_prompt(batch.text, **shared)
    return structs.replace(
        view,
        prompts=batch.prompts,
        prompt_ids=batch.ids,
        batch_bytes=batch.bytes if batch.prompts > 1 or not batch.text else 0,
    )


class InputItem(Struct):
    """An input item of the responses API, as far as it reads like a message."""

    role: str = ""
    content: str | list[ContentPart] | None = None


def _messages(request: ResponsesRequest) -> list[InputItem]:
    """The input and the instructions of the responses API as messages."""
    text = read_member(request.input, str)
    if text is not None:
        messages = [InputItem("user", text)]
    else:
        messages = read_member(request.input, list[InputItem]) or []
    instructions = read_member(request.instructions, str)
    return [InputItem("system", instructions), *messages] if instructions else messages


# -- tools -------------------------------------------------------------------------------------

HEAD_BYTES = 32 * 1024
MOST_COMMAS = 12_000  # so many items take less than a millisecond

_scan = json.JSONDecoder().raw_decode  # one value from a place on, and where it ends
_between = re.compile(r"[\s,]*")


class Tools(Struct, frozen=True):
    """The tools a request offers."""

    count: int = 0  # of a long list: estimated by the length of its first items
    names: tuple[str, ...] = ()  # of the first TOOL_NAMES
    bytes: int = 0  # of their JSON, all of which the model reads


NO_TOOLS = Tools()


class _Function(Struct):
    name: str | None = None


class _Tool(Struct):
    type: str | None = None
    name: str | None = None  # in the responses API
    function: _Function | None = None


def tools_of(raw: Raw) -> Tools:
    """The tools in a list; anything else offers none. At most 2 ms for 1 MB.

    A megabyte of `{}` is a third of a million items, and reading each would hold up the loop. A
    list with so many commas that it may be one is read by its beginning: the names of the items
    within HEAD_BYTES, and the number by their length. A usual list has a few dozen items, each
    longer than a hundred bytes, and is read whole.
    """
    if not is_given(raw):
        return NO_TOOLS
    if len(raw) > LOOSE_BYTES or bytes(raw).count(b",") > MOST_COMMAS:
        return _tools_by_head(raw)
    items = read_member(raw, list[Raw])
    if items is None:
        return Tools()
    tools = [read_member(item, _Tool) for item in items[:TOOL_NAMES]]
    return Tools(len(items), _tool_names(tools), len(raw))


def _tools_by_head(raw: Raw) -> Tools:
    text = bytes(memoryview(raw)[:HEAD_BYTES]).decode("utf-8", "replace")
    if not text.startswith("["):
        return Tools()
    items: list[object] = []
    end = 1
    try:
        while len(items) < TOOL_NAMES:
            item, end = _scan(text, _skip(text, end))
            items.append(item)
    except (ValueError, RecursionError):  # the next item is cut, or too deep
        pass
    read = len(text[: _skip(text, end)].encode())
    count = round(len(raw) * len(items) / read)
    return Tools(max(count, 1), _tool_names([_tool(item) for item in items]), len(raw))


def _skip(text: str, at: int) -> int:
    """The place after white space and commas."""
    match = _between.match(text, at)
    return at if match is None else match.end()


def _tool(item: object) -> _Tool | None:
    try:
        return msgspec.convert(item, _Tool)
    except MsgspecError:
        return None


def _tool_names(tools: list[_Tool | None]) -> tuple[str, ...]:
    """Names of functions; a tool of the provider's own, such as a web search, has its type."""
    names = (
        (tool.function.name if tool.function is not None else None) or tool.name or tool.type
        for tool in tools
        if tool is not None
    )
    return tuple(name for name in names if name)


# -- prompts -----------------------------------------------------------------------------------

MOST_PROMPTS = 2048
"""More than a provider takes (OpenAI's bound for embeddings). A client's body must not become a
forecast of any size it likes, on which the pace of every queue would depend."""

_SPACE = b" \t\r\n"
_BATCH_HEAD = 256


class Batch(Struct, frozen=True):
    """The size of one prompt, or of a batch of them together; `text` is the first one's."""

    text: str = ""
    prompts: int = 1
    bytes: int = 0  # of texts, in UTF-8
    ids: int = 0  # tokens sent as such


def batch_of(raw: Raw) -> Batch:
    """The legacy completions' `prompt`, or the embeddings' `input`: a text, a list of texts, a
    list of token ids or a list of such lists, each of which the provider answers and bills. Ids
    are counted, not decoded. A value that cannot be read is one prompt of its bytes."""
    if not is_given(raw):
        return Batch()
    if _is_ids(raw):
        text = bytes(raw)
        if b'"' in text:  # a bracket may stand inside a string
            return Batch(bytes=len(raw))
        prompts = min(max(text.count(b"[") - 1, 1), MOST_PROMPTS)
        return Batch(prompts=prompts, ids=text.count(b",") + 1)
    one = read_member(raw, str)
    texts = [one] if one is not None else read_member(raw, list[str])
    if texts is None:
        return Batch(bytes=len(raw))
    first = texts[0] if texts else ""
    return Batch(first, min(max(len(texts), 1), MOST_PROMPTS), sum(map(_utf8_bytes, texts)))


def _is_ids(raw: Raw) -> bool:
    """True where the first item of a list, or of the first list in one, is a number."""
    head = bytes(memoryview(raw)[:_BATCH_HEAD])
    inner = head.lstrip(b"[" + _SPACE)
    return head.lstrip(_SPACE)[:1] == b"[" and inner[:1].isdigit()


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
