"""The rungs of a forecast, and what learning changes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from math import log1p
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import group_keys
from gateway.predict.lesson import Lesson
from gateway.predict.prices import Price
from gateway.predict.prompt_view import PromptView
from gateway.predict.teaching import LearningForecaster
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.types import HistoryRow, Rung, SizeBucket
from tests.kit.length import short_or_long
from tests.unit.predict.conftest import Damage, replace
from tests.unit.predict.rows import WORDS, digits, ruled_rows

PROMPT = "Write a short poem about the sea"


def view(text: str = PROMPT, tenant: str = "a", **more: Any) -> PromptView:
    return PromptView.of_prompt(text, tenant=tenant, model=more.pop("model", "m"), **more)


def lesson(seen: PromptView, tokens: int, **more: Any) -> Lesson:
    values = {"prompt_tokens": None, "censored": False, "success": True, "wall_s": 1.0} | more
    return Lesson(view=seen, output_tokens=tokens, **values)


@pytest.fixture
def forecaster(artefacts: Artefacts) -> LearningForecaster:
    return LearningForecaster(Predict(), artefacts, b"key", {"m": Price(prompt=1.0, output=10.0)})


def test_rung_tenant_neighbors(forecaster: LearningForecaster) -> None:
    """Enough near rows of the tenant name the forecast, and give it its length."""
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
    """Without near rows the boosters speak, even when the window is full of others."""
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


def test_one_repeat_is_enough_to_be_named(forecaster: LearningForecaster) -> None:
    """A single true repeat names the rung and moves the next forecast."""
    before = forecaster.forecast(view())
    forecaster.learn(lesson(view(), 2000))
    after = forecaster.forecast(view())
    assert after.rung is Rung.TENANT_NEIGHBORS
    assert after.p50 > 2 * before.p50


def test_few_faint_neighbours_do_not_name_the_rung(forecaster: LearningForecaster) -> None:
    """Fewer than TOP_K rows, none a repeat: blended in, but the model keeps the name."""
    for _ in range(2):
        forecaster.learn(lesson(view("Write a long poem about the sea and its ships"), 2000))
    assert forecaster.forecast(view()).rung is Rung.MODEL_ONLY


def test_top_k_and_threshold_decide_the_rung(artefacts: Artefacts) -> None:
    """The same two rows name the forecast when two are asked for, or not at threshold 0.99."""
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
    """Nothing is forecast above max_tokens, neighbours or not."""
    for _ in range(6):
        forecaster.learn(lesson(view(), 2000))
    found = forecaster.forecast(view(max_tokens=100))
    assert found.grid[-1] <= 100.0001
    assert found.size_bucket is SizeBucket.MEDIUM


def test_forecast_is_whole_and_within_bounds(forecaster: LearningForecaster) -> None:
    """Any view: a non-decreasing grid, probabilities in [0, 1], cost by the formula."""
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
    """Pricing is said only where a price is known."""
    assert forecaster.forecast(view(model="unpriced")).cost_usd_p50 is None


def test_learning_calibrates_a_model_the_boosters_do_not_know(
    forecaster: LearningForecaster,
) -> None:
    """A model that answers ten times longer is forecast longer, on prompts never seen."""
    before = forecaster.forecast(view("Name three rivers", model="verbose")).p50
    for i in range(60):
        seen = view(f"Topic number {i}: tell me about the year {1900 + i}", model="verbose")
        forecaster.learn(lesson(seen, 4000))
    assert forecaster.calibration.stage0_bias(group_keys("verbose", "a")) > 0.5
    assert forecaster.forecast(view("Name three rivers", model="verbose")).p50 > 1.5 * before


def test_learned_row_holds_what_history_needs_and_no_text(forecaster: LearningForecaster) -> None:
    """The row has the vector, hash, lengths and flags; the prompt is not in it."""
    seen = view("A secret prompt", task_type="qa", max_tokens=50)
    row = forecaster.learn(lesson(seen, 5000, prompt_tokens=7, censored=True))
    assert (row.tenant, row.model, row.task_type, row.max_tokens) == ("a", "m", "qa", 50)
    assert (row.output_tokens, row.prompt_tokens, row.censored) == (5000, 7, True)
    assert (len(row.vector), len(row.prompt_key)) == (768, 16)
    assert "secret" not in repr(row)


def test_draft_is_the_row_and_teaches_nothing(forecaster: LearningForecaster) -> None:
    """What learning would give back; index, calibration and forecasts stay as they are."""
    before, table = forecaster.forecast(view()), forecaster.calibration
    taught = lesson(view(), 2500, prompt_tokens=40)
    row = forecaster.draft(taught)
    assert (forecaster.rows, forecaster.calibration) == (0, table)
    assert forecaster.forecast(view()) == before
    assert forecaster.learn(taught) == row
    assert forecaster.forecast(view()) != before


def test_brief_lesson_leaves_out_the_encoder_and_still_calibrates(
    forecaster: LearningForecaster,
) -> None:
    """No vector and no place in the index, unless the vector is at hand; the bias moves."""
    before = forecaster.calibration
    row = forecaster.learn(lesson(view("Tell me of a thing never read"), 2500, brief=True))
    assert (row.encoder, row.vector, forecaster.rows) == ("", b"", 0)
    assert row.features
    assert forecaster.calibration != before
    forecaster.forecast(view())
    row = forecaster.learn(lesson(view(), 2500, brief=True))
    assert (len(row.vector), forecaster.rows) == (768, 1)


def test_learned_row_estimates_prompt_tokens_that_were_not_counted(
    forecaster: LearningForecaster,
) -> None:
    """Without the provider's count the estimate stands."""
    row = forecaster.learn(lesson(view(), 10))
    assert row.prompt_tokens == view().prompt_tokens


