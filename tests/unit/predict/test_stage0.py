"""Stage 0's forecast of thousands of requests, against its formulas."""

from __future__ import annotations

import random
from math import exp, log1p, nan
from typing import Any, NamedTuple

import numpy as np
import pytest

from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import Calibration, group_keys
from gateway.predict.features import CHINESE, NAMES, WORD_GROUPS
from gateway.predict.prompt_view import PromptView, prompt_key, template_key
from gateway.predict.refit.fitting import predicted
from gateway.predict.residuals import Residuals
from gateway.predict.stage0 import Stage0
from gateway.settings.schema import Predict
from gateway.types import JobClass, Workload
from tests.unit.predict import formulas

KEY = b"a key of stage 0"
REQUESTS = 2000
GROUPED = tuple(sorted({word for _, group in WORD_GROUPS for word in group}))
PIECES = """300 words,2-sentence 1,500-word 5 pages 800字 ٣words 三 page word 12 7 写 一首 诗
 翻译 é 😀 привет {x} f(x)=1; #include http://x ``` $5 "quoted" ? ： ？ 。 ， . , ; (A) YES"""
ODD = (*PIECES.split(), "\nA", "\nB", "\n- item", "\n* item", "\x00", "\u3000", "\n", "\ud800")
POOLS = (GROUPED, ODD, GROUPED + ODD, CHINESE + ODD)
LENGTHS = (0, 1, 3, 10, 40, 400)
MODELS = ("gpt-4o", "gpt-9", "openai/gpt-5.4-mini", "m", "Qwen2.5", "claude-3.5", "")


class Seen(NamedTuple):
    """One request: its view, what the code makes of it, and what the formulas say."""

    view: PromptView
    row: list[float]
    formula: list[float]
    forecast: Workload


def text(chance: random.Random) -> str:
    words = chance.choices(chance.choice(POOLS), k=chance.choice(LENGTHS))
    return chance.choice((" ", " ", "", "\n")).join(words)


def request(chance: random.Random) -> PromptView:
    """A request with any of the members that stage 0 reads."""
    messages = [("system", text(chance))] if chance.random() < 0.4 else []
    for _ in range(chance.choice((0, 0, 0, 1, 3))):
        messages += [("user", text(chance)), ("assistant", text(chance))]
    messages += [("tool", text(chance))] if chance.random() < 0.2 else []
    messages.append(("user", text(chance)))
    values: dict[str, tuple[Any, ...]] = {
        "max_tokens": (1, 20, 64, 65, 1000),
        "n": (1, 3),
        "best_of": (4,),
        "stop": (True,),
        "temperature": (0.0, 0.7),
        "reasoning_effort": ("low", "high", "odd"),
        "thinking": (True, False),
        "thinking_budget": (0, 100),
        "tools": (2,),
        "tool_names": (("f1", "g2"),),
        "tools_bytes": (150,),
        "response_format": ("json_object", "json_schema", "text"),
        "shape": ("5a",),
        "form": ("6b",),
        "verbosity": ("low",),
    }
    some = chance.sample(sorted(values), chance.choice((0, 0, 1, 2, 8)))
    return PromptView.of_chat(
        [{"role": role, "content": content} for role, content in messages],
        tenant=chance.choice("ab"),
        model=chance.choice(MODELS),
        **{name: chance.choice(values[name]) for name in some},
    )


def learned(views: list[PromptView]) -> Calibration:
    """Residuals taught by some answers to the first of the requests."""
    residuals, chance = Residuals(), random.Random(2)
    for view in views[:200]:
        keys = group_keys(view.model, view.tenant, template_key(view, KEY))
        length, kind = chance.uniform(1, 8), chance.choice((JobClass.INTERACTIVE, JobClass.HEAVY))
        residuals.learn(keys, length, stage0=chance.uniform(1, 8), full=None, censored=False)
        missed = chance.random() < 0.8, chance.random() < 0.4
        residuals.move_levels("stage0", kind, missed, censored=False, keys=keys)
    return residuals.table


