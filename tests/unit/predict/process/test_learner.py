"""The ways of a lesson: learned some time later, or stored and learned while somebody waits."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable

import pytest

from gateway.errors import Unavailable
from gateway.predict.process.background_learning import ROOM
from gateway.predict.process.child_client import ChildClient
from gateway.predict.process.learner import KEEP_EVERY
from gateway.predict.process.predictor import Predictor
from gateway.predict.process.wire import (
    ChildAnswer,
    ChildError,
    ChildGone,
    NotStored,
    Question,
    StoreLessons,
    TakeLessons,
)
from gateway.settings.schema import Predict
from gateway.types import Rung
from tests.unit.predict.process.inline_child import (
    WAIT_S,
    Children,
    FragileChild,
    InlineChild,
    Make,
    Shelf,
    holding,
    learned,
    lesson,
    lessons_learned,
    real_child,
    refined,
    text_of,
    until,
    view,
)

pytestmark = pytest.mark.anyio


async def test_predictor_follows_what_it_learned(make: Make) -> None:
    """After one answer the next forecast, refined or stage 0's, follows it; the row is stored."""
    shelf = Shelf()
    predictor = make(shelf=shelf)
    before = await refined(predictor, view())
    await learned(predictor, 2500)
    [row] = await shelf.wait()
    assert (row.output_tokens, row.tenant, len(row.vector)) == (2500, "a", 768)
    after = await refined(predictor, view())
    assert after.rung is Rung.TENANT_NEIGHBORS
    assert after.p50 > 2 * before.p50
    assert predictor.forecast(view()) == after
    assert predictor.snapshot().cache_hits == 1
    assert predictor.snapshot().index_rows == 1


async def test_rows_that_are_stored_are_told_of(make: Make) -> None:
    """Rows stored, and rows that the store refuses, are reported with the reason; what is refused
    is learned all the same."""
    told, shelf = list[tuple[int, int, str]](), Shelf()
    predictor = make(shelf=shelf, written=lambda *what: told.append(what))
    await lessons_learned(predictor, [lesson(9, f"number {i}") for i in range(5)])
    await until(lambda: sum(stored for stored, _, _ in told) == 5)
    shelf.error = OSError("the disk is full")
    await learned(predictor, 9, "another")
    await until(lambda: told[-1] == (0, 1, "the disk is full"))
    shelf.error = None
    await learned(predictor, 9, "and another")
    await until(lambda: told[-1] == (1, 0, ""))
    assert predictor.snapshot().learned == 7


async def test_store_that_nobody_writes_to_any_more_does_not_fail(make: Make) -> None:
    """Switched off after rows were refused, the predictor takes the reason back: no row will come
    to show that the disk is mended."""
    told, shelf = list[tuple[int, int, str]](), Shelf()
    predictor = make(shelf=shelf, written=lambda *what: told.append(what))
    shelf.error = OSError("the disk is full")
    await learned(predictor, 9)
    await until(lambda: (0, 1, "the disk is full") in told)
    predictor.reconfigure(Predict(enabled=False))
    await until(lambda: told[-1] == (0, 0, ""))


async def test_lessons_of_a_tick_are_handed_over_at_once(make: Make) -> None:
    """Lessons cost one question a tick, and another for the report, however many they are."""

    class Counting(InlineChild):
        asked = 0

        async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
            self.asked += isinstance(question, TakeLessons)
            return await super().ask(question, timeout_s)

    children = Children(Counting)
    predictor = make(connect=children, tick_s=0.3)
    await refined(predictor, view())
    await lessons_learned(predictor, [lesson(9, f"number {i}") for i in range(20)])
    assert isinstance(children.last, Counting)
    assert children.last.asked <= 3


async def test_nothing_is_asked_while_nothing_is_learned(make: Make) -> None:
    """Once all is reported, the child is left alone: no tick goes on for its own sake."""
    asked = 0

    class Counting(InlineChild):
        async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
            nonlocal asked
            asked += 1
            return await super().ask(question, timeout_s)

    predictor = make(connect=Children(Counting))
    await learned(predictor, 9)
    await until(lambda: predictor.snapshot().learn_queue == 0)
    for _ in range(3):
        before = asked
        await asyncio.sleep(0.1)  # twenty ticks
        if asked == before:
            break
    assert asked == before