@pytest.mark.parametrize(("tokens", "success", "rows"), [(0, True, 0), (9, False, 0), (9, True, 1)])
def test_learning_skips_lengths_that_mean_nothing(
    forecaster: LearningForecaster, tokens: int, success: bool, rows: int
) -> None:
    """Empty and failed answers are history, but no neighbours."""
    forecaster.learn(lesson(view(), tokens, success=success))
    assert forecaster.rows == rows


def test_remembered_rows_forecast_like_learned_ones(
    forecaster: LearningForecaster, artefacts: Artefacts
) -> None:
    """An index filled from history answers as the one that learned."""
    rows = [forecaster.learn(lesson(view(), 700 + i)) for i in range(6)]
    other = LearningForecaster(Predict(), artefacts, b"key", {})
    assert all(other.remember(row) for row in rows)
    again = other.forecast(view())
    assert again.rung is Rung.TENANT_NEIGHBORS
    assert 500 < again.p50 < 900


def test_rows_of_another_encoder_are_not_searched(forecaster: LearningForecaster) -> None:
    """Vectors of different encoders are not compared."""
    row: HistoryRow = forecaster.learn(lesson(view(), 700))
    forecaster.forget()
    assert not forecaster.remember(structs.replace(row, encoder="another"))
    assert not forecaster.remember(structs.replace(row, encoder="all-MiniLM-L6-v2"))  # of old
    assert not forecaster.remember(structs.replace(row, vector=b"short"))
    assert forecaster.remember(row)


def test_forget_empties_index_and_calibration(forecaster: LearningForecaster) -> None:
    """After `forget` the forecast is what it was before anything was learned."""
    before = forecaster.forecast(view())
    for _ in range(6):
        forecaster.learn(lesson(view(), 3000))
    assert forecaster.forecast(view()) != before
    forecaster.forget()
    assert forecaster.rows == 0
    assert forecaster.forecast(view()) == before


def test_another_window_keeps_the_newest_rows(forecaster: LearningForecaster) -> None:
    """A smaller window drops the oldest rows, a larger one keeps all."""
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
    """Texts that are all unknown tokens look alike to the encoder: they are not compared."""
    one, other = view("ᚠᚢᚦᚨ ᚱᚲᚷ ᚹᚺᚾ ᛁᛃᛇ"), view("ᛈᛉᛊ ᛏᛒᛖ ᛗᛚᛜ ᛞᛟ")
    row = forecaster.learn(lesson(one, 3000))
    assert (row.encoder, row.vector) == ("", b"")
    assert forecaster.rows == 0
    assert forecaster.forecast(other).rung is Rung.MODEL_ONLY
    forecaster.learn(lesson(view(), 3000))
    assert forecaster.rows == 1


