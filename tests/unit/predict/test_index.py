"""The window of finished requests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.predict.encoder import Vector
from gateway.predict.index import HistoryIndex, Neighbours

WIDTH = 16


def unit(seed: int) -> Vector:
    vector = np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)
    return vector / np.linalg.norm(vector)


def filled(window: int, count: int, tenants: int = 1) -> HistoryIndex:
    index = HistoryIndex(WIDTH, window)
    for i in range(count):
        index.add(unit(i), f"t{i % tenants}", "m", i, censored=False)
    return index


def tokens(found: Neighbours) -> list[int]:
    return [round(float(np.expm1(value))) for value in found.length]


def of_tenant(
    index: HistoryIndex, vector: Vector, tenant: str, model: str, count: int
) -> Neighbours:
    """The tenant's nearest rows, however far."""
    return index.near(vector, tenant, model, count, -2.0)[0]


def of_all(index: HistoryIndex, vector: Vector, model: str, count: int) -> Neighbours:
    """The nearest rows that tenants share."""
    return index.near(vector, "", model, count)[1]


def test_index_finds_the_row_itself_first() -> None:
    """A repeat has similarity 1 and comes first."""
    index = filled(100, 40)
    found = of_all(index, unit(7), "m", 5)
    assert tokens(found)[0] == 7
    assert found.similarity[0] == pytest.approx(1.0, abs=1e-5)
    assert len(found) == 5
    assert list(found.similarity) == sorted(found.similarity, reverse=True)


def test_index_of_one_tenant_overwrites_the_oldest_when_full() -> None:
    """With one tenant the window is first in, first out: only the newest rows are found."""
    index = filled(10, 37)
    assert len(index) == 10
    found = of_all(index, unit(0), "m", 64)
    assert sorted(tokens(found)) == list(range(27, 37))
    for i in range(27, 37):
        again = of_all(index, unit(i), "m", 1)
        assert tokens(again) == [i]
        assert again.similarity[0] == pytest.approx(1.0, abs=1e-5)


def test_index_keeps_the_rows_of_others_through_a_flood() -> None:
    """A tenant that sends a thousand rows gives up its own; tenants below their share keep
    theirs."""
    index = HistoryIndex(WIDTH, 30)
    for i in range(10):
        index.add(unit(i), "quiet", "m", i, censored=False)
    for i in range(1000):
        index.add(unit(100 + i), "loud", "m", 100 + i, censored=False)
    assert sorted(tokens(of_tenant(index, unit(0), "quiet", "m", 64))) == list(range(10))
    loud = of_tenant(index, unit(0), "loud", "m", 64)
    assert sorted(tokens(loud)) == list(range(1080, 1100))


def test_index_gives_a_newcomer_its_share() -> None:
    """A tenant that comes to a full window takes rows of the largest up to an equal share."""
    index = filled(20, 20)
    for i in range(50):
        index.add(unit(100 + i), "new", "m", 100 + i, censored=False)
    assert (index.tenant_rows("t0"), index.tenant_rows("new")) == (10, 10)
    assert min(tokens(of_tenant(index, unit(0), "t0", "m", 64))) == 10


def test_index_tenant_pool_holds_that_tenant_only() -> None:
    """Another tenant's nearer row is in the global pool and not in the tenant's."""
    index = filled(100, 30, tenants=3)
    found = of_tenant(index, unit(4), "t0", "m", 64)
    assert sorted(tokens(found)) == list(range(0, 30, 3))
    assert tokens(of_all(index, unit(4), "m", 1)) == [4]
    assert len(of_tenant(index, unit(4), "nobody", "m", 5)) == 0


def test_index_private_rows_are_seen_by_their_tenant_alone() -> None:
    """Rows of a private tenant, and rows learned as unshared, leave the global pool."""
    index = HistoryIndex(WIDTH, 10, private={"secret"})
    index.add(unit(1), "secret", "m", 1, censored=False)
    index.add(unit(2), "open", "m", 2, censored=False)
    index.add(unit(3), "open", "m", 3, censored=False, shared=False)
    assert tokens(of_all(index, unit(1), "m", 9)) == [2]
    own, everyone = index.near(unit(1), "secret", "m", 9)
    assert (tokens(own), sorted(tokens(everyone))) == ([1], [1, 2])
    own, everyone = index.near(unit(1), "open", "m", 9)
    assert (sorted(tokens(own)), sorted(tokens(everyone))) == ([2, 3], [2, 3])
    index.set_private(())
    assert sorted(tokens(of_all(index, unit(1), "m", 9))) == [1, 2]
    index.set_private({"open"})
    assert tokens(of_all(index, unit(1), "m", 9)) == [1]