@pytest.fixture(scope="module")
def table() -> Calibration:
    """The calibration in force."""
    chance = random.Random(1)
    return learned([request(chance) for _ in range(REQUESTS)])


@pytest.fixture(scope="module")
def seen(artefacts: Artefacts, table: Calibration) -> list[Seen]:
    """Every request with its features and its forecast."""
    chance, stage0, tables = random.Random(1), Stage0(Predict(), {}, KEY), artefacts.tables
    assert tables is not None
    stage0.take(artefacts.stage0(), tables, table)
    found = []
    for _ in range(REQUESTS):
        view = request(chance)
        template = template_key(view, KEY)
        known = table.running(group_keys(view.model, view.tenant, template))
        running = formulas.running(table, formulas.groups(view, template))
        means = formulas.model_mean(view.model, tables), nan
        found.append(
            Seen(
                view,
                tables.features_of(view, known),
                formulas.features(view, *means, running),
                stage0.forecast(view),
            )
        )
    return found


def test_requests_differ(seen: list[Seen]) -> None:
    """Each feature that a request can have takes several values, or the rest would show little."""
    columns = np.array([one.formula for one in seen])
    constant = [name for name, own in zip(NAMES, columns.T, strict=True) if len(set(own)) < 2]
    assert [name for name in constant if name != "task_mean"] == []


def test_features_are_those_of_the_formulas(seen: list[Seen]) -> None:
    """Every feature of every request is what its definition says."""
    for one in seen:
        pairs = zip(NAMES, one.row, one.formula, strict=True)
        assert [name for name, a, b in pairs if not formulas.alike([a], [b])] == []


def test_keys_are_those_of_the_formulas(seen: list[Seen]) -> None:
    """Both hashes stay what they were: rows of history are found by them."""
    for one in seen:
        assert prompt_key(one.view, KEY) == formulas.prompt_key(one.view, KEY)
        assert template_key(one.view, KEY) == formulas.template_key(one.view, KEY)


def test_forecasts_are_those_of_the_formulas(
    seen: list[Seen], artefacts: Artefacts, table: Calibration
) -> None:
    """The grid of every request is: boosters and table, bias, levels of its class, limit."""
    texts, tables = artefacts.texts[0], artefacts.tables
    assert texts is not None
    assert tables is not None
    rows = np.array([one.formula for one in seen])[:, : tables.width]
    centres = predicted(texts.location, rows)
    scales = np.clip(predicted(texts.scale, rows), -3.0, 1.5)
    moved = 0
    for one, centre, scale in zip(seen, centres.tolist(), scales.tolist(), strict=True):
        keys = formulas.groups(one.view, formulas.template_key(one.view, KEY))
        plain = formulas.grid(centre, scale, tables.stage0)
        grid = formulas.rising([value + formulas.mean(table, keys, 0) for value in plain])
        short = formulas.at_most(grid, log1p(64)) >= 0.3
        kind = JobClass.INTERACTIVE if short else JobClass.HEAVY
        levels = table.levels_of("stage0", kind, group_keys("", one.view.tenant))
        grid = formulas.levelled(grid, levels.median, levels.high)
        moved += grid != plain
        found, wanted = one.forecast, formulas.tokens(grid, one.view.max_tokens)
        assert formulas.alike(found.grid, wanted)
        chance = 1.0 if wanted[-1] <= 64 else min(formulas.at_most(grid, log1p(64)), 0.997)
        assert found.p_short == pytest.approx(chance, abs=1e-6)
        cut = [log1p(value) for value in wanted]
        risk = 1.0 - formulas.at_most(cut, log1p(2 * wanted[3]))
        assert found.risk == pytest.approx(risk, abs=1e-6)
        assert found.confidence == pytest.approx(exp((cut[1] - cut[5]) / (2 * 1.2816)))
    assert moved > REQUESTS / 2
