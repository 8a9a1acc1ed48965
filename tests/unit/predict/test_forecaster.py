"""Forecasts: the source they come from, and their bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.predict.artefacts import Artefacts
from gateway.predict.teaching import LearningForecaster
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.types import Rung, SizeBucket
from tests.unit.predict.conftest import Damage, replace
from tests.unit.predict.lessons import lesson, view


def test_rung_tenant_neighbors(forecaster: LearningForecaster) -> None:
    """Enough near rows of the tenant name the forecast and give it its length."""
    for _ in range(6):
        forecaster.learn(lesson(view(), 777))
    found = forecaster.forecast(view("write a short poem about the SEA!"))
    assert found.rung is Rung.TENANT_NEIGHBORS
    assert 550 < found.p50 < 900


def test_rung_global_neighbors(forecaster: LearningForecaster) -> None:
    """Near rows of other tenants serve a tenant that has none."""
    for i in range(6):
        forecaster.learn(lesson(view(tenant=f"t{i}"), 777))
    found = forecaster.forecast(view(tenant="new"))
    assert found.rung is Rung.GLOBAL_NEIGHBORS
    assert 550 < found.p50 < 900


def test_rung_model_only(forecaster: LearningForecaster) -> None:
    """Without near rows the boosters forecast, even when the window is full of others."""
    assert forecaster.forecast(view()).rung is Rung.MODEL_ONLY
    for i in range(10):
        forecaster.learn(lesson(view(f"Compute the determinant of matrix number {i}"), 50))
    assert forecaster.forecast(view()).rung is Rung.MODEL_ONLY


def test_rung_heuristic(damaged: Callable[[Damage], Path]) -> None:
    """Without artefacts there is still a forecast."""
    folder = damaged(replace("manifest.toml", None))
    blind = LearningForecaster(Predict(), Artefacts(folder, "x", 64), b"key", {})
    found = blind.forecast(view())
    assert found.rung is Rung.HEURISTIC
    assert found.p50 > 0
    row = blind.learn(lesson(view(), 100))
    assert (row.encoder, row.vector) == ("", b"")


def test_one_repeat_names_the_rung(forecaster: LearningForecaster) -> None:
    """A single true repeat names the rung and moves the next forecast."""
    before = forecaster.forecast(view())
    forecaster.learn(lesson(view(), 2000))
    after = forecaster.forecast(view())
    assert after.rung is Rung.TENANT_NEIGHBORS
    assert after.p50 > 2 * before.p50


def test_few_faint_neighbours_do_not_name_the_rung(forecaster: LearningForecaster) -> None:
    """Below top_k neighbours and without a repeat, `fallback_level` stays `model_only`."""
    for _ in range(2):
        forecaster.learn(lesson(view("Write a long poem about the sea and its ships"), 2000))
    assert forecaster.forecast(view()).rung is Rung.MODEL_ONLY


def test_top_k_and_threshold_decide_the_rung(artefacts: Artefacts) -> None:
    """Two rows name the forecast where top_k is 2, and do not at a threshold of 0.99."""
    near = "Write a long poem about the sea and its ships"
    for settings, rung in (
        (Predict(top_k_neighbors=2, similarity_threshold=0.7), Rung.TENANT_NEIGHBORS),
        (Predict(top_k_neighbors=3, similarity_threshold=0.7), Rung.MODEL_ONLY),
        (Predict(top_k_neighbors=2, similarity_threshold=0.99), Rung.MODEL_ONLY),
    ):
        forecaster = LearningForecaster(settings, artefacts, b"key", {})
        for _ in range(2):
            forecaster.learn(lesson(view(near), 300))
        assert forecaster.forecast(view()).rung is rung


def test_forecast_is_cut_at_max_tokens(forecaster: LearningForecaster) -> None:
    """No forecast lies above max_tokens, with neighbours or without."""
    for _ in range(6):
        forecaster.learn(lesson(view(), 2000))
    found = forecaster.forecast(view(max_tokens=100))
    assert found.grid[-1] <= 100.0001
    assert found.size_bucket is SizeBucket.MEDIUM


def test_forecast_is_complete_and_within_bounds(forecaster: LearningForecaster) -> None:
    """Any view has a non-decreasing grid, probabilities in [0, 1] and the cost by the formula."""
    views = [view(text, n=2) for text in ("", "x", "\ud800", "字" * 3000, "a b " * 5000)]
    for seen in views:
        found = forecaster.forecast(seen)
        assert list(found.grid) == sorted(found.grid)
        assert (found.p50, found.p90) == (found.grid[3], found.grid[5])
        assert all(0 <= value <= 1 for value in (found.p_short, found.risk, found.confidence))
        assert found.cost_p50 == pytest.approx(found.prompt_tokens + 4.0 * 2 * found.p50)
        dollars = (found.prompt_tokens * 1.0 + 2 * found.p50 * 10.0) / 1e6
        assert found.cost_usd_p50 == pytest.approx(dollars)


def test_forecast_of_a_model_without_price_has_no_dollars(forecaster: LearningForecaster) -> None:
    """The cost in dollars is None for a model without a price."""
    assert forecaster.forecast(view(model="unpriced")).cost_usd_p50 is None


def test_forget_empties_index_and_calibration(forecaster: LearningForecaster) -> None:
    """After `forget` the forecast is that of before anything was learned."""
    before = forecaster.forecast(view())
    for _ in range(6):
        forecaster.learn(lesson(view(), 3000))
    assert forecaster.forecast(view()) != before
    forecaster.forget()
    assert forecaster.rows == 0
    assert forecaster.forecast(view()) == before


def test_another_window_keeps_the_newest_rows(forecaster: LearningForecaster) -> None:
    """A smaller window drops the oldest rows, and a larger one keeps all."""
    for i in range(8):
        forecaster.learn(lesson(view(f"Question {i} about the number {i}"), 10 + i))
    forecaster.configure(Predict(history_window_size=3))
    assert forecaster.rows == 3
    forecaster.configure(Predict(history_window_size=50))
    assert forecaster.rows == 3


def test_shipped_models_are_where_the_code_looks() -> None:
    """A source tree has its artefacts in models/."""
    assert (shipped("models") / "manifest.toml").exists()


def test_prompts_unknown_to_the_vocabulary_skip_neighbours(forecaster: LearningForecaster) -> None:
    """Texts of unknown tokens look alike to the encoder and are not compared."""
    one, other = view("ᚠᚢᚦᚨ ᚱᚲᚷ ᚹᚺᚾ ᛁᛃᛇ"), view("ᛈᛉᛊ ᛏᛒᛖ ᛗᛚᛜ ᛞᛟ")
    row = forecaster.learn(lesson(one, 3000))
    assert (row.encoder, row.vector) == ("", b"")
    assert forecaster.rows == 0
    assert forecaster.forecast(other).rung is Rung.MODEL_ONLY
    forecaster.learn(lesson(view(), 3000))
    assert forecaster.rows == 1
