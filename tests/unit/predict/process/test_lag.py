"""The event loop's lateness beside a predictor at full load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import count

import pytest

from gateway.predict.process.predictor import Predictor
from gateway.predict.process.wire import ChildSetup, MakeForecasts, OpenModels, encoded
from gateway.predict.process.worker import ModelHost
from gateway.predict.prompt_view import PromptView
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from tests.kit.length import short_or_long
from tests.unit.predict.process.inline_child import Shelf, always, lesson, real_child, refined, view

PERIOD_S = 0.01
ROUNDS = 30
EACH = 4  # forecasts a round: four hundred a second, more than a core does
WORDS = "why is it larger than what came before, and what does that say of the next one? " * 4
LATE_S = 0.012  # a third of what four forecasts take, and more than a busy machine's own
TRIES = 10  # for the rule; a loop that is on time takes one
TWIN_TRIES = short_or_long(1, 3)
NUMBERS = count()

Ask = Callable[[PromptView], object]


async def lateness_s(ask: Ask) -> float:
    """Typical lateness of the loop for a timer, in seconds, while forecasts are asked for on it."""
    late, due_s = [], time.perf_counter()
    for _ in range(ROUNDS):
        due_s += PERIOD_S
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        late.append(max(0.0, time.perf_counter() - due_s))
        due_s = max(due_s, time.perf_counter() - PERIOD_S)  # each round answers for itself
        for _ in range(EACH):
            ask(view(f"Number {next(NUMBERS)}: {WORDS}"))  # never one that is cached
    return sorted(late)[ROUNDS // 2]


async def least_lateness_s(ask: Ask, tries: int = TRIES) -> float:
    """Of a few tries, as soon as one is within the bound: others' work makes a loop late, too."""
    least_s = float("inf")
    for _ in range(tries):
        least_s = min(least_s, await lateness_s(ask))
        if least_s < LATE_S:
            break
    return least_s


@pytest.mark.anyio
async def test_loop_is_on_time_under_full_prediction_load() -> None:
    """The loop keeps its time with twice as many forecasts as there is room for, stage 0's on the
    loop, and as many lessons."""
    predictor = Predictor(Predict(), shipped("models"), key=b"key", connect=real_child)
    predictor.start()
    await refined(predictor, view())
    taken = 0

    def ask(seen: PromptView) -> None:
        nonlocal taken
        predictor.forecast(seen)
        predictor.learn(lesson(9, view=seen))
        taken += predictor.refine(seen, lambda _: None, always)

    try:
        assert await least_lateness_s(ask) < LATE_S
        assert taken > ROUNDS
    finally:
        await predictor.stop(0.1)


@pytest.mark.anyio
async def test_loop_that_runs_the_encoder_itself_is_late() -> None:
    """The twin: the same forecasts made on the loop break the same bound."""
    host = ModelHost(lambda: "normal", Shelf.at)
    setup = ChildSetup(Predict(), str(shipped("models")), b"key", {}, frozenset())
    host.answer(encoded(OpenModels(setup)))
    late_s = await least_lateness_s(
        lambda seen: host.answer(encoded(MakeForecasts([seen]))), TWIN_TRIES
    )
    assert late_s > LATE_S
