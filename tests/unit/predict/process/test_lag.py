"""The event loop beside a predictor that has all it can do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from gateway.predict.process.backend import Local, Setup
from gateway.predict.process.predictor import Predictor
from gateway.predict.process.remote import Remote
from gateway.predict.view import PromptView
from gateway.settings.schema import Predict
from gateway.shipped import own_command, own_environ, shipped
from tests.unit.predict.process.asking import always, refined, view

PERIOD_S = 0.01
ROUNDS = 30
EACH = 4  # forecasts a round: four hundred a second, more than a core does
WORDS = "why is it larger than what came before, and what does that say of the next one? " * 4
LATE_S = 0.012  # a third of what four forecasts take, and more than a busy machine's own
TRIES = 3
NUMBERS = count()

Ask = Callable[[PromptView], object]


@pytest.fixture(scope="module")
def predictor() -> Iterator[Predictor]:
    predictor = Predictor(
        Predict(),
        shipped("models"),
        key=b"key",
        open_backend=lambda setup: Remote(own_command("predictor"), setup, own_environ()),
    )
    predictor.start()
    refined(predictor, view())
    yield predictor
    predictor.stop(10)


async def lateness_s(ask: Ask) -> float:
    """How late the loop typically was for a timer, while forecasts were asked for on it."""
    late, due_s = [], time.perf_counter()
    for _ in range(ROUNDS):
        due_s += PERIOD_S
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        late.append(max(0.0, time.perf_counter() - due_s))
        due_s = max(due_s, time.perf_counter() - PERIOD_S)  # each round answers for itself
        for _ in range(EACH):
            ask(view(f"Number {next(NUMBERS)}: {WORDS}"))  # never one that is cached
    return sorted(late)[ROUNDS // 2]


def least_lateness_s(ask: Ask) -> float:
    """Of a few tries, as soon as one is within the bound: others' work makes a loop late, too."""
    least_s = float("inf")
    for _ in range(TRIES):
        least_s = min(least_s, asyncio.run(lateness_s(ask)))
        if least_s < LATE_S:
            break
    return least_s


def test_loop_is_on_time_under_full_prediction_load(predictor: Predictor) -> None:
    """Twice as many forecasts as there is room for, stage 0's on the loop: it keeps its time."""
    taken = 0

    def ask(seen: PromptView) -> None:
        nonlocal taken
        predictor.forecast(seen)
        taken += predictor.refine(seen, lambda _: None, always)

    assert least_lateness_s(ask) < LATE_S
    assert taken > ROUNDS


def test_loop_that_runs_the_encoder_itself_is_late() -> None:
    """The twin: the same forecasts made on the loop break the same bound."""
    local = Local(Setup(Predict(), str(shipped("models")), b"key", {}, frozenset()))
    assert least_lateness_s(local.forecast) > LATE_S