def test_private_tenant_helps_itself_alone(artefacts: Artefacts) -> None:
    """Its rows are its neighbours, never another's; its history rows say so."""
    forecaster = LearningForecaster(Predict(), artefacts, b"key", {}, private={"secret"})
    before = forecaster.forecast(view(tenant="other"))
    rows = [forecaster.learn(lesson(view(tenant="secret"), 4000)) for _ in range(6)]
    assert not any(row.shared for row in rows)
    assert forecaster.forecast(view(tenant="secret")).rung is Rung.TENANT_NEIGHBORS
    assert forecaster.forecast(view(tenant="other")) == before
    later = LearningForecaster(
        Predict(), artefacts, b"key", {}
    )  # no longer private: old rows stay so
    assert all(later.remember(row) for row in rows)
    assert later.forecast(view(tenant="other")).rung is Rung.MODEL_ONLY
    forecaster.learn(lesson(view(tenant="open"), 4000))
    assert forecaster.forecast(view(tenant="other")).rung is Rung.GLOBAL_NEIGHBORS
    forecaster.configure(Predict(), private={"open", "secret"})
    assert forecaster.forecast(view(tenant="other")).rung is Rung.MODEL_ONLY


@pytest.mark.parametrize("kind", ["cut", "failed", "running"])
def test_bounds_below_the_forecast_change_nothing(
    forecaster: LearningForecaster, kind: str
) -> None:
    """Cut, failed and running answers of three tokens leave a long forecast where it was;
    whole answers of three tokens do not."""
    for i in range(8):
        forecaster.learn(lesson(view(), 1500 + i))
    before = forecaster.forecast(view())
    bound = {"censored": True, "success": kind == "cut", "running": kind == "running"}
    for _ in range(30):
        forecaster.learn(lesson(view(), 3, **bound))
    after = forecaster.forecast(view())
    assert after.p50 >= before.p50 * 0.9  # the boosters hear of fewer known rows
    assert after.p90 >= before.p90 * 0.9
    for _ in range(30):
        forecaster.learn(lesson(view(), 3))
    assert forecaster.forecast(view()).p50 < before.p50 / 5


def test_running_answers_past_their_forecast_raise_it(forecaster: LearningForecaster) -> None:
    """What has already come of answers that still run counts, and is no history."""
    before = forecaster.forecast(view("Name three rivers", model="endless")).p50
    for i in range(60):
        seen = view(f"Topic number {i}: about the year {1900 + i}", model="endless")
        forecaster.learn(lesson(seen, 5000, censored=True, success=False, running=True))
    assert forecaster.rows == 0
    assert forecaster.forecast(view("Name three rivers", model="endless")).p50 > 1.5 * before


def test_prompt_tokens_follow_the_provider_s_counts(forecaster: LearningForecaster) -> None:
    """A provider that counts twice as many tokens a byte: forecast and rows follow."""
    seen = view("word " * 300)
    before = forecaster.forecast(seen).prompt_tokens
    for i in range(60):
        told = view(f"{i} " + "term " * 300)
        forecaster.learn(lesson(told, 50, prompt_tokens=2 * told.prompt_tokens))
    assert forecaster.forecast(seen).prompt_tokens > 1.6 * before
    assert forecaster.learn(lesson(seen, 50)).prompt_tokens > 1.6 * before


def test_text_is_kept_only_when_asked_for(forecaster: LearningForecaster) -> None:
    """keep_text = true puts the last user text into the row, and false does not."""
    assert forecaster.learn(lesson(view(), 50)).text == ""
    forecaster.configure(Predict(keep_text=True))
    assert forecaster.learn(lesson(view(), 50)).text == PROMPT


def test_calibration_survives_a_restart(
    forecaster: LearningForecaster, artefacts: Artefacts
) -> None:
    """What was dumped is taken up by the next process."""
    for i in range(60):
        forecaster.learn(lesson(view(f"Topic {i}", model="verbose"), 4000))
    other = LearningForecaster(Predict(), artefacts, b"key", {})
    assert other.residuals.restore(forecaster.calibration.dump())
    assert other.calibration == forecaster.calibration


COUNT = short_or_long(800, 1200)  # answers of a steady source


def stream(rng: random.Random, count: int, scale: float) -> Iterator[tuple[PromptView, int]]:
    """Questions of one application: length by topic, log-normal scatter, times `scale`."""
    topics = {"river": 60, "parser": 400, "history of the town": 900, "poem about rain": 150}
    for _ in range(count):
        topic, typical = rng.choice(list(topics.items()))
        text = f"Tell me about the {topic}, case {rng.randrange(10**6)}"
        yield view(text, tenant="app"), round(scale * typical * rng.lognormvariate(0, 0.5))


