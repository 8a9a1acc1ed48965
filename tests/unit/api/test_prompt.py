"""The predictor's view of a request: its tools, prompts and batches."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gateway.api.dialects import LOOSE_BYTES
from gateway.api.prompt import HEAD_BYTES, MOST_PROMPTS, Batch, Tools, batch_of, tools_of, view_of
from gateway.api.schemas import NULL, ChatRequest, CompletionRequest, Generation, decode
from gateway.predict.prompt_view import TOOL_NAMES, PromptView, prompt_key

MESSAGES = [{"role": "user", "content": "hi"}]
MEGABYTE = 1_000_000


def read(kind: type[Generation], **members: Any) -> Generation:
    return decode(json.dumps({"model": "m", **members}).encode(), kind)


def chat(**members: Any) -> PromptView:
    return view_of("t", read(ChatRequest, messages=MESSAGES, **members), 2000)


# -- tools -------------------------------------------------------------------------------------


def test_view_reads_names_and_bytes_of_tools() -> None:
    """A function has its name, in either API's place; a tool of the provider's has its type."""
    tools = [
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},
        {"type": "function", "name": "search", "parameters": {}},
        {"type": "web_search"},
    ]
    view = chat(tools=tools)
    assert (view.tools, view.tool_names) == (3, ("weather", "search", "web_search"))
    assert view.tools_bytes == len(json.dumps(tools))
    assert view.bytes == view.tools_bytes + len("hi")


def test_view_reads_functions_as_tools() -> None:
    """`functions`, the name before 2023, is read where there are no `tools`."""
    old = [{"name": "weather", "parameters": {}}]
    assert chat(functions=old).tool_names == ("weather",)
    assert chat(functions=old, tools=[{"type": "function", "name": "x"}]).tool_names == ("x",)


def test_view_of_many_tools_keeps_the_first_names() -> None:
    """All tools are counted, and the first are named."""
    view = chat(tools=[{"type": "function", "name": f"t{i}"} for i in range(500)])
    assert (view.tools, len(view.tool_names)) == (500, TOOL_NAMES)


def test_view_of_an_odd_tool_keeps_the_others() -> None:
    """A tool that cannot be read is counted, and hides no other."""
    view = chat(tools=[{"name": 5}, "x", {"type": "function", "function": {"name": "ok"}}])
    assert (view.tools, view.tool_names) == (3, ("ok",))


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
    """A list of a megabyte of tiny items takes less than a tenth of the time of reading each."""
    tiny, items = listed(item), listed(b"{}")
    each = msgspec.json.Decoder(list[Raw])
    assert 10 * cpu_s(lambda: tools_of(tiny)) < cpu_s(lambda: each.decode(items))


def test_tools_of_estimates_the_length_of_a_long_list() -> None:
    """The number follows from the length of the items at the beginning, whose names are read."""
    tool = {"type": "function", "function": {"name": "t", "parameters": {"a": [1, 2, 3]}}}
    items = [tool | {"function": tool["function"] | {"name": f"t{i:05}"}} for i in range(9000)]  # type: ignore[operator]
    tools = tools_of(raw(items))
    assert tools.count == pytest.approx(9000, rel=0.01)
    assert tools.names == tuple(f"t{i:05}" for i in range(TOOL_NAMES))
    assert tools.bytes == len(json.dumps(items))


def test_tools_of_reads_the_beginning_of_more_than_a_megabyte() -> None:
    """A large list is estimated, neither ignored nor read whole."""
    tool = {"type": "function", "function": {"name": "big", "description": "x" * 3000}}
    tools = tools_of(raw([tool] * 500))
    assert tools.count == pytest.approx(500, rel=0.05)
    assert set(tools.names) == {"big"}
    assert tools.bytes > 1.5 * MEGABYTE


@pytest.mark.parametrize("space", ["", " ", "\n\t "])
def test_tools_of_reads_spaced_lists(space: str) -> None:
    """White space between items does not end a list."""
    tool = json.dumps({"type": "function", "name": "näme, [1]", "x": [0] * 20})
    text = "[" + space + f"{space},{space}".join([tool] * 3000) + space + "]"
    tools = tools_of(Raw(text.encode()))
    assert tools.count == pytest.approx(3000, rel=0.02)
    assert tools.names == ("näme, [1]",) * TOOL_NAMES


def test_tools_of_counts_one_where_the_first_is_too_long() -> None:
    """A list whose first item does not end within the part that is read counts as one tool."""
    tool = {"name": "x", "data": [0] * HEAD_BYTES}
    assert tools_of(raw([tool, tool])) == Tools(1, (), len(json.dumps([tool, tool])))


@pytest.mark.parametrize(
    "value", [b"{}", b"5", b'"' + b"x" * 50_000 + b'"', b'{"a":"' + b"," * 99_999 + b'"}', b"null"]
)
def test_tools_of_other_values_are_none(value: bytes) -> None:
    """A value that is not a list offers nothing, short or long."""
    assert tools_of(Raw(value)) == Tools()


def test_tools_of_endless_nesting_have_no_name() -> None:
    """Lists nested too deeply give no name and no failure."""
    deep = Raw(b"[" + b"[" * 5000 + b"]" * 5000 + b"," + b"1," * 20_000 + b"1]")
    assert tools_of(deep).names == ()


def test_tools_of_estimates_alike_in_any_script() -> None:
    """Bytes are compared with bytes, so Chinese descriptions do not add tools."""
    tool = {"type": "function", "function": {"name": "f", "description": "查询天气" * 60}}
    item = json.dumps(tool, ensure_ascii=False).encode()
    assert tools_of(Raw(b"[" + b",".join([item] * 1500) + b"]")).count == pytest.approx(
        1500, rel=0.05
    )


# -- prompts ------------------------------------------------------------------------------------


def test_choices_count_every_prompt_of_a_batch() -> None:
    """The legacy route generates n, or best_of, answers for each prompt."""
    batch = read(CompletionRequest, prompt=["a", "b", "c"], n=2, best_of=4)
    view = view_of("t", batch, 2000)
    assert (view.choices, view.text) == (12, "a")
    assert view_of("t", read(ChatRequest, messages=MESSAGES, n=3), 2000).choices == 3


def test_prompt_key_covers_every_prompt_of_a_batch() -> None:
    """A cached forecast holds the cost of the batch, so a batch of another size is no repeat."""
    bodies: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"prompt": ["a", "b"]},
        {"prompt": ["a", "longer"]},
        {"prompt": ["a"] * 3},
        {"prompt": [1, 2, 3]},
        {"prompt": [[1, 2], [3, 4]]},
        {"prompt": "a", "best_of": 3},
    ]
    views = [view_of("t", read(CompletionRequest, **body), 2000) for body in bodies]
    assert len({prompt_key(view, b"k") for view in views}) == len(bodies)
    assert prompt_key(views[0], b"k") == prompt_key(
        view_of("t", read(CompletionRequest, prompt=["a"]), 2000), b"k"
    )


def test_prompt_tokens_are_those_of_the_whole_batch() -> None:
    """Each text counts by its bytes, each id as one; a prompt too long to be read by its length."""

    def tokens(prompt: Any) -> int:
        view = view_of("t", read(CompletionRequest, prompt=prompt), 2000)
        return view.tokens_by(0.25)

    text = "x" * 4000
    one = tokens(text)
    assert tokens([text]) == one
    assert tokens([text] * 5) == 5 * one
    assert tokens([text, "y" * 400]) == pytest.approx(1.1 * one, rel=0.02)
    assert tokens(list(range(1000))) == pytest.approx(1000, rel=0.02)
    assert tokens([list(range(1000))] * 3) == pytest.approx(3000, rel=0.02)
    assert tokens("x" * 2**21) == pytest.approx(2**19, rel=0.02)


def size_of(value: Any) -> Batch:
    return batch_of(msgspec.Raw(json.dumps(value).encode()))


@pytest.mark.parametrize(
    ("value", "batch"),
    [
        ("hello", Batch("hello", 1, 5, 0)),
        (["hello"], Batch("hello", 1, 5, 0)),
        (["one", "two", "three"], Batch("one", 3, 11, 0)),
        (["海", "é"], Batch("海", 2, 5, 0)),
        ([1, 22, 333], Batch("", 1, 0, 3)),
        ([[1, 2], [3], [4, 5, 6]], Batch("", 3, 0, 6)),
        ([], Batch()),
        ("", Batch()),
        (None, Batch()),
    ],
)
def test_batch_of_reads_every_form(value: Any, batch: Batch) -> None:
    """A text, texts, ids and lists of ids are read."""
    assert size_of(value) == batch


def test_batch_of_other_values_is_one_prompt_of_their_bytes() -> None:
    """Parts of other kinds, and lists longer than is read, are one prompt of that size."""
    odd = [{"type": "image", "url": "x"}, "text"]
    assert size_of(odd) == Batch(bytes=len(json.dumps(odd)))
    long = ["x" * LOOSE_BYTES, "y"]
    assert size_of(long).bytes == len(json.dumps(long))
    assert batch_of(NULL) == Batch()


def test_batch_of_counts_spaced_ids() -> None:
    """White space in the JSON does not change the count."""
    assert batch_of(msgspec.Raw(b" [ [ 1 ,\n 2 ] , [ 3 ] ]")) == Batch(prompts=2, ids=3)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_batch_of_takes_any_json(value: Any) -> None:
    """Any value has a size."""
    size = size_of(value)
    assert size.prompts >= 1
    assert min(size.bytes, size.ids) >= 0


def test_batch_of_is_bounded() -> None:
    """Brackets in a string are no prompts, and a batch has no more prompts than a provider
    takes."""
    assert size_of([1, "[" * 1000]).prompts == 1
    assert size_of(["a"] * 3000).prompts == MOST_PROMPTS
    assert size_of([[1]] * 3000).prompts == MOST_PROMPTS
