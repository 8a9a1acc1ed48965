"""The window of finished requests."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.predict.encoder import Vector
from gateway.predict.index import HistoryIndex

WIDTH = 16


def unit(seed: int) -> Vector:
    vector = np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)
    return vector / np.linalg.norm(vector)


def filled(window: int, count: int, tenants: int = 1) -> HistoryIndex:
    index = HistoryIndex(WIDTH, window)
    for i in range(count):
        index.add(unit(i), f"t{i % tenants}", "m", i, censored=False)
    return index


def tokens(found: object) -> list[int]:
    return [round(float(np.expm1(value))) for value in found.length]  # type: ignore[attr-defined]


def test_index_finds_the_row_itself_first() -> None:
    """A repeat has similarity 1 and comes first."""
    index = filled(100, 40)
    found = index.global_neighbours(unit(7), "m", 5)
    assert tokens(found)[0] == 7
    assert found.similarity[0] == pytest.approx(1.0, abs=1e-5)
    assert len(found) == 5
    assert list(found.similarity) == sorted(found.similarity, reverse=True)


def test_index_overwrites_the_oldest_when_full() -> None:
    """The window is FIFO: the newest rows are found, older ones are gone."""
    index = filled(10, 37)
    assert len(index) == 10
    found = index.global_neighbours(unit(0), "m", 64)
    assert sorted(tokens(found)) == list(range(27, 37))
    for i in range(27, 37):
        again = index.global_neighbours(unit(i), "m", 1)
        assert tokens(again) == [i]
        assert again.similarity[0] == pytest.approx(1.0, abs=1e-5)


def test_index_tenant_pool_holds_that_tenant_only() -> None:
    """Another tenant's nearer row is not in the pool; the global pool has it."""
    index = filled(100, 30, tenants=3)
    found = index.tenant_neighbours(unit(4), "t0", "m", 64)
    assert sorted(tokens(found)) == list(range(0, 30, 3))
    assert tokens(index.global_neighbours(unit(4), "m", 1)) == [4]
    assert len(index.tenant_neighbours(unit(4), "nobody", "m", 5)) == 0


def test_index_empty_finds_nothing() -> None:
    """No rows, no neighbours, no error."""
    index = HistoryIndex(WIDTH, 5)
    assert len(index.global_neighbours(unit(0), "m", 5)) == 0
    assert len(index.tenant_neighbours(unit(0), "t", "m", 5)) == 0


def test_index_tells_model_and_censoring() -> None:
    """Each neighbour says whether it is of the same model and whether it was cut."""
    index = HistoryIndex(WIDTH, 5)
    index.add(unit(0), "t", "m", 10, censored=True)
    index.add(unit(1), "t", "other", 20, censored=False)
    found = index.global_neighbours(unit(0), "m", 2)
    assert list(found.same_model) == [True, False]
    assert list(found.censored) == [True, False]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(0, 2), max_size=40), st.integers(1, 12))
def test_index_agrees_with_a_plain_list(window: int, tenants: list[int], other: int) -> None:
    """Against a deque: same rows in every pool, before and after a change of window."""
    index = HistoryIndex(WIDTH, window)
    model: deque[tuple[int, str]] = deque(maxlen=window)
    for i, tenant in enumerate(tenants):
        index.add(unit(i), f"t{tenant}", "m", i, censored=False)
        model.append((i, f"t{tenant}"))
    resized = index.resized(other)
    resized.add(unit(999), "t0", "m", 999, censored=False)
    for found, rows in (
        (index, list(model)),
        (resized, [*list(model)[-other:], (999, "t0")][-other:]),
    ):
        everyone = found.global_neighbours(unit(0), "m", 64)
        assert sorted(tokens(everyone)) == [i for i, _ in rows]
        for name in ("t0", "t1", "t2"):
            own = found.tenant_neighbours(unit(0), name, "m", 64)
            assert sorted(tokens(own)) == [i for i, tenant in rows if tenant == name]
            assert found.tenant_rows(name) == len(own)
