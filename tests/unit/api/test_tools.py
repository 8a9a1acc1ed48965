"""What is read of the tools a request offers, whatever their size."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import msgspec
import pytest
from msgspec import Raw

from gateway.api.tools import HEAD_BYTES, Tools, tools_of
from gateway.predict.view import TOOL_NAMES

MEGABYTE = 1_000_000


def raw(value: object) -> Raw:
    return Raw(json.dumps(value).encode())


def listed(item: bytes, size: int = MEGABYTE) -> Raw:
    """A list of one item over and over, of about that many bytes."""
    return Raw(b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]")


def cpu_s(work: Callable[[], object]) -> float:
    """The least processor time of several runs."""
    best = float("inf")
    for _ in range(7):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize("item", [b"{}", b"1", b'{"type":"x"}', b"[]", b'"x"'])
def test_tools_of_a_megabyte_of_tiny_items_cost_little(item: bytes) -> None:
    """Not a tenth of the 22 ms that a list of all its items takes, made of `{}`."""
    tiny, items = listed(item), listed(b"{}")
    each = msgspec.json.Decoder(list[Raw])
    assert 10 * cpu_s(lambda: tools_of(tiny)) < cpu_s(lambda: each.decode(items))


def test_tools_of_a_long_list_are_about_as_many_as_they_are() -> None:
    """The number is told by the length of those at the beginning; names are theirs."""
    tool = {"type": "function", "function": {"name": "t", "parameters": {"a": [1, 2, 3]}}}
    items = [tool | {"function": tool["function"] | {"name": f"t{i:05}"}} for i in range(9000)]  # type: ignore[operator]
    found = tools_of(raw(items))
    assert found.count == pytest.approx(9000, rel=0.01)
    assert found.names == tuple(f"t{i:05}" for i in range(TOOL_NAMES))
    assert found.bytes == len(json.dumps(items))


def test_tools_beyond_a_megabyte_are_read_by_their_beginning() -> None:
    """A large list is one, too: it is neither nothing nor taken apart."""
    tool = {"type": "function", "function": {"name": "big", "description": "x" * 3000}}
    found = tools_of(raw([tool] * 500))
    assert found.count == pytest.approx(500, rel=0.05)
    assert set(found.names) == {"big"}
    assert found.bytes > 1.5 * MEGABYTE


@pytest.mark.parametrize("space", ["", " ", "\n\t "])
def test_tools_of_a_long_list_may_be_spaced(space: str) -> None:
    """White space between items is no end of the list."""
    tool = json.dumps({"type": "function", "name": "näme, [1]", "x": [0] * 20})
    text = "[" + space + f"{space},{space}".join([tool] * 3000) + space + "]"
    found = tools_of(Raw(text.encode()))
    assert found.count == pytest.approx(3000, rel=0.02)
    assert found.names == ("näme, [1]",) * TOOL_NAMES


def test_tools_whose_first_is_longer_than_the_beginning_have_no_name() -> None:
    """What does not end within what is read is counted as one."""
    tool = {"name": "x", "data": [0] * HEAD_BYTES}
    assert tools_of(raw([tool, tool])) == Tools(1, (), len(json.dumps([tool, tool])))


@pytest.mark.parametrize(
    "value", [b"{}", b"5", b'"' + b"x" * 50_000 + b'"', b'{"a":"' + b"," * 99_999 + b'"}', b"null"]
)
def test_tools_that_are_no_list_are_none(value: bytes) -> None:
    """Short or long, what is not a list offers nothing."""
    assert tools_of(Raw(value)) == Tools()


def test_tools_nested_deeper_than_can_be_read_offer_nothing() -> None:
    """A list of lists of lists: no name, no failure."""
    deep = Raw(b"[" + b"[" * 5000 + b"]" * 5000 + b"," + b"1," * 20_000 + b"1]")
    assert tools_of(deep).names == ()


def test_tools_of_a_long_list_are_as_many_in_any_script() -> None:
    """Bytes are counted against bytes: Chinese descriptions do not make them more."""
    tool = {"type": "function", "function": {"name": "f", "description": "查询天气" * 60}}
    item = json.dumps(tool, ensure_ascii=False).encode()
    assert tools_of(Raw(b"[" + b",".join([item] * 1500) + b"]")).count == pytest.approx(
        1500, rel=0.05
    )