async def test_prompt_learned_twice_has_its_forecast_ready(make: Make) -> None:
    """The second lesson of a prompt puts its forecast into stage 0's cache, unasked; the first does
    not."""
    predictor = make()
    for hits in (0, 1):
        await learned(predictor, 2500)
        workload = predictor.forecast(view())
        assert predictor.snapshot().cache_hits == hits
    assert workload.rung is Rung.TENANT_NEIGHBORS


async def test_answer_still_running_is_not_counted_as_ended(make: Make) -> None:
    """A running answer stores no calibration and prepares no repeat."""
    kept: list[bytes] = []
    predictor = make(keep=kept.append)
    for _ in range(20):
        assert predictor.observe(view(), 5000)
    await refined(predictor, view("another"))
    predictor.forecast(view())
    assert kept == []
    assert predictor.snapshot().cache_hits == 0


async def test_observed_answers_are_not_stored_or_indexed(make: Make) -> None:
    """A running answer raises the forecast of its source and leaves no row."""
    shelf = Shelf()
    predictor = make(shelf=shelf)
    before = (await refined(predictor, view("another"))).p50
    for _ in range(ROOM):
        assert predictor.observe(view("running"), 9000)
    await until(lambda: predictor.snapshot().learned == ROOM)
    await learned(predictor, 10, "barrier")
    assert (await refined(predictor, view("another"))).p50 > before
    assert predictor.snapshot().index_rows == 1
    assert [row.output_tokens for row in await shelf.wait()] == [10]


async def test_flood_is_sampled(make: Make) -> None:
    """Of more lessons than wait in the child some are learned, the counts of all: a length and
    the tokens of a prompt are known of each."""
    predictor = make()
    await refined(predictor, view())
    flood = [lesson(900, f"Tell me about the number {i}") for i in range(2 * ROOM)]
    for one in flood:
        assert predictor.learn(one)
    await until(
        lambda: (s := predictor.snapshot()).learned + s.sampled_out == len(flood),
    )
    shot = predictor.snapshot()
    assert (shot.sampled_out, shot.learn_lost, shot.index_rows) == (ROOM, 0, ROOM)


async def test_lesson_that_fails_is_counted(make: Make) -> None:
    """A lesson that fails is lost alone; the next one is learned."""
    predictor = make()
    await lessons_learned(predictor, [lesson(9, "before"), lesson(-5, censored=True), lesson(9)])
    assert (predictor.snapshot().learn_lost, predictor.snapshot().learned) == (1, 2)


async def test_lessons_that_cannot_be_sent_cost_their_tick(make: Make) -> None:
    """They are counted as lost, and the child lives on."""
    predictor = make()
    broken = lesson("many")  # type: ignore[arg-type]  # nothing after the API expects that
    await lessons_learned(predictor, [broken, lesson(9)])
    await learned(predictor, 9)
    shot = predictor.snapshot()
    assert (shot.learn_lost, shot.learned, shot.restarts) == (2, 1, 0)


async def test_predictor_keeps_its_calibration_between_runs(make: Make) -> None:
    """The calibration is stored now and then and at the stop; the next process begins with it."""
    kept: list[bytes] = []
    predictor = make(keep=kept.append)
    await lessons_learned(predictor, [lesson(3000, "again")] * (KEEP_EVERY + 1))
    await until(lambda: len(kept) == 1)
    await predictor.stop(10)
    assert len(kept) == 2
    other, fresh = make(state=kept[-1]), make()
    await refined(other, view())
    await refined(fresh, view())
    unseen = view("Something about the mountains")
    assert other.forecast(unseen).p50 > 2 * fresh.forecast(unseen).p50


def promised(predictor: Predictor) -> asyncio.Task[None]:
    return asyncio.create_task(predictor.learn_stored(lesson(2500)))


