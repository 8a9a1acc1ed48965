"""The predictor's forecasts of real rows, and the file they are kept in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.errors import SettingsError
from gateway.predict.artefacts import Artefacts
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.workbench.simulate import forecast_rows as forecasts
from gateway.workbench.simulate.request_rows import RequestRow
from tests.unit.workbench.evaluate_cases import row, write
from tests.unit.workbench.test_judged_rows import history_row, stored

ROWS = forecasts.SKIPPED + 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    return write(folder / "rows.jsonl", [row(i, f"Say number {i % 40}") for i in range(ROWS)])


def real(data: Path, stored: Path) -> list[RequestRow]:
    return forecasts.real_rows(data, None, stored, shipped("models"), 1)


@pytest.fixture(scope="module")
def first(data: Path) -> list[RequestRow]:
    return real(data, data.with_name("kept.npz"))


def test_rows_have_both_forecasts(data: Path, first: list[RequestRow]) -> None:
    """Rows have stage 0's forecast and the full one; rows that fill the history are left out."""
    assert len(first) == ROWS - forecasts.SKIPPED
    for one in first:
        assert one.better is not None
        assert one.forecast is one.better
        assert one.first.prompt_tokens == one.prompt_tokens > 0
        assert list(one.better.grid) == sorted(one.better.grid)


def test_stored_forecasts_are_used_again(data: Path, first: list[RequestRow]) -> None:
    """A second run takes its forecasts from the file."""
    stored = data.with_name("kept.npz")
    assert real(data, stored) == first
    with np.load(stored) as file:
        arrays = {name: file[name] for name in file}
    arrays["full.p_short"] = np.full_like(arrays["full.p_short"], 0.125)
    changed = data.with_name("changed.npz")
    np.savez(changed, **arrays)
    assert {one.forecast.p_short for one in real(data, changed)} == {0.125}


def test_forecasts_of_other_rows_are_not_used(data: Path, first: list[RequestRow]) -> None:
    """Forecasts of other rows, or in a broken file, are made anew."""
    stored = data.with_name("kept.npz")
    with np.load(stored) as file:
        arrays = {name: file[name] for name in file}
    arrays["name"] = np.array("of something else")
    arrays["full.p_short"] = np.full_like(arrays["full.p_short"], 0.125)
    other = data.with_name("other.npz")
    np.savez(other, **arrays)
    assert {one.forecast.p_short for one in real(data, other)} != {0.125}
    broken = data.with_name("broken.npz")
    broken.write_bytes(b"PK")
    assert len(real(data, broken)) == len(first)


def test_young_forecaster_has_learned_so_many_rows(data: Path, first: list[RequestRow]) -> None:
    """With `learned` no row is left out, and forecasts rest on less than the whole history."""
    stored = data.with_name("young.npz")
    models = shipped("models")
    young = forecasts.real_rows(data, None, stored, models, 1, learned=5)
    assert len(young) == ROWS
    assert young == forecasts.real_rows(data, None, stored, models, 1, learned=5)
    assert [r.output_tokens for r in young[-20:]] == [r.output_tokens for r in first]
    assert [r.forecast for r in young[-20:]] != [r.forecast for r in first]


def test_too_few_rows_are_an_error(tmp_path: Path) -> None:
    """Too few rows are refused before the models run."""
    path = write(tmp_path / "few.jsonl", [row(i, f"Say {i}") for i in range(5)])
    with pytest.raises(SettingsError, match="too few"):
        real(path, tmp_path / "kept.npz")


def test_history_gives_rows_without_text(tmp_path: Path) -> None:
    """Rows of a store are forecast from their vectors."""
    settings = Predict()
    models = shipped("models")
    artefacts = Artefacts(models, settings.embedding_model_name, settings.max_encoder_tokens)
    assert artefacts.encoder is not None
    vector = np.zeros(artefacts.encoder.width, "<f2")
    vector[0] = 1
    rows = [
        history_row(i, encoder=artefacts.encoder_name, vector=vector.tobytes(), output_tokens=70)
        for i in range(ROWS)
    ]
    path = stored(tmp_path / "s.db", rows)
    found = forecasts.real_rows(None, path, tmp_path / "kept.npz", models, 1)
    assert len(found) == ROWS - forecasts.SKIPPED
    assert found[-1].forecast.p50 == pytest.approx(70, rel=0.3)
