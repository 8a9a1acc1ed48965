"""The warm start gives the boosters something to read, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from gateway.predict.artefacts import Artefacts
from gateway.predict.encoder import Vector
from gateway.predict.index import NO_NEIGHBOURS, HistoryIndex
from gateway.predict.lesson import Lesson
from gateway.predict.prompt_view import PromptView
from gateway.predict.teaching import LearningForecaster
from gateway.predict.warm import Warm
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.types import Rung
from tests.unit.predict.conftest import NAME, Damage, replace

WIDTH = 8


def unit(place: int, lean: float = 0.0) -> Vector:
    """A direction of its own for each place, leaning to the last one."""
    vector = np.zeros(WIDTH, np.float32)
    vector[place], vector[-1] = 1.0, lean
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def written(path: Path, encoder: str = NAME) -> Path:
    vectors = np.array([unit(i) for i in range(4)])
    np.savez(
        path,
        vectors=(vectors * 127).astype(np.int8),
        lengths=np.array([10, 20, 30, 40], np.uint32),
        model=np.array([0, 1, 0, 1], np.uint16),
        models=np.array(["one", "two"]),
        encoder=np.array(encoder),
    )
    return path


@pytest.fixture
def warm(tmp_path: Path) -> Warm:
    return Warm(written(tmp_path / "warm.npz"))


def test_warm_rows_stand_in_for_none(warm: Warm) -> None:
    """Without history the nearest warm rows are read, with length and model."""
    found = warm.instead_of(NO_NEIGHBOURS, unit(1, 0.1), "two")
    assert len(warm) == 4
    assert np.expm1(found.length[0]) == pytest.approx(20)
    assert found.same_model.tolist()[0] is True
    assert found.similarity[0] == pytest.approx(1.0, abs=0.01)


def test_warm_rows_yield_to_real_ones(warm: Warm) -> None:
    """A real row that is as near, or near enough, is read alone; a far one is not."""
    for lean, real in ((0.0, True), (0.6, True), (3.0, False)):
        history = HistoryIndex(WIDTH, 4)
        history.add(unit(1, lean), "a", "m", 999, censored=False)
        rows = history.global_neighbours(unit(1), "m", 3)
        found = warm.instead_of(rows, unit(1), "m")
        assert (found is rows) is real, lean


def test_warm_file_that_is_broken_is_said(
    damaged: Callable[[Damage], Path], tmp_path: Path
) -> None:
    """It costs the warm start alone; a folder without one lacks nothing."""
    with pytest.raises((ValueError, KeyError)):
        Warm(truncated(written(tmp_path / "w.npz")))
    found = Artefacts(damaged(replace("warm.npz", b"")), NAME, 64)
    assert [problem.startswith("warm.npz") for problem in found.problems] == [True]
    assert found.warm is None
    assert found.full is not None


def truncated(path: Path) -> Path:
    with np.load(path) as file:
        parts = dict(file)
    del parts["lengths"]
    np.savez(path, **parts)
    return path


def test_shipped_warm_start_has_no_text_and_fits_the_encoder(artefacts: Artefacts) -> None:
    """Vectors, lengths and model names of the shipped encoder; nothing else is in the file."""
    assert artefacts.warm is not None
    assert artefacts.encoder is not None
    assert artefacts.warm.width == artefacts.encoder.width
    with np.load(shipped("models") / "warm.npz") as file:
        assert set(file) == {"vectors", "lengths", "model", "models", "encoder"}
        assert str(file["encoder"]) == NAME
        assert file["vectors"].dtype == np.int8
        assert len(file["models"]) < 200


def test_warm_rows_change_the_forecast_and_never_its_rung(artefacts: Artefacts) -> None:
    """On the first day: other numbers than without, the same name, nothing in the window."""
    view = PromptView.of_prompt("Write a poem about spring", tenant="t", model="gpt-4")
    found = {}
    for name, parts in (("with", artefacts), ("without", without(artefacts))):
        forecaster = LearningForecaster(Predict(), parts, b"key", {})
        found[name] = forecaster.forecast(view)
        assert (forecaster.rows, found[name].rung) == (0, Rung.MODEL_ONLY)
    assert found["with"].grid != found["without"].grid


def test_warm_rows_are_forgotten_once_the_prompt_is_known(artefacts: Artefacts) -> None:
    """After repeats of a prompt the forecast is the same with and without them."""
    view = PromptView.of_prompt("Write a poem about spring", tenant="t", model="gpt-4")
    said = []
    for parts in (artefacts, without(artefacts)):
        forecaster = LearningForecaster(Predict(), parts, b"key", {})
        lesson = Lesson(view, 321, None, False, True, 1.0)
        rows = [forecaster.learn(structs.replace(lesson, wall_s=float(i))) for i in range(8)]
        said.append((forecaster.forecast(view).rung, rows[-1].neighbours))
    assert said[0] == said[1]
    assert said[0][0] is Rung.TENANT_NEIGHBORS


def without(artefacts: Artefacts) -> Artefacts:
    other = artefacts.refitted(None)
    other.warm = None
    return other
