"""Learning from answers, and the row that is stored of each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from math import log1p

import pytest
from msgspec import structs

from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import group_keys
from gateway.predict.prompt_view import PromptView
from gateway.predict.teaching import LearningForecaster
from gateway.settings.schema import Predict
from gateway.types import HistoryRow, Rung
from tests.kit.length import short_or_long
from tests.unit.predict.lessons import PROMPT, lesson, view
from tests.unit.predict.rows import WORDS, digits, ruled_rows

COUNT = short_or_long(800, 1200)  # answers of a steady source


def test_learning_calibrates_a_model_the_boosters_do_not_know(
    forecaster: LearningForecaster,
) -> None:
    """A model that answers ten times longer is forecast longer, also on unseen prompts."""
    before = forecaster.forecast(view("Name three rivers", model="verbose")).p50
    for i in range(60):
        seen = view(f"Topic number {i}: tell me about the year {1900 + i}", model="verbose")
        forecaster.learn(lesson(seen, 4000))
    assert forecaster.calibration.stage0_bias(group_keys("verbose", "a")) > 0.5
    assert forecaster.forecast(view("Name three rivers", model="verbose")).p50 > 1.5 * before


def test_learned_row_holds_what_history_needs_and_no_text(forecaster: LearningForecaster) -> None:
    """The row has the vector, hash, lengths and flags, and not the prompt."""
    seen = view("A secret prompt", task_type="qa", max_tokens=50)
    row = forecaster.learn(lesson(seen, 5000, prompt_tokens=7, censored=True))
    assert (row.tenant, row.model, row.task_type, row.max_tokens) == ("a", "m", "qa", 50)
    assert (row.output_tokens, row.prompt_tokens, row.censored) == (5000, 7, True)
    assert (len(row.vector), len(row.prompt_key)) == (768, 16)
    assert "secret" not in repr(row)


def test_draft_is_the_row_and_teaches_nothing(forecaster: LearningForecaster) -> None:
    """A draft is the row that learning would give; index, calibration and forecasts stay
    the same."""
    before, table = forecaster.forecast(view()), forecaster.calibration
    taught = lesson(view(), 2500, prompt_tokens=40)
    row = forecaster.draft(taught)
    assert (forecaster.rows, forecaster.calibration) == (0, table)
    assert forecaster.forecast(view()) == before
    assert forecaster.learn(taught) == row
    assert forecaster.forecast(view()) != before


def test_lesson_s_counts_alone_move_the_running_means(forecaster: LearningForecaster) -> None:
    """Without a forecast of it, an answer still teaches its length and its tokens, as a whole
    lesson does; the residuals and the index stay."""
    seen = view("Tell me of a thing never read, at some length and with care")
    keys = group_keys(seen.model, seen.tenant)
    forecaster.learn_counts(lesson(seen, 2500, prompt_tokens=40))
    table = forecaster.calibration
    assert table.running(keys)[0] == pytest.approx(log1p(2500))
    assert table.tokens_per_byte(seen.model, seen.tenant, seen.script) != 0.25
    assert (table.stage0_bias(keys), forecaster.rows) == (0.0, 0)


@pytest.mark.parametrize(
    "more", [{"running": True}, {"censored": True}, {"success": False, "censored": False}]
)
def test_lesson_s_counts_alone_are_lower_bounds_where_they_are_in_lessons(
    forecaster: LearningForecaster, more: dict[str, bool]
) -> None:
    """A running, cut or failed answer does not lower a mean, whole or by its counts alone."""
    forecaster.learn_counts(lesson(view(), 2500))
    keys = group_keys(view().model, view().tenant)
    before = forecaster.calibration.running(keys)
    forecaster.learn_counts(lesson(view(), 3, **more))
    assert forecaster.calibration.running(keys) == before


def test_learned_row_estimates_prompt_tokens_that_were_not_counted(
    forecaster: LearningForecaster,
) -> None:
    """Without the provider's count the row has the estimate."""
    row = forecaster.learn(lesson(view(), 10))
    assert row.prompt_tokens == view().prompt_tokens


@pytest.mark.parametrize(("tokens", "success", "rows"), [(0, True, 0), (9, False, 0), (9, True, 1)])
def test_learning_skips_lengths_that_mean_nothing(
    forecaster: LearningForecaster, tokens: int, success: bool, rows: int
) -> None:
    """Empty and failed answers become history, but no neighbours."""
    forecaster.learn(lesson(view(), tokens, success=success))
    assert forecaster.rows == rows


