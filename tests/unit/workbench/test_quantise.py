"""Quantised and smoothed graphs are the same network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from gateway.shipped import shipped
from gateway.workbench.encoders.bert import WORDS, read_bert, read_tokenizer
from gateway.workbench.encoders.bert_graph import Graph, products
from gateway.workbench.encoders.quantise import (
    CALIBRATE,
    Encode,
    agreement,
    lines_of,
    quantise,
    smoothed,
)
from tests.kit.tiny_bert import Shape, write_bert


def test_our_own_lines_are_enough_to_calibrate_and_to_judge() -> None:
    """The lines that judge are not those that calibrate, and some are of other scripts."""
    lines = lines_of(shipped("models"))
    assert len(lines) >= CALIBRATE + 20
    assert len(set(lines)) == len(lines)
    assert any("\n" in line for line in lines[:CALIBRATE])
    assert any(max(line) > "\u4e00" for line in lines[CALIBRATE:])


def test_agreement_is_least_and_mean_cosine() -> None:
    """Cosines are taken between rows of the same place."""
    one = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    other = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)
    assert agreement(one, one) == (1.0, 1.0)
    assert agreement(one, other) == (0.8, 0.9)


def test_smoothing_changes_no_vector(tmp_path: Path) -> None:
    """Smoothing moves a factor from the inputs to the weights; quantising then costs a little.

    The twin: without the weights' half of it the vectors are others.
    """
    write_bert(tmp_path, Shape(positions=64))
    bert, lines = read_bert(tmp_path), lines_of(shipped("models"))
    tokenizer = read_tokenizer(tmp_path, len(bert.weights[WORDS]))

    def graph() -> Any:
        return Graph(bert.weights, bert.heads, epsilon=bert.epsilon, int8_words=False).model()

    exact = Encode(graph().SerializeToString(), tokenizer)(lines[CALIBRATE:])
    model = graph()
    smoothed(model, lines[:CALIBRATE], tokenizer)
    even = [node for node in products(model) if node.input[0].endswith(".even")]
    assert len(even) == 4 * 2
    vectors = Encode(model.SerializeToString(), tokenizer)(lines[CALIBRATE:])
    assert agreement(vectors, exact)[0] == pytest.approx(1.0, abs=1e-5)
    int8 = Encode(quantise(graph(), lines[:CALIBRATE], tokenizer, tmp_path), tokenizer)
    assert 0.99 <= agreement(int8(lines[CALIBRATE:]), exact)[0] < 1.0
    for constant in model.graph.initializer:
        if constant.name.endswith(".even.by"):
            ones = np.ones(constant.dims[0], np.float32)
            constant.CopyFrom(numpy_helper.from_array(ones, constant.name))
    halved = Encode(model.SerializeToString(), tokenizer)(lines[CALIBRATE:])
    assert agreement(halved, exact)[0] < 0.99
