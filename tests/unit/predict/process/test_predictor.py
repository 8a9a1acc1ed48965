"""The predictor's face: stage 0 on the caller's thread, the rest asked of another."""

from __future__ import annotations

import pytest

from gateway.predict.process.predictor import Predictor
from gateway.predict.view import PromptView
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.types import Rung
from tests.unit.predict.process.asking import (
    Gate,
    Inbox,
    Make,
    always,
    learned,
    refined,
    view,
)


def test_predictor_becomes_ready_and_refines(make: Make) -> None:
    """With the shipped artefacts a refinement comes home from the thread."""
    predictor = make()
    found = refined(predictor, view())
    assert found.rung is Rung.MODEL_ONLY
    shot = predictor.snapshot()
    assert (shot.ready, shot.state, shot.encoder) == (True, "ready", "minilm-l6-length-1")


def test_stage0_answers_a_repeat_from_the_cache(make: Make) -> None:
    """A refined prompt is answered with its refinement, another limit or tenant is not."""
    predictor = make()
    found = refined(predictor, view())
    assert predictor.forecast(view()) == found
    assert predictor.snapshot().cache_hits == 1
    predictor.forecast(view(max_tokens=7))
    predictor.forecast(view(tenant="b"))
    assert predictor.snapshot().cache_hits == 1


def test_predictor_refuses_when_a_queue_is_full(make: Make) -> None:
    """Beyond its bound a queue says False at once, and counts what it lost."""
    predictor = make(Predict(queue_items=2, learn_items=1))
    gate = Gate(predictor)
    inbox = Inbox()
    assert [predictor.refine(view(), inbox, always) for _ in range(3)] == [True, True, False]
    told = {"prompt_tokens": 1, "censored": False, "success": True, "wall_s": 1.0}
    assert [predictor.learn(view(), output_tokens=9, **told) for _ in range(2)] == [True, False]
    shot = predictor.snapshot()
    assert (shot.forecast_queue, shot.learn_queue) == (2, 1)
    assert (shot.dropped_full, shot.learn_lost) == (1, 1)
    gate.open()
    inbox.wait(2)


def test_predictor_forecasts_before_start_and_after_stop(make: Make) -> None:
    """Without a thread there is a forecast; refining and learning say False."""
    idle = Predictor(Predict(), shipped("models"))
    assert idle.forecast(view()).rung is Rung.HEURISTIC
    assert idle.snapshot().state == "starting"
    predictor = make()
    refined(predictor, view())
    predictor.stop(10)
    assert predictor.forecast(view("another")).rung is Rung.MODEL_ONLY
    assert not predictor.refine(view(), lambda _: None, always)
    shot = predictor.snapshot()
    assert not shot.ready
    assert shot.state == "degraded: the predictor thread has ended"


def test_predictor_disabled_is_off_and_cheap(make: Make) -> None:
    """enabled = false: heuristics, no thread, nothing learned or lost."""
    predictor = make(Predict(enabled=False))
    assert predictor.forecast(view()).rung is Rung.HEURISTIC
    assert not predictor.refine(view(), lambda _: None, always)
    shot = predictor.snapshot()
    assert (shot.state, shot.ready, shot.dropped_full) == ("off", False, 0)


def test_reset_learned_forgets_everything_learned(make: Make) -> None:
    """Index, calibration and cache are empty; the forecast is the untaught one."""
    predictor = make()
    before = refined(predictor, view())
    for _ in range(3):
        learned(predictor, view(), 3000)
    predictor.reset_learned()
    assert predictor.forecast(view()).rung is Rung.MODEL_ONLY
    assert predictor.forecast(view()).p50 < 1000
    assert refined(predictor, view()) == before
    assert predictor.snapshot().index_rows == 0


@pytest.mark.parametrize(
    "text", ["", " ", "x" * 1_000_000, "\x00\xff", "\ud800", "😀" * 3000, "请写一首诗" * 1000]
)
def test_predictor_takes_any_text(make: Make, text: str) -> None:
    """Empty, huge, binary, surrogates, emoji, Chinese: stage 0, refine and learn answer."""
    predictor = make()
    seen = view(text)
    refined(predictor, seen)
    learned(predictor, seen, 10)
    assert predictor.forecast(seen).p50 >= 0
    assert predictor.snapshot().ready


def test_forecast_never_raises(make: Make) -> None:
    """Even a view of wrong types gets a forecast."""
    predictor = make()
    refined(predictor, view())
    broken = PromptView(tenant="a", model="m", text=None)  # type: ignore[arg-type]
    assert predictor.forecast(broken).rung is Rung.HEURISTIC


def test_snapshot_counts_forecasts_by_rung(make: Make) -> None:
    """Each forecast given, of either stage, is counted under its rung."""
    predictor = make()
    refined(predictor, view())
    predictor.forecast(view("one"))
    predictor.forecast(view("two"))
    shot = predictor.snapshot()
    assert shot.forecasts[Rung.MODEL_ONLY] == 3
    assert set(shot.forecasts) == set(Rung)


def test_profile_tells_typical_length_and_price(make: Make) -> None:
    """A model's profile has its typical length; a price where one is known."""
    predictor = make()
    refined(predictor, view())
    profile = predictor.profile("m")
    assert profile["typical_output_tokens"] is not None
    assert profile["usd_per_million_output_tokens"] is None