def test_remembered_rows_forecast_like_learned_ones(
    forecaster: LearningForecaster, artefacts: Artefacts
) -> None:
    """An index filled from history forecasts like the one that learned the rows."""
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


def test_private_tenant_helps_itself_alone(artefacts: Artefacts) -> None:
    """A private tenant's rows are neighbours of its own prompts only, and are stored as
    unshared."""
    forecaster = LearningForecaster(Predict(), artefacts, b"key", {}, private={"secret"})
    before = forecaster.forecast(view(tenant="other"))
    rows = [forecaster.learn(lesson(view(tenant="secret"), 4000)) for _ in range(6)]
    assert not any(row.shared for row in rows)
    assert forecaster.forecast(view(tenant="secret")).rung is Rung.TENANT_NEIGHBORS
    assert forecaster.forecast(view(tenant="other")) == before
    # A tenant that is private no longer: its old rows stay unshared.
    later = LearningForecaster(Predict(), artefacts, b"key", {})
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
    """Cut, failed and running answers of three tokens leave a long forecast where it was; complete
    answers of three tokens do not."""
    for i in range(8):
        forecaster.learn(lesson(view(), 1500 + i))
    before = forecaster.forecast(view())
    bound = {"censored": True, "success": kind == "cut", "running": kind == "running"}
    for _ in range(30):
        forecaster.learn(lesson(view(), 3, **bound))
    after = forecaster.forecast(view())
    assert after.p50 >= before.p50 * 0.9  # the boosters read fewer exact rows
    assert after.p90 >= before.p90 * 0.9
    for _ in range(30):
        forecaster.learn(lesson(view(), 3))
    assert forecaster.forecast(view()).p50 < before.p50 / 5


def test_running_answers_past_their_forecast_raise_it(forecaster: LearningForecaster) -> None:
    """Tokens of answers that still run count as lower bounds and are no history."""
    before = forecaster.forecast(view("Name three rivers", model="endless")).p50
    for i in range(60):
        seen = view(f"Topic number {i}: about the year {1900 + i}", model="endless")
        forecaster.learn(lesson(seen, 5000, censored=True, success=False, running=True))
    assert forecaster.rows == 0
    assert forecaster.forecast(view("Name three rivers", model="endless")).p50 > 1.5 * before


def test_prompt_tokens_follow_the_provider_s_counts(forecaster: LearningForecaster) -> None:
    """Forecast and rows follow a provider that counts twice as many tokens a byte."""
    seen = view("word " * 300)
    before = forecaster.forecast(seen).prompt_tokens
    for i in range(60):
        counted = view(f"{i} " + "term " * 300)
        forecaster.learn(lesson(counted, 50, prompt_tokens=2 * counted.prompt_tokens))
    assert forecaster.forecast(seen).prompt_tokens > 1.6 * before
    assert forecaster.learn(lesson(seen, 50)).prompt_tokens > 1.6 * before


def test_text_is_stored_only_with_keep_text(forecaster: LearningForecaster) -> None:
    """keep_text = true puts the last user text into the row, and false does not."""
    assert forecaster.learn(lesson(view(), 50)).text == ""
    forecaster.configure(Predict(keep_text=True))
    assert forecaster.learn(lesson(view(), 50)).text == PROMPT


def test_calibration_survives_a_restart(
    forecaster: LearningForecaster, artefacts: Artefacts
) -> None:
    """A dumped calibration is restored by the next process."""
    for i in range(60):
        forecaster.learn(lesson(view(f"Topic {i}", model="verbose"), 4000))
    other = LearningForecaster(Predict(), artefacts, b"key", {})
    assert other.residuals.restore(forecaster.calibration.dump())
    assert other.calibration == forecaster.calibration


def stream(rng: random.Random, count: int, scale: float) -> Iterator[tuple[PromptView, int]]:
    """Requests of one application: length by topic, log-normal scatter, times `scale`."""
    topics = {"river": 60, "parser": 400, "history of the town": 900, "poem about rain": 150}
    for _ in range(count):
        topic, typical = rng.choice(list(topics.items()))
        text = f"Tell me about the {topic}, case {rng.randrange(10**6)}"
        yield view(text, tenant="app"), round(scale * typical * rng.lognormvariate(0, 0.5))