async def test_promised_row_is_learned_once_it_is_stored(make: Make) -> None:
    """Before the row is stored nothing is learned and the caller gets nothing; afterwards both
    happen. Forecasts are made meanwhile."""
    shelf = Shelf()
    predictor = make(shelf=shelf)
    before = await refined(predictor, view())
    shelf.hold()
    promise = promised(predictor)
    await asyncio.wait_for(shelf.came.wait(), WAIT_S)
    assert await refined(predictor, view()) == before
    assert (predictor.snapshot().index_rows, promise.done()) == (0, False)
    shelf.release()
    await promise
    assert [row.output_tokens for row in shelf.rows] == [2500]
    assert predictor.snapshot().index_rows == 1
    assert (await refined(predictor, view())).rung is Rung.TENANT_NEIGHBORS


async def test_promised_row_that_is_not_stored_is_never_learned(make: Make) -> None:
    """A full disk is raised, and forecasts stay as they were."""
    shelf = Shelf()
    shelf.error = OSError("the disk is full")
    predictor = make(shelf=shelf)
    before = await refined(predictor, view())
    with pytest.raises(NotStored, match="the disk is full"):
        await promised(predictor)
    predictor.reconfigure(Predict())  # empties the cache of repeats
    assert await refined(predictor, view()) == before
    assert (predictor.snapshot().index_rows, predictor.snapshot().learn_lost) == (0, 0)


async def test_promise_without_a_store_is_refused(make: Make) -> None:
    """A predictor without history promises nothing, and learns what is only to be learned."""
    predictor = make()
    with pytest.raises(NotStored, match="no store"):
        await promised(predictor)
    await learned(predictor, 9)
    assert predictor.snapshot().index_rows == 1


