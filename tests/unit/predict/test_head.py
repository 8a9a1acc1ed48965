"""The small half of the length network."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gateway.predict.artefacts import Artefacts
from gateway.predict.features import NAMES
from gateway.predict.head import MAY_LACK, SIDES, Head
from gateway.predict.prompt_view import PromptView
from gateway.shipped import shipped
from gateway.types import QUANTILE_LEVELS

Parts = dict[str, np.ndarray]
CODE, MODEL, HIDDEN = 3, 2, 4


@pytest.fixture
def parts() -> Parts:
    """A small head whose median can be computed by hand: the gelu of the code's sum."""
    width = CODE + MODEL + len(SIDES) + len(MAY_LACK)
    first = np.zeros((HIDDEN, width), np.float32)
    first[0, :CODE] = 1.0
    first[1, CODE] = 1.0
    first[2, CODE + MODEL + SIDES.index("model_mean")] = 1.0
    first[3, -1] = 1.0  # the flag of a model without a mean
    model = np.zeros((3, MODEL), np.float32)
    model[1, 0] = 2.0
    return {
        "first.weight": first,
        "first.bias": np.zeros(HIDDEN, np.float32),
        "last.weight": np.ones((len(QUANTILE_LEVELS), HIDDEN), np.float32),
        "last.bias": np.arange(-3, 4, dtype=np.float32) / 10,
        "model.weight": model,
        "models": np.array(["one", "two"]),
        "side_mean": np.zeros(len(SIDES), np.float32),
        "side_deviation": np.ones(len(SIDES), np.float32),
        "y_mean": np.float32(1.0),
        "y_deviation": np.float32(2.0),
    }


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def median(parts: Parts, code: list[float], model: str = "other", mean: float = math.nan) -> float:
    cheap = [math.nan if name in MAY_LACK else 0.0 for name in NAMES]
    cheap[NAMES.index("model_mean")] = mean
    return Head(parts).grid(np.array(code, np.float32), model, cheap)[3]


def test_head_computes_the_network(parts: Parts) -> None:
    """The grid is that of two layers over gelu(code), the model's numbers and the side features."""
    hidden = gelu(sum(map(gelu, (1.0, 2.0, -1.0)))) + gelu(1.0)
    assert median(parts, [1.0, 2.0, -1.0]) == pytest.approx(1.0 + 2.0 * hidden, rel=1e-5)
    expected = hidden - gelu(1.0) + gelu(2.0) + gelu(1.5)
    assert median(parts, [1.0, 2.0, -1.0], "one", 1.5) == pytest.approx(1 + 2 * expected, rel=1e-5)


def test_head_gives_a_grid_that_does_not_cross(parts: Parts) -> None:
    """Levels that the network has in the wrong order come out sorted."""
    parts["last.bias"] = parts["last.bias"][::-1].copy()
    cheap = [0.0] * len(NAMES)
    grid = Head(parts).grid(np.ones(CODE, np.float32), "one", cheap)
    assert list(grid) == sorted(grid)
    assert grid[0] < grid[-1]


def test_head_holds_side_features_within_bounds(parts: Parts) -> None:
    """A side feature a thousand deviations out counts as five."""
    far, five = (median(parts, [0.0] * CODE, "one", mean) for mean in (1000.0, 5.0))
    assert far == five > median(parts, [0.0] * CODE, "one", 1.0)


@pytest.mark.parametrize("name", ["models", "side_mean", "last.weight", "first.weight"])
def test_head_refuses_parts_that_do_not_fit(parts: Parts, name: str) -> None:
    """A table that lacks a row, or is missing, is an error."""
    head = Head(parts)
    assert head.width == CODE
    short = parts | {name: parts[name][:1] if name != "first.weight" else parts[name][:, :5]}
    with pytest.raises(ValueError, match="do not fit"):
        Head(short)
    del parts[name]
    with pytest.raises(KeyError):
        Head(parts)


def test_shipped_head_orders_long_and_short(artefacts: Artefacts) -> None:
    """An essay is forecast longer than a yes or no, by text alone and for an unknown model."""
    head, encoder, tables = artefacts.head, artefacts.encoder, artefacts.tables
    assert head is not None
    assert encoder is not None
    assert tables is not None
    found = []
    for text in ("Write a detailed essay about the sea.", "Is the sea salty? Say yes or no only."):
        view = PromptView.of_prompt(text, tenant="t", model="nobody-knows")
        code = encoder.encode(text).code
        assert code is not None
        found.append(head.grid(code, view.model, tables.features_of(view)))
    assert found[0][3] > found[1][3] + 1.0


def test_shipped_head_fits_the_shipped_encoder() -> None:
    """The head's width is that of the codes, and it has names of the models it was fitted on."""
    head = Head.load(shipped("models") / "head.npz")
    with np.load(shipped("models") / "encoder_reference.npz") as file:
        assert head.width == file["code"].shape[1]
    with np.load(shipped("models") / "head.npz") as file:
        assert "gpt-4" in file["models"].tolist()
