"""Variants: the serving predictor with parts hidden, and baselines that do what they say."""

from __future__ import annotations

from math import isnan, log1p, nan

import numpy as np
import pytest

from gateway.predict.artefacts import Artefacts
from gateway.predict.features import NAMES
from gateway.predict.lengths import LengthModel
from gateway.predict.quantiles import NEIGHBOUR_NAMES, Grid
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.types import Rung
from gateway.workbench.evaluate import variants
from gateway.workbench.evaluate.judged_rows import Case
from gateway.workbench.evaluate.vectors import Prompt, PromptVector, RecordedEncoder, prompt_key
from tests.unit.workbench.evaluate_cases import case

SETTINGS = Predict()


@pytest.fixture(scope="module")
def artefacts() -> Artefacts:
    """The shipped artefacts with made-up vectors for `case(0) … case(39)`."""
    parts = Artefacts(shipped("models"), SETTINGS.embedding_model_name, 64)
    chance = np.random.default_rng(5)
    vectors: dict[bytes, PromptVector] = {}
    for seq in range(40):
        vector = chance.normal(size=384).astype(np.float32)
        vector /= np.linalg.norm(vector)
        code = chance.normal(size=64).astype(np.float32)
        vectors[prompt_key(Prompt(f"prompt {seq}"))] = PromptVector(vector, 0.0, code)
    parts.encoder = RecordedEncoder(vectors, 384, 64)
    return parts


def made(name: str, artefacts: Artefacts, *, has_text: bool = True) -> variants.CaseForecaster:
    return variants.forecaster(name, SETTINGS, artefacts, has_text=has_text)


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_every_variant_forecasts_and_learns(name: str, artefacts: Artefacts) -> None:
    """A variant takes any case and gives a grid in order."""
    by = made(name, artefacts)
    for seq in range(12):
        result = by.forecast(case(seq))
        assert list(result.grid) == sorted(result.grid)
        by.learn(case(seq, 20 + 40 * seq))


def test_families_cover_every_feature() -> None:
    """No feature is without a family: a new one must be put into one of them."""
    assert "other" not in variants.FAMILIES
    assert {variants.family(name) for name in NAMES} < set(variants.FAMILIES)
    assert {variants.family(name) for name in NEIGHBOUR_NAMES} == {"neighbours"}
    assert variants.family("a_new_feature") == "other"


class Spy(LengthModel):
    """A length model that keeps the last row it was shown."""

    def __init__(self) -> None:
        self.row: list[float] = []

    def grid(self, row: list[float], head: Grid | None = None) -> Grid:
        self.row = row
        return (1.0,) * 7


def test_hidden_columns_are_nan_and_others_are_not() -> None:
    """The boosters get NaN in the family's columns and the others unchanged."""
    spy = Spy()
    hidden = variants.MaskedModel(spy, lambda name: variants.family(name) == "vector")
    width = len(NAMES) + 32 + len(NEIGHBOUR_NAMES)
    given = [float(i) for i in range(width)]
    hidden.grid(given)
    gone = [i for i, value in enumerate(spy.row) if isnan(value)]
    assert gone == list(range(len(NAMES), len(NAMES) + 32))
    assert [v for v in spy.row if not isnan(v)] == [v for i, v in enumerate(given) if i not in gone]
    assert not any(map(isnan, given))


def test_static_learns_nothing_and_full_does(artefacts: Artefacts) -> None:
    """A hundred answers to one prompt move the full forecast and leave the static one."""
    for name, moves in (("static", False), ("full", True), ("knn", True), ("stage0", True)):
        by = made(name, artefacts)
        before = by.forecast(case(0)).p50
        for _ in range(100):
            by.learn(case(0, 3000))
        after = by.forecast(case(0)).p50
        assert (abs(after - before) > 50) is moves, name


