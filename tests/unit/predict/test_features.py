"""The cheap features of a request."""

from __future__ import annotations

from math import isnan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.predict.features import NAMES, features
from gateway.predict.prompt_view import PromptView


def view(text: object, **more: Any) -> PromptView:
    return PromptView.of_prompt(text, tenant="t", model="m", **more)


@given(st.text(alphabet=st.characters(), max_size=300))
def test_features_are_numbers_for_any_text(text: str) -> None:
    """Any text gives as many floats as there are names, none of them infinite."""
    row = features(view(text))
    assert len(row) == len(NAMES)
    assert all(isnan(value) or abs(value) < 1e9 for value in row)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Write a 1,500-word essay", 1950),
        ("in three words", None),
        ("Answer in 2 sentences.", 50),
        ("写一篇800字的文章", 720),
    ],
)
def test_features_read_the_size_asked_for(text: str, tokens: float | None) -> None:
    """ "300 words", "2 sentences" and "800字" become tokens; a text without a size gives NaN."""
    value = features(view(text))[NAMES.index("asked_size")]
    if tokens is None:
        assert isnan(value)
    else:
        assert 2.718281828**value - 1 == pytest.approx(tokens, rel=0.01)


def test_features_hold_the_means_given() -> None:
    """The means of model and task stand under their names, NaN where not known."""
    at = [NAMES.index("model_mean"), NAMES.index("task_mean")]
    row, unknown = features(view("x"), 5.5, 4.5), features(view("x"))
    assert [row[i] for i in at] == [5.5, 4.5]
    assert all(isnan(unknown[i]) for i in at)


def test_features_hold_the_running_means_given() -> None:
    """Means and counts of tenant, model and template stand at the end."""
    running = (5.0, 3.0, 4.0, 2.0, 3.0, 1.0)
    assert tuple(features(view("x"), running=running)[-6:]) == running
    assert len(features(view("x"))) == len(NAMES)


def test_names_of_the_first_models_stay_where_they_were() -> None:
    """Shipped models read features by place, so new ones are appended."""
    assert NAMES[:2] == ("text", "text_bytes")
    assert NAMES[69:71] == ("model_mean", "task_mean")
    assert len(set(NAMES)) == len(NAMES)