def test_coverage_holds_after_a_source_doubles_its_lengths(artefacts: Artefacts) -> None:
    """After some hundred answers a source's lengths double: of the next 300 the last 200 lie
    below p90 in at least 0.85; without learning from them they would not."""
    rng, settings = random.Random(5), Predict()
    forecaster, deaf = (LearningForecaster(settings, artefacts, b"key", {}) for _ in range(2))
    for seen, tokens in stream(rng, short_or_long(300, 600), 1.0):
        deaf.remember(forecaster.learn(lesson(seen, tokens)))
    covered: list[bool] = []
    unlearned: list[bool] = []
    for seen, tokens in stream(rng, 300, 2.0):
        covered.append(tokens <= forecaster.forecast(seen).p90)
        unlearned.append(tokens <= deaf.forecast(seen).p90)
        forecaster.learn(lesson(seen, tokens))
    assert sum(covered[100:]) / 200 >= 0.85
    assert sum(unlearned[100:]) / 200 < 0.8
    assert forecaster.residuals.drifts >= 1


def test_coverage_holds_while_nothing_changes(artefacts: Artefacts) -> None:
    """p90 of a steady source covers 0.9 of the answers in the long run."""
    rng, forecaster = random.Random(6), LearningForecaster(Predict(), artefacts, b"key", {})
    covered = []
    for seen, tokens in stream(rng, COUNT, 1.0):
        covered.append(tokens <= forecaster.forecast(seen).p90)
        forecaster.learn(lesson(seen, tokens))
    assert sum(covered[200:]) / (COUNT - 200) == pytest.approx(0.9, abs=0.03)


def ruled(rng: random.Random, *, long: bool) -> PromptView:
    """A prompt of the application whose rule is that digits get long answers."""
    count = rng.randrange(5, 30)
    words = [digits(rng) if long else rng.choice(WORDS) for _ in range(count)]
    return view(" ".join(words), model="m-1")


def apart(forecaster: LearningForecaster) -> float:
    """By how much prompts of digits are forecast longer, in log tokens, and likelier long."""
    rng = random.Random(7)
    logs = [
        sum(log1p(forecaster.forecast(ruled(rng, long=long)).p50) for _ in range(20)) / 20
        for long in (True, False)
    ]
    return logs[0] - logs[1]


def bare(row: HistoryRow) -> HistoryRow:
    """As a row that was kept without what the leaning reads."""
    return structs.replace(row, features=b"", neighbours=b"")


def test_correction_is_learned_again_from_history(
    forecaster: LearningForecaster, artefacts: Artefacts
) -> None:
    """A start on stored rows knows the order inside a tenant's source; rows that lack what it
    reads teach none of it."""
    without = LearningForecaster(Predict(), artefacts, b"key", {})
    for row in ruled_rows(artefacts, 400):
        assert forecaster.remember(row)
        assert without.remember(bare(row))
    assert apart(forecaster) > apart(without) + 1.0


def test_correction_learns_the_order_inside_a_source(forecaster: LearningForecaster) -> None:
    """Answers teach an order that the shipped models do not know, within a hundred of them;
    another tenant's forecasts keep theirs."""
    rng, before = random.Random(8), apart(forecaster)
    for number in range(100):
        long = number % 2 == 0
        forecaster.learn(lesson(ruled(rng, long=long), 1500 if long else 15))
    assert apart(forecaster) > before + 1.0
    short = [forecaster.forecast(ruled(rng, long=long)).p_short for long in (True, False)]
    assert short[1] > short[0] + 0.3


def test_correction_is_forgotten_with_the_rest(
    forecaster: LearningForecaster, artefacts: Artefacts
) -> None:
    """Told to forget, the gateway forgets the order, too; a refit that leaves the full model
    as it is does not cost it."""
    before = apart(forecaster)
    for row in ruled_rows(artefacts, 300):
        forecaster.remember(row)
    forecaster.adopt(artefacts)
    assert apart(forecaster) > before + 1.0
    forecaster.forget()
    assert apart(forecaster) == pytest.approx(before)


def test_cut_answers_teach_the_correction_no_shortness(forecaster: LearningForecaster) -> None:
    """Answers cut below what was forecast say "not short" where they passed 64 tokens, and
    nothing else."""
    rng = random.Random(9)
    seen = [ruled(rng, long=True) for _ in range(60)]
    before = [forecaster.forecast(one) for one in seen[:10]]
    for one in seen[10:]:
        forecaster.learn(lesson(one, 70, censored=True))
    after = [forecaster.forecast(one) for one in seen[:10]]
    assert all(b.p_short <= a.p_short + 1e-9 for a, b in zip(before, after, strict=True))
    assert all(b.p50 >= a.p50 - 1e-6 for a, b in zip(before, after, strict=True))