async def test_promise_passes_a_full_list_and_has_a_bound_of_its_own(make: Make) -> None:
    """A lesson whose caller waits is taken although the other list is full; beyond its own queue's
    bound it is refused."""
    children, shelf = Children(), Shelf()
    predictor = make(Predict(learn_items=2), connect=children, shelf=shelf)
    await refined(predictor, view())
    await holding(predictor, children.last)
    assert [predictor.learn(lesson(9)) for _ in range(3)] == [True, True, False]
    promises = [promised(predictor) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await promises.pop()
    children.last.release()
    await asyncio.gather(*promises)
    assert [row.output_tokens for row in shelf.rows].count(2500) == 2


async def test_promise_whose_caller_leaves_before_it_is_sent_is_not_stored(make: Make) -> None:
    """A cancelled caller will send the row again, so storing it now would leave it there twice."""
    children, shelf = Children(), Shelf()
    predictor = make(connect=children, shelf=shelf)
    await refined(predictor, view())
    await holding(predictor, children.last)
    promise = promised(predictor)
    await asyncio.sleep(0)
    promise.cancel()
    children.last.release()
    await learned(predictor, 9, "barrier")
    assert [row.output_tokens for row in await shelf.wait()] == [9]
    assert promise.cancelled()


async def test_promise_whose_caller_leaves_during_the_store_is_learned(make: Make) -> None:
    """The row is in history, so the index has it, too."""
    shelf = Shelf()
    shelf.hold()
    predictor = make(shelf=shelf)
    promise = promised(predictor)
    await asyncio.wait_for(shelf.came.wait(), WAIT_S)
    promise.cancel()
    await asyncio.sleep(0)
    shelf.release()
    await until(lambda: predictor.snapshot().index_rows == 1)
    assert promise.cancelled()


async def test_promise_whose_draft_fails_is_not_stored(make: Make) -> None:
    """A lesson that the child cannot read has no row; one in the same question is stored."""
    children, shelf = Children(), Shelf()
    predictor = make(connect=children, shelf=shelf)
    await refined(predictor, view())
    await holding(predictor, children.last)
    broken = lesson(-5, "x", censored=True)
    failing, good = asyncio.create_task(predictor.learn_stored(broken)), promised(predictor)
    await asyncio.sleep(0)
    children.last.release()
    with pytest.raises(ChildError):
        await failing
    await good
    assert len(shelf.rows) == 1
    assert predictor.snapshot().learn_lost == 1


class KilledChild:
    """The real child, killed as soon as a lesson of a certain word is sent to it."""

    def __init__(self, client: ChildClient) -> None:
        self.client = client

    @classmethod
    async def start(cls) -> KilledChild:
        return cls(await real_child())

    async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
        if isinstance(question, TakeLessons | StoreLessons) and "fatal" in text_of(question):
            os.kill(self.client.pid, signal.SIGKILL)
        return await self.client.ask(question, timeout_s)

    def watch(self, gone: Callable[[str], object]) -> None:
        self.client.watch(gone)

    async def close(self) -> None:
        await self.client.close()


@pytest.mark.parametrize("connect", [Children(FragileChild), KilledChild.start])
async def test_child_that_dies_of_a_lesson_costs_what_was_on_its_way(
    make: Make, connect: Callable[[], object]
) -> None:
    """The lessons of that tick are lost and counted, a promise is broken, stage 0 forecasts
    meanwhile, and the next child answers what waits."""
    predictor = make(connect=connect)
    await learned(predictor, 9)
    assert predictor.learn(lesson(5, "fatal"))
    assert predictor.learn(lesson(6, "beside it"))
    await until(lambda: predictor.snapshot().restarts == 1)
    assert predictor.forecast(view("meanwhile")).rung is Rung.MODEL_ONLY
    await refined(predictor, view())
    shot = predictor.snapshot()
    assert (shot.restarts, shot.learned, shot.learn_lost) == (1, 1, 2)
    with pytest.raises(ChildGone):
        await predictor.learn_stored(lesson(5, "fatal"))
    await learned(predictor, 5, "another")


async def test_row_stored_by_a_child_that_then_dies_is_in_the_next_index_once(make: Make) -> None:
    """The row was committed and its promise broken: the next child reads it from history."""
    shelf = Shelf()

    class Dying(InlineChild):
        async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
            answer = await super().ask(question, timeout_s)
            if isinstance(question, StoreLessons):
                raise ChildGone("it died of its answer")
            return answer

    predictor = make(shelf=shelf, history=lambda _: [shelf.rows], connect=Children(Dying))
    with pytest.raises(ChildGone):
        await promised(predictor)
    await refined(predictor, view())
    assert len(shelf.rows) == predictor.snapshot().index_rows == 1


async def test_death_of_an_idle_child_is_noticed(make: Make) -> None:
    """An idle child that dies is replaced although nobody asks it anything."""
    children = Children()
    predictor = make(connect=children)
    await refined(predictor, view())
    children.last.die()
    await until(lambda: predictor.snapshot().restarts == 1 and predictor.snapshot().ready)
    assert len(children.made) == 2


@pytest.mark.parametrize("stopped", [False, True])
async def test_promise_at_the_child_is_kept_before_it_ends(make: Make, stopped: bool) -> None:
    """Switched off or stopped while a row is being stored, the child first ends that."""
    children, shelf = Children(), Shelf()
    predictor = make(connect=children, shelf=shelf)
    await refined(predictor, view())
    shelf.hold()
    promise = promised(predictor)
    await asyncio.wait_for(shelf.came.wait(), WAIT_S)
    threading.Timer(0.2, shelf.release).start()
    if stopped:
        await predictor.stop(WAIT_S)
    else:
        predictor.reconfigure(Predict(enabled=False))
    await promise
    assert len(shelf.rows) == 1


async def test_promise_waiting_when_the_predictor_stops_is_refused(make: Make) -> None:
    """A draft that still waits at the stop is refused, and nothing is stored."""
    children, shelf = Children(), Shelf()
    predictor = make(connect=children, shelf=shelf)
    await refined(predictor, view())
    await holding(predictor, children.last)
    promise = promised(predictor)
    await asyncio.sleep(0)
    await predictor.stop(0.0)
    with pytest.raises(ChildGone):
        await promise
    assert shelf.rows == []
