"""Similarities of any encoder on the scale of the shipped one."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.predict.likeness import LEAST, MOST, QUANTILE, Floats, scale_of, strangers


def spread(offset: float, rows: int = 60, width: int = 48) -> Floats:
    """Unit vectors of strangers with a part in common: the larger, the nearer they all lie."""
    draw = np.random.default_rng(3).standard_normal((rows, width)).astype(np.float32)
    draw[:, 0] += offset
    return np.asarray(draw / np.linalg.norm(draw, axis=1, keepdims=True), np.float32)


def test_strangers_are_the_pairs_of_different_lines() -> None:
    """Their quantile; a line with itself is no pair."""
    vectors = np.eye(4, dtype=np.float32)
    assert strangers(vectors) == 0.0
    vectors[1] = vectors[0]
    assert 0.0 < strangers(vectors) <= 1.0


@pytest.mark.parametrize("offset", [0.0, 6.0, 15.0])
def test_scale_brings_strangers_to_where_ours_lie(offset: float) -> None:
    """However near an encoder's vectors all lie: the same share of pairs is above ours' mark."""
    shipped, own = spread(1.0), spread(offset)
    factor = scale_of(own, shipped)
    above = np.triu_indices(len(own), 1)
    found = 1.0 - factor * (1.0 - (own @ own.T)[above])
    assert np.quantile(found, QUANTILE) == pytest.approx(strangers(shipped), abs=0.01)
    assert (factor > 1.0) == (strangers(own) > strangers(shipped))


def test_scale_of_the_shipped_encoder_is_one() -> None:
    """Its own lines against themselves."""
    assert scale_of(spread(2.0), spread(2.0)) == 1.0


def test_scale_is_bounded() -> None:
    """An encoder for which all texts are one gets no factor without end."""
    same = np.tile(spread(0.0)[:1], (60, 1))
    assert scale_of(same, spread(0.0)) == MOST
    assert scale_of(spread(0.0), same) == LEAST