def test_without_neighbours_no_forecast_is_theirs(artefacts: Artefacts) -> None:
    """A repeated prompt names the rung with neighbours, and does not without them."""
    rungs = {}
    for name in ("full", "without_neighbours"):
        by = made(name, artefacts)
        for _ in range(10):
            by.learn(case(0, 3000))
        rungs[name] = by.forecast(case(0)).rung
    assert rungs == {"full": Rung.TENANT_NEIGHBORS, "without_neighbours": Rung.MODEL_ONLY}


def test_sources_are_tenants_only_in_their_variant(artefacts: Artefacts) -> None:
    """A prompt of another source is a tenant's neighbour only where sources are one tenant."""
    rungs = {}
    for name in ("full", "full_tenants"):
        by = made(name, artefacts)
        for _ in range(10):
            by.learn(case(0, 300, source="left"))
        rungs[name] = by.forecast(case(0, source="right")).rung
    assert rungs == {"full": Rung.TENANT_NEIGHBORS, "full_tenants": Rung.GLOBAL_NEIGHBORS}


def test_without_text_only_model_and_limits_count(artefacts: Artefacts) -> None:
    """In a history the stand-in text changes no forecast; with texts another text does."""
    other = case(0, view=case(1).view)
    model = case(0).view.model
    same = case(0, view=type(other.view)(tenant="t", model=model, text="prompt 1", text_chars=9000))
    blind = made("stage0", artefacts, has_text=False)
    assert blind.forecast(case(0)).grid == blind.forecast(same).grid
    seeing = made("stage0", artefacts)
    assert seeing.forecast(case(0)).grid != seeing.forecast(same).grid


def test_knn_reads_neighbours_alone() -> None:
    """The neighbours' quantiles make the grid; without any it is the mean with its spread."""
    model = variants.NeighboursOnly(log1p(200))
    row = [nan] * (len(NAMES) + 32 + len(NEIGHBOUR_NAMES))
    nothing = model.grid(row)
    assert nothing[3] == pytest.approx(log1p(200))
    start = len(NAMES) + 32
    for name, value in (("nn_p10", 2.0), ("nn_p50", 3.0), ("nn_p90", 4.0)):
        row[start + NEIGHBOUR_NAMES.index(name)] = value
    found = model.grid(row)
    assert found[3] == pytest.approx(3.0)
    assert found[5] - found[1] < nothing[5] - nothing[1]


def test_baselines_do_what_they_say(artefacts: Artefacts) -> None:
    """The constant is one length, the rule has three, the oracle is the truth, the model's mean is
    learned."""
    cases = [case(i, 10 * i + 5) for i in range(9)]
    constant, oracle = made("constant", artefacts), made("oracle", artefacts)
    assert len({constant.forecast(c).p50 for c in cases}) == 1
    assert [oracle.forecast(c).p50 for c in cases] == pytest.approx(
        [float(c.output_tokens) for c in cases]
    )
    rule = made("llmd_rule", artefacts)
    flags = (case(1, thinking=True, has_tools=True), case(1, has_tools=True), case(1))
    assert [rule.forecast(c).p50 for c in flags] == pytest.approx([4096, 100, 1000])
    means = made("model_mean", artefacts)
    for _ in range(500):
        means.learn(case(0, 30))
        means.learn(case(1, 900))
    assert means.forecast(case(0)).p50 == pytest.approx(30, rel=0.1)
    assert means.forecast(case(1)).p50 == pytest.approx(900, rel=0.1)


def test_prompt_length_learns_a_slope(artefacts: Artefacts) -> None:
    """The line rises where longer prompts have longer answers, and falls where not."""

    def wanted(size: int, tokens: int) -> Case:
        return case(0, tokens, view=type(case(0).view)(tenant="t", model="m", text="", chars=size))

    for factor in (2.0, 0.5):
        line = made("prompt_length", artefacts)
        for power in range(200):
            step = power % 6
            line.learn(wanted(50 * 2**step, round(100 * factor**step)))
        ends = [line.forecast(wanted(50 * 2**step, 1)).p50 for step in (0, 5)]
        assert ends == pytest.approx([100, 100 * factor**5], rel=0.2)
