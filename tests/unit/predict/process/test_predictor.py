"""The predictor's public methods: stage 0 at once, the rest by the child."""

from __future__ import annotations

import asyncio

import pytest

from gateway.predict.process.predictor import Predictor
from gateway.predict.process.wire import ChildAnswer, Question, TakeLessons
from gateway.predict.prompt_view import PromptView
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.types import Rung
from tests.unit.predict.process.inline_child import (
    POEM,
    Children,
    InlineChild,
    Mailbox,
    Make,
    all_learned,
    always,
    holding,
    learned,
    lesson,
    refined,
    text_of,
    until,
    view,
)

pytestmark = pytest.mark.anyio


async def test_predictor_becomes_ready_and_refines(make: Make) -> None:
    """With the shipped artefacts a refinement comes back from the child."""
    predictor = make()
    workload = await refined(predictor, view())
    assert workload.rung is Rung.MODEL_ONLY
    shot = predictor.snapshot()
    assert (shot.ready, shot.state, shot.encoder) == (True, "ready", "minilm-l6-length-1")


async def test_stage0_answers_a_repeat_from_the_cache(make: Make) -> None:
    """A refined prompt is answered with its refinement; another limit or tenant is not."""
    predictor = make()
    workload = await refined(predictor, view())
    assert predictor.forecast(view()) == workload
    assert predictor.snapshot().cache_hits == 1
    predictor.forecast(view(max_tokens=7))
    predictor.forecast(view(tenant="b"))
    assert predictor.snapshot().cache_hits == 1


async def test_forecast_asked_for_before_a_reset_is_not_cached(make: Make) -> None:
    """A forecast made with what a reset has since forgotten is not cached."""
    children = Children()
    predictor = make(connect=children)
    await refined(predictor, view("barrier"))
    children.last.hold()
    late = Mailbox()
    assert predictor.refine(view(), late, always)
    await children.last.held.wait()
    predictor.reset_learned()
    children.last.release()
    await late.wait()
    predictor.forecast(view())
    assert predictor.snapshot().cache_hits == 0


async def test_repeat_learned_before_a_reset_is_not_cached(make: Make) -> None:
    """A reset that comes while a forecast is made, just before a report is taken: the forecasts
    that the report has ready are of what the reset forgets."""

    class Reset(InlineChild):
        taught = False

        async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
            answer = await super().ask(question, timeout_s)
            if isinstance(question, TakeLessons) and question.lessons and self.taught:
                assert predictor.refine(view("another"), late, always)
            if "another" in text_of(question):
                await asyncio.sleep(0.05)  # ten ticks: what was taken in is learned, and reported
                predictor.reset_learned()
            return answer

    children, late = Children(Reset), Mailbox()
    predictor = make(connect=children)
    await learned(predictor, 2500)
    assert isinstance(children.last, Reset)
    children.last.taught = True
    assert predictor.learn(lesson(2500))
    await late.wait()
    await until(lambda: predictor.snapshot().index_rows == 0)
    predictor.forecast(view())
    assert predictor.snapshot().cache_hits == 0


async def test_predictor_refuses_when_a_queue_is_full(make: Make) -> None:
    """Beyond its bound a queue drops its oldest forecast, or refuses, and counts what it lost."""
    children = Children()
    predictor = make(Predict(queue_items=2, learn_items=1), connect=children)
    await refined(predictor, view())
    await holding(predictor, children.last)
    mailbox = Mailbox()
    assert [predictor.refine(view(), mailbox, always) for _ in range(3)] == [True] * 3
    assert [predictor.learn(lesson(9)) for _ in range(2)] == [True, False]
    shot = predictor.snapshot()
    assert (shot.forecast_queue, shot.learn_queue) == (2, 1)
    assert (shot.dropped_full, shot.learn_lost) == (1, 1)
    children.last.release()
    await mailbox.wait(2)


async def test_predictor_forecasts_before_start_and_after_stop(make: Make) -> None:
    """Without its task there is a forecast; refining and learning are refused."""
    idle = Predictor(Predict(), shipped("models"), connect=Children())
    assert idle.forecast(view()).rung is Rung.HEURISTIC
    assert idle.snapshot().state == "starting"
    assert not idle.learn(lesson(9))
    predictor = make()
    await refined(predictor, view())
    await predictor.stop(10)
    assert predictor.forecast(view("another")).rung is Rung.MODEL_ONLY
    assert not predictor.refine(view(), lambda _: None, always)
    assert not predictor.learn(lesson(9))
    shot = predictor.snapshot()
    assert not shot.ready
    assert shot.state == "degraded: the predictor has ended"


async def test_predictor_disabled_is_off_and_cheap(make: Make) -> None:
    """With enabled = false there are heuristics, no child, and nothing learned or lost."""
    children = Children()
    predictor = make(Predict(enabled=False), connect=children)
    assert predictor.forecast(view()).rung is Rung.HEURISTIC
    assert not predictor.refine(view(), lambda _: None, always)
    assert not predictor.learn(lesson(9))
    shot = predictor.snapshot()
    assert (shot.state, shot.ready, shot.dropped_full, shot.learn_lost) == ("off", False, 0, 0)
    assert children.made == []


async def test_reset_learned_forgets_everything_learned(make: Make) -> None:
    """Index, calibration and cache are empty; the forecast is the untaught one."""
    predictor = make()
    before = await refined(predictor, view())
    await all_learned(predictor, 3000, [POEM] * 3)
    predictor.reset_learned()
    assert predictor.forecast(view()).rung is Rung.MODEL_ONLY
    assert predictor.forecast(view()).p50 < 1000
    assert await refined(predictor, view()) == before
    assert predictor.snapshot().index_rows == 0


@pytest.mark.parametrize(
    "text", ["", " ", "x" * 1_000_000, "\x00\xff", "\ud800", "😀" * 3000, "请写一首诗" * 1000]
)
async def test_predictor_takes_any_text(make: Make, text: str) -> None:
    """Empty, huge, binary, surrogates, emoji, Chinese: all are forecast, refined and learned."""
    predictor = make()
    seen = view(text)
    await refined(predictor, seen)
    await learned(predictor, 10, view=seen)
    assert predictor.snapshot().learn_lost == 0
    assert predictor.forecast(seen).p50 >= 0
    assert predictor.snapshot().ready


async def test_forecast_never_raises(make: Make) -> None:
    """Even a view of wrong types gets a forecast."""
    predictor = make()
    await refined(predictor, view())
    broken = PromptView(tenant="a", model="m", text=None)  # type: ignore[arg-type]
    assert predictor.forecast(broken).rung is Rung.HEURISTIC


async def test_snapshot_counts_forecasts_by_rung(make: Make) -> None:
    """Each forecast given, of either stage, is counted under its rung."""
    predictor = make()
    await refined(predictor, view())
    predictor.forecast(view("one"))
    predictor.forecast(view("two"))
    shot = predictor.snapshot()
    assert shot.forecasts[Rung.MODEL_ONLY] == 3
    assert set(shot.forecasts) == set(Rung)


async def test_profile_has_typical_length_and_price(make: Make) -> None:
    """A model's profile has its typical length, and a price where one is known."""
    predictor = make()
    await refined(predictor, view())
    profile = predictor.profile("m")
    assert profile["typical_output_tokens"] is not None
    assert profile["usd_per_million_output_tokens"] is None
