"""The rungs of a forecast, and what learning changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from gateway.predict.artefacts import Artefacts
from gateway.predict.features import PromptView
from gateway.predict.foresight import (
    Foresight,
    Lesson,
    Money,
    heuristic_grid,
    stage0_grid,
    workload_of,
)
from gateway.predict.prices import Price
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.types import HistoryRow, Rung, SizeBucket
from tests.unit.predict.conftest import Damage, replace

PROMPT = "Write a short poem about the sea"


def view(text: str = PROMPT, tenant: str = "a", **more: Any) -> PromptView:
    return PromptView.of_prompt(text, tenant=tenant, model=more.pop("model", "m"), **more)


def lesson(seen: PromptView, tokens: int, **more: Any) -> Lesson:
    values = {"prompt_tokens": None, "censored": False, "success": True, "wall_s": 1.0} | more
    return Lesson(view=seen, output_tokens=tokens, **values)


@pytest.fixture
def foresight(artefacts: Artefacts) -> Foresight:
    return Foresight(Predict(), artefacts, b"key", {"m": Price(prompt=1.0, output=10.0)})


def test_rung_tenant_neighbors(foresight: Foresight) -> None:
    """Enough near rows of the tenant name the forecast, and give it its length."""
    for _ in range(6):
        foresight.learn(lesson(view(), 777))
    found = foresight.forecast(view("write a short poem about the SEA!"))
    assert found.rung is Rung.TENANT_NEIGHBORS
    assert 550 < found.p50 < 900


def test_rung_global_neighbors(foresight: Foresight) -> None:
    """Near rows of other tenants serve a tenant that has none."""
    for i in range(6):
        foresight.learn(lesson(view(tenant=f"t{i}"), 777))
    found = foresight.forecast(view(tenant="new"))
    assert found.rung is Rung.GLOBAL_NEIGHBORS
    assert 550 < found.p50 < 900


def test_rung_model_only(foresight: Foresight) -> None:
    """Without near rows the boosters speak, even when the window is full of others."""
    assert foresight.forecast(view()).rung is Rung.MODEL_ONLY
    for i in range(10):
        foresight.learn(lesson(view(f"Compute the determinant of matrix number {i}"), 50))
    assert foresight.forecast(view()).rung is Rung.MODEL_ONLY


def test_rung_heuristic(damaged: Callable[[Damage], Path]) -> None:
    """Without artefacts there is still a forecast."""
    folder = damaged(replace("manifest.toml", None))
    blind = Foresight(Predict(), Artefacts(folder, "x", 64), b"key", {})
    found = blind.forecast(view())
    assert found.rung is Rung.HEURISTIC
    assert found.p50 > 0
    row = blind.learn(lesson(view(), 100))
    assert (row.encoder, row.vector) == ("", b"")


def test_one_repeat_is_enough_to_be_named(foresight: Foresight) -> None:
    """A single true repeat names the rung and moves the next forecast."""
    before = foresight.forecast(view())
    foresight.learn(lesson(view(), 2000))
    after = foresight.forecast(view())
    assert after.rung is Rung.TENANT_NEIGHBORS
    assert after.p50 > 2 * before.p50


def test_few_faint_neighbours_do_not_name_the_rung(foresight: Foresight) -> None:
    """Fewer than TOP_K rows, none a repeat: blended in, but the model keeps the name."""
    for _ in range(2):
        foresight.learn(lesson(view("Write a long poem about the sea and its ships"), 2000))
    assert foresight.forecast(view()).rung is Rung.MODEL_ONLY


def test_top_k_and_threshold_decide_the_rung(artefacts: Artefacts) -> None:
    """The same two rows name the forecast when two are asked for, or not at threshold 0.99."""
    near = "Write a long poem about the sea and its ships"
    for settings, rung in (
        (Predict(top_k_neighbors=2, similarity_threshold=0.7), Rung.TENANT_NEIGHBORS),
        (Predict(top_k_neighbors=3, similarity_threshold=0.7), Rung.MODEL_ONLY),
        (Predict(top_k_neighbors=2, similarity_threshold=0.99), Rung.MODEL_ONLY),
    ):
        foresight = Foresight(settings, artefacts, b"key", {})
        for _ in range(2):
            foresight.learn(lesson(view(near), 300))
        assert foresight.forecast(view()).rung is rung


def test_forecast_is_cut_at_max_tokens(foresight: Foresight) -> None:
    """Nothing is forecast above max_tokens, neighbours or not."""
    for _ in range(6):
        foresight.learn(lesson(view(), 2000))
    found = foresight.forecast(view(max_tokens=100))
    assert found.grid[-1] <= 100.0001
    assert found.size_bucket is SizeBucket.MEDIUM


def test_forecast_is_whole_and_within_bounds(foresight: Foresight) -> None:
    """Any view: a non-decreasing grid, probabilities in [0, 1], cost by the formula."""
    views = [view(text, n=2) for text in ("", "x", "\ud800", "字" * 3000, "a b " * 5000)]
    for seen in views:
        found = foresight.forecast(seen)
        assert list(found.grid) == sorted(found.grid)
        assert (found.p50, found.p90) == (found.grid[3], found.grid[5])
        assert all(0 <= value <= 1 for value in (found.p_short, found.risk, found.confidence))
        assert found.cost_p50 == pytest.approx(found.prompt_tokens + 4.0 * 2 * found.p50)
        dollars = (found.prompt_tokens * 1.0 + 2 * found.p50 * 10.0) / 1e6
        assert found.cost_usd_p50 == pytest.approx(dollars)


def test_forecast_of_a_model_without_price_has_no_dollars(foresight: Foresight) -> None:
    """Money is said only where a price is known."""
    assert foresight.forecast(view(model="unpriced")).cost_usd_p50 is None


def test_learning_calibrates_a_model_the_boosters_do_not_know(foresight: Foresight) -> None:
    """A model that answers ten times longer is forecast longer, on prompts never seen."""
    before = foresight.forecast(view("Name three rivers", model="verbose")).p50
    for i in range(60):
        seen = view(f"Topic number {i}: tell me about the year {1900 + i}", model="verbose")
        foresight.learn(lesson(seen, 4000))
    assert foresight.calibration.stage0("a", "verbose") > 0.5
    assert foresight.forecast(view("Name three rivers", model="verbose")).p50 > 1.5 * before


def test_learned_row_holds_what_history_needs_and_no_text(foresight: Foresight) -> None:
    """The row has the vector, hash, lengths and flags; the prompt is not in it."""
    seen = view("A secret prompt", task_type="qa", max_tokens=50)
    row = foresight.learn(lesson(seen, 50, prompt_tokens=7, censored=True))
    assert (row.tenant, row.model, row.task_type, row.max_tokens) == ("a", "m", "qa", 50)
    assert (row.output_tokens, row.prompt_tokens, row.censored) == (50, 7, True)
    assert (len(row.vector), len(row.prompt_key)) == (768, 16)
    assert "secret" not in repr(row)


def test_learned_row_estimates_prompt_tokens_that_were_not_counted(foresight: Foresight) -> None:
    """Without the provider's count the estimate stands."""
    row = foresight.learn(lesson(view(), 10))
    assert row.prompt_tokens == view().prompt_tokens