def test_coverage_holds_after_a_source_doubles_its_lengths(artefacts: Artefacts) -> None:
    """Of 300 answers of twice the length the last 200 lie below p90 in at least 0.85; without
    learning from them they do not."""
    rng, settings = random.Random(5), Predict()
    forecaster, untaught = (LearningForecaster(settings, artefacts, b"key", {}) for _ in range(2))
    for seen, tokens in stream(rng, short_or_long(300, 600), 1.0):
        untaught.remember(forecaster.learn(lesson(seen, tokens)))
    covered: list[bool] = []
    unlearned: list[bool] = []
    for seen, tokens in stream(rng, 300, 2.0):
        covered.append(tokens <= forecaster.forecast(seen).p90)
        unlearned.append(tokens <= untaught.forecast(seen).p90)
        forecaster.learn(lesson(seen, tokens))
    assert sum(covered[100:]) / 200 >= 0.85
    assert sum(unlearned[100:]) / 200 < 0.8
    assert forecaster.residuals.drifts >= 1


def test_coverage_holds_while_nothing_changes(artefacts: Artefacts) -> None:
    """The p90 of a steady source covers 0.9 of its answers."""
    rng, forecaster = random.Random(6), LearningForecaster(Predict(), artefacts, b"key", {})
    covered = []
    for seen, tokens in stream(rng, COUNT, 1.0):
        covered.append(tokens <= forecaster.forecast(seen).p90)
        forecaster.learn(lesson(seen, tokens))
    assert sum(covered[200:]) / (COUNT - 200) == pytest.approx(0.9, abs=0.03)


def ruled(rng: random.Random, *, long: bool) -> PromptView:
    """A prompt of an application in which digits get long answers."""
    count = rng.randrange(5, 30)
    words = [digits(rng) if long else rng.choice(WORDS) for _ in range(count)]
    return view(" ".join(words), model="m-1")


def apart(forecaster: LearningForecaster) -> float:
    """The log tokens by which prompts of digits are forecast longer than others."""
    rng = random.Random(7)
    logs = [
        sum(log1p(forecaster.forecast(ruled(rng, long=long)).p50) for _ in range(20)) / 20
        for long in (True, False)
    ]
    return logs[0] - logs[1]


def bare(row: HistoryRow) -> HistoryRow:
    """The row as stored without the inputs of the correction."""
    return structs.replace(row, features=b"", neighbours=b"")


def test_correction_is_learned_again_from_history(
    forecaster: LearningForecaster, artefacts: Artefacts
) -> None:
    """A start on stored rows restores the order inside a tenant's source; rows without the inputs
    restore none."""
    without = LearningForecaster(Predict(), artefacts, b"key", {})
    for row in ruled_rows(artefacts, 400):
        assert forecaster.remember(row)
        assert without.remember(bare(row))
    assert apart(forecaster) > apart(without) + 1.0


def test_correction_learns_the_order_inside_a_source(forecaster: LearningForecaster) -> None:
    """A hundred answers teach an order that the shipped models lack, in length and in P(short)."""
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
    """`forget` drops the correction; a refit that leaves the full model as it is does not."""
    before = apart(forecaster)
    for row in ruled_rows(artefacts, 300):
        forecaster.remember(row)
    forecaster.adopt(artefacts)
    assert apart(forecaster) > before + 1.0
    forecaster.forget()
    assert apart(forecaster) == pytest.approx(before)


def test_cut_answers_teach_the_correction_no_shortness(forecaster: LearningForecaster) -> None:
    """Cut answers of 70 tokens teach that an answer was not short, and nothing else."""
    rng = random.Random(9)
    seen = [ruled(rng, long=True) for _ in range(60)]
    before = [forecaster.forecast(one) for one in seen[:10]]
    for one in seen[10:]:
        forecaster.learn(lesson(one, 70, censored=True))
    after = [forecaster.forecast(one) for one in seen[:10]]
    assert all(b.p_short <= a.p_short + 1e-9 for a, b in zip(before, after, strict=True))
    assert all(b.p50 >= a.p50 - 1e-6 for a, b in zip(before, after, strict=True))