def test_index_searches_a_crowded_tenant_alone() -> None:
    """Many nearer rows of others do not hide the tenant's own above the threshold."""
    index, centre = HistoryIndex(WIDTH, 400), unit(0)
    for _ in range(300):
        index.add(centre, "other", "m", 1, censored=False)
    close = centre + 0.2 * unit(5)
    for i in range(10):
        index.add(close / np.linalg.norm(close), "own", "m", 10 + i, censored=False)
    own, everyone = index.near(centre, "own", "m", 8, threshold=0.8)
    assert len(own) == 8
    assert min(tokens(own)) >= 10
    assert set(tokens(everyone)) == {1}


def test_empty_index_finds_nothing() -> None:
    """Without rows there are no neighbours and no error."""
    index = HistoryIndex(WIDTH, 5)
    assert len(of_all(index, unit(0), "m", 5)) == 0
    assert len(of_tenant(index, unit(0), "t", "m", 5)) == 0
    assert len(index.resized(3)) == 0


def test_index_gives_model_censoring_and_age() -> None:
    """Each neighbour has flags for the same model and for a cut answer, and its age."""
    index = HistoryIndex(WIDTH, 5)
    index.add(unit(0), "t", "m", 10, censored=True, wall_s=100.0)
    index.add(unit(1), "t", "other", 20, censored=False, wall_s=160.0)
    found = of_all(index, unit(0), "m", 2)
    assert list(found.same_model) == [True, False]
    assert list(found.censored) == [True, False]
    assert list(found.age_s) == [60.0, 0.0]
    assert list(found.recency) == [1, 0]
    for i in range(2, 5):  # cut answers make no exact one older
        index.add(unit(i), "t", "m", 5, censored=True, wall_s=170.0)
    again = of_all(index, unit(1), "m", 5)
    assert (tokens(again)[0], again.recency[0]) == (20, 0)


class PlainWindow:
    """The rules of the window, written as slowly as they read."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.rows: list[tuple[int, str]] = []

    def add(self, row: int, tenant: str) -> None:
        if len(self.rows) == self.window:
            counts = {t: self.count(t) for _, t in self.rows}
            largest = min(counts, key=lambda t: (-counts[t], t))
            victim = tenant if self.count(tenant) + 1 > counts[largest] else largest
            self.rows.remove(next(r for r in self.rows if r[1] == victim))
        self.rows.append((row, tenant))

    def count(self, tenant: str) -> int:
        return sum(t == tenant for _, t in self.rows)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.lists(st.integers(0, 3), max_size=60),
    st.integers(1, 12),
    st.sets(st.integers(0, 3)),
)
def test_index_agrees_with_a_plain_list(
    window: int, tenants: list[int], other: int, hidden: set[int]
) -> None:
    """The index has the same rows as a plain list in every pool, also after a change of window."""
    private = {f"t{i}" for i in hidden}
    index, plain = HistoryIndex(WIDTH, window, private), PlainWindow(window)
    for i, tenant in enumerate(tenants):
        index.add(unit(i), f"t{tenant}", "m", i, censored=False)
        plain.add(i, f"t{tenant}")
    resized, other_plain = index.resized(other), PlainWindow(other)
    for row in plain.rows:
        other_plain.add(*row)
    resized.add(unit(999), "t0", "m", 999, censored=False)
    other_plain.add(999, "t0")
    for found, rows in ((index, plain.rows), (resized, other_plain.rows)):
        shared = sorted(i for i, tenant in rows if tenant not in private)
        assert sorted(tokens(of_all(found, unit(0), "m", 64))) == shared
        for name in ("t0", "t1", "t2", "t3"):
            mine = [i for i, tenant in rows if tenant == name]
            own, everyone = found.near(unit(0), name, "m", 64, -2.0)
            assert sorted(tokens(own)) == mine
            assert sorted(tokens(everyone)) == sorted({*shared, *mine})
            assert found.tenant_rows(name) == len(mine)


def test_index_scales_similarities() -> None:
    """Distances from 1 are stretched: the order stays, also once resized, and all own rows above
    the threshold on that scale are found."""
    plain, scaled = filled(50, 40, tenants=2), HistoryIndex(WIDTH, 60, scale=4.0)
    for i in range(40):
        scaled.add(unit(i), f"t{i % 2}", "m", i, censored=False)
    for index in (scaled, scaled.resized(50)):
        for tenant in ("t0", ""):
            mine, everyone = index.near(unit(99), tenant, "m", 10, 0.1)
            own, every = plain.near(unit(99), tenant, "m", 10, 1.0 - 0.9 / 4.0)
            assert tokens(everyone) == tokens(every)
            assert tokens(mine) == tokens(own)
            assert everyone.similarity == pytest.approx(1 - 4 * (1 - every.similarity), abs=1e-5)
    assert of_all(scaled, unit(7), "m", 1).similarity[0] == pytest.approx(1.0, abs=1e-5)