@pytest.mark.parametrize(("tokens", "success", "rows"), [(0, True, 0), (9, False, 0), (9, True, 1)])
def test_learning_skips_lengths_that_mean_nothing(
    foresight: Foresight, tokens: int, success: bool, rows: int
) -> None:
    """Empty and failed answers are history, but no neighbours."""
    foresight.learn(lesson(view(), tokens, success=success))
    assert foresight.rows == rows


def test_remembered_rows_forecast_like_learned_ones(
    foresight: Foresight, artefacts: Artefacts
) -> None:
    """An index filled from history answers as the one that learned."""
    rows = [foresight.learn(lesson(view(), 700 + i)) for i in range(6)]
    other = Foresight(Predict(), artefacts, b"key", {})
    assert all(other.remember(row) for row in rows)
    again = other.forecast(view())
    assert again.rung is Rung.TENANT_NEIGHBORS
    assert 500 < again.p50 < 900


def test_rows_of_another_encoder_are_not_searched(foresight: Foresight) -> None:
    """Vectors of different encoders are not compared."""
    row: HistoryRow = foresight.learn(lesson(view(), 700))
    foresight.forget()
    assert not foresight.remember(structs.replace(row, encoder="another"))
    assert not foresight.remember(structs.replace(row, vector=b"short"))
    assert foresight.remember(row)


def test_forget_empties_index_and_calibration(foresight: Foresight) -> None:
    """After `forget` the forecast is what it was before anything was learned."""
    before = foresight.forecast(view())
    for _ in range(6):
        foresight.learn(lesson(view(), 3000))
    assert foresight.forecast(view()) != before
    foresight.forget()
    assert foresight.rows == 0
    assert foresight.forecast(view()) == before


def test_another_window_keeps_the_newest_rows(foresight: Foresight) -> None:
    """A smaller window drops the oldest rows, a larger one keeps all."""
    for i in range(8):
        foresight.learn(lesson(view(f"Question {i} about the number {i}"), 10 + i))
    foresight.configure(Predict(history_window_size=3))
    assert foresight.rows == 3
    foresight.configure(Predict(history_window_size=50))
    assert foresight.rows == 3


def test_heuristic_knows_structure_and_limit() -> None:
    """Tools and JSON answers are short, max_tokens cuts."""
    plain, tools = heuristic_grid(view()), heuristic_grid(view(tools=2))
    assert tools[3] < plain[3]
    money = Money(4.0, {})
    assert workload_of(view(max_tokens=20), plain, Rung.HEURISTIC, money).p90 <= 20.0001


def test_stage0_without_model_is_the_heuristic(artefacts: Artefacts) -> None:
    """No trees or no tables: the heuristic, under its name; the bias still counts."""
    grid, rung = stage0_grid(view(), None, artefacts.tables, 0.5)
    assert rung is Rung.HEURISTIC
    assert grid[3] == pytest.approx(heuristic_grid(view())[3] + 0.5)
    assert stage0_grid(view(), artefacts.stage0(), artefacts.tables, 0.0)[1] is Rung.MODEL_ONLY


def test_shipped_models_are_where_the_code_looks() -> None:
    """A source tree has its artefacts in models/."""
    assert (shipped("models") / "manifest.toml").exists()
