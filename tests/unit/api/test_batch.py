"""How much there is of a prompt or an input."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.batch import MOST_PROMPTS, Batch, batch_of
from gateway.api.schemas import LOOSE_BYTES, NULL


def read(value: Any) -> Batch:
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
def test_batch_of_every_form(value: Any, batch: Batch) -> None:
    """A text, texts, ids, lists of ids."""
    assert read(value) == batch


def test_batch_of_what_cannot_be_read_is_its_bytes() -> None:
    """Parts of other kinds, or more than is read: one prompt of that size."""
    odd = [{"type": "image", "url": "x"}, "text"]
    assert read(odd) == Batch(bytes=len(json.dumps(odd)))
    long = ["x" * LOOSE_BYTES, "y"]
    assert read(long).bytes == len(json.dumps(long))
    assert batch_of(NULL) == Batch()


def test_batch_of_spaced_ids_is_counted_alike() -> None:
    """However the JSON is written."""
    assert batch_of(msgspec.Raw(b" [ [ 1 ,\n 2 ] , [ 3 ] ]")) == Batch(prompts=2, ids=3)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_batch_never_raises(value: Any) -> None:
    """Whatever stands there."""
    found = read(value)
    assert found.prompts >= 1
    assert min(found.bytes, found.ids) >= 0


def test_batch_is_no_larger_than_a_provider_takes() -> None:
    """Brackets in a string are no prompts, and no body makes a forecast of any size it likes."""
    assert read([1, "[" * 1000]).prompts == 1
    assert read(["a"] * 3000).prompts == MOST_PROMPTS
    assert read([[1]] * 3000).prompts == MOST_PROMPTS
