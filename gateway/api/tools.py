"""The tools a request offers: how many, their names, their bytes.

A megabyte of `{}` is a third of a million items, and a list of them takes 22 ms of the loop.
So a list with so many commas that it may be one is read by its beginning: names of the items
that end within HEAD_BYTES, and a number told by how long they are. A list of tools that means
anything has a few dozen, each longer than a hundred bytes, and is taken apart whole.
"""

from __future__ import annotations

import json
import re

from msgspec import MsgspecError, Raw, Struct, convert

from gateway.api.schemas import LOOSE_BYTES, given, read_loose
from gateway.predict.view import TOOL_NAMES

HEAD_BYTES = 32 * 1024
MOST_COMMAS = 12_000  # so many items take 0.8 ms

_scan = json.JSONDecoder().raw_decode  # one value from where it is told, and where that ended
_between = re.compile(r"[\s,]*")


class Tools(Struct, frozen=True):
    """The tools a request offers."""

    count: int = 0  # of a long list by the length of its first items
    names: tuple[str, ...] = ()  # of the first TOOL_NAMES
    bytes: int = 0  # of their JSON, all of which the model reads


class _Named(Struct):
    name: str | None = None


class _Tool(Struct):
    type: str | None = None
    name: str | None = None  # the responses API's place for it
    function: _Named | None = None


def tools_of(raw: Raw) -> Tools:
    """What a list of tools offers; anything else offers nothing. At most 2 ms for 1 MB."""
    if not given(raw):
        return Tools()
    if len(raw) > LOOSE_BYTES or bytes(raw).count(b",") > MOST_COMMAS:
        return _by_its_beginning(raw)
    items = read_loose(raw, list[Raw])
    if items is None:
        return Tools()
    tools = [read_loose(item, _Tool) for item in items[:TOOL_NAMES]]
    return Tools(len(items), _names(tools), len(raw))


def _by_its_beginning(raw: Raw) -> Tools:
    text = bytes(memoryview(raw)[:HEAD_BYTES]).decode("utf-8", "replace")
    if not text.startswith("["):
        return Tools()
    items: list[object] = []
    end = 1
    try:
        while len(items) < TOOL_NAMES:
            item, end = _scan(text, _after(text, end))
            items.append(item)
    except (ValueError, RecursionError):  # the next one is cut, or too deep
        pass
    read = len(text[: _after(text, end)].encode())
    number = round(len(raw) * len(items) / read)
    return Tools(max(number, 1), _names([_tool(item) for item in items]), len(raw))


def _after(text: str, at: int) -> int:
    match = _between.match(text, at)
    return at if match is None else match.end()


def _tool(item: object) -> _Tool | None:
    try:
        return convert(item, _Tool)
    except MsgspecError:
        return None


def _names(tools: list[_Tool | None]) -> tuple[str, ...]:
    """A tool of the provider's own, such as a web search, goes by its type."""
    names = (
        (tool.function.name if tool.function is not None else None) or tool.name or tool.type
        for tool in tools
        if tool is not None
    )
    return tuple(name for name in names if name)
