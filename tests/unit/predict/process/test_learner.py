"""The ways of a lesson: learned at once, or drafted, stored and then learned."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from gateway.errors import Unavailable
from gateway.predict.process.child_client import ChildClient, Connect
from gateway.predict.process.learner import KEEP_EVERY
from gateway.predict.process.predictor import Predictor
from gateway.predict.process.wire import (
    ChildAnswer,
    ChildError,
    ChildGone,
    LearnLessons,
    Question,
)
from gateway.settings.schema import Predict
from gateway.types import HistoryRow, Rung
from tests.unit.predict.process.inline_child import (
    WAIT_S,
    Children,
    FragileChild,
    InlineChild,
    Mailbox,
    Make,
    always,
    holding,
    learned,
    lesson,
    real_child,
    refined,
    text_of,
    until,
    view,
)

pytestmark = pytest.mark.anyio


async def test_predictor_follows_at_once_what_it_learned(make: Make) -> None:
    """After one answer the next forecast, refined or stage 0's, follows it."""
    predictor = make()
    before = await refined(predictor, view())
    row = await learned(predictor, 2500)
    assert (row.output_tokens, row.tenant, len(row.vector)) == (2500, "a", 768)
    after = await refined(predictor, view())
    assert after.rung is Rung.TENANT_NEIGHBORS
    assert after.p50 > 2 * before.p50
    assert predictor.forecast(view()) == after
    assert predictor.snapshot().cache_hits == 1
    assert predictor.snapshot().index_rows == 1


async def test_prompt_learned_twice_has_its_forecast_ready(make: Make) -> None:
    """The second lesson of a prompt puts its forecast into stage 0's cache, unasked; the first does
    not."""
    predictor = make()
    for hits in (0, 1):
        await learned(predictor, 2500)
        await refined(predictor, view("barrier"))
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
    predictor = make()
    before = (await refined(predictor, view("another"))).p50
    for _ in range(40):
        assert predictor.observe(view("running"), 9000)
    await learned(predictor, 10, "barrier")
    assert (await refined(predictor, view("another"))).p50 > before
    assert predictor.snapshot().index_rows == 1


async def test_predictor_loses_nothing_in_a_flood_it_can_learn_briefly(make: Make) -> None:
    """Lessons are learned without the encoder while the queue is over half full; none is lost."""
    children, rows = Children(), Mailbox()
    predictor = make(Predict(learn_items=100), connect=children)
    await refined(predictor, view())
    await holding(predictor, children.last)
    for i in range(100):
        assert predictor.learn(lesson(9, f"Tell me about the number {i}"), done=rows)
    children.last.release()
    items = await rows.wait(100)
    assert all(isinstance(row, HistoryRow) for row in items)
    assert [bool(row.vector) for row in items] == [False] * 64 + [True] * 36
    shot = predictor.snapshot()
    assert (shot.learned_briefly, shot.learn_lost) == (64, 0)


async def test_lesson_that_fails_is_reported(make: Make) -> None:
    """The caller gets the error in place of a row; the next lesson is learned."""
    predictor, mailbox = make(), Mailbox()
    broken = lesson("many")  # type: ignore[arg-type]  # nothing after the API expects that
    assert predictor.learn(broken, done=mailbox)
    assert [type(x) for x in await mailbox.wait()] == [ChildError]
    assert (await learned(predictor, 9)).output_tokens == 9
    assert predictor.snapshot().learn_lost == 1


async def test_predictor_keeps_its_calibration_between_runs(make: Make) -> None:
    """The calibration is stored now and then and at the stop; the next process begins with it."""
    kept: list[bytes] = []
    predictor = make(keep=kept.append)
    for _ in range(KEEP_EVERY + 1):
        assert predictor.learn(lesson(3000, "again"))
    await refined(predictor, view("again"))
    await learned(predictor, 3000, "again")
    assert len(kept) == 1
    await predictor.stop(10)
    assert len(kept) == 2
    other, fresh = make(state=kept[-1]), make()
    await refined(other, view())
    await refined(fresh, view())
    unseen = view("Something about the mountains")
    assert other.forecast(unseen).p50 > 2 * fresh.forecast(unseen).p50


class Shelf:
    """Stores rows when the test says so, or not."""

    def __init__(self) -> None:
        self.rows: list[HistoryRow] = []
        self.came = asyncio.Event()
        self._reports: asyncio.Queue[Exception | None] = asyncio.Queue()

    async def __call__(self, row: HistoryRow) -> None:
        self.rows.append(row)
        self.came.set()
        error = await self._reports.get()
        if error is not None:
            raise error

    async def wait(self) -> None:
        """Wait until a row is here to be stored."""
        await asyncio.wait_for(self.came.wait(), WAIT_S)

    def report(self, error: Exception | None) -> None:
        """Let the oldest row be stored, or fail."""
        self._reports.put_nowait(error)


def promised(predictor: Predictor, shelf: Shelf) -> asyncio.Task[HistoryRow]:
    return asyncio.create_task(predictor.learn_stored(lesson(2500), shelf))


async def test_promised_row_is_learned_once_it_is_stored(make: Make) -> None:
    """Before the row is stored nothing is learned and the caller gets nothing; afterwards both
    happen."""
    predictor, shelf = make(), Shelf()
    before = await refined(predictor, view())
    promise = promised(predictor, shelf)
    await shelf.wait()
    assert await refined(predictor, view()) == before
    assert (predictor.snapshot().index_rows, promise.done()) == (0, False)
    shelf.report(None)
    assert [await promise] == shelf.rows
    assert predictor.snapshot().index_rows == 1
    assert (await refined(predictor, view())).rung is Rung.TENANT_NEIGHBORS


@pytest.mark.parametrize("error", [OSError("the disk is full"), Unavailable("no room")])
async def test_promised_row_that_is_not_stored_is_never_learned(
    make: Make, error: Exception
) -> None:
    """A full disk, or no room in the store's queue, is raised, and forecasts stay as they were."""
    predictor, shelf = make(), Shelf()
    before = await refined(predictor, view())
    promise = promised(predictor, shelf)
    shelf.report(error)
    with pytest.raises(type(error)):
        await promise
    predictor.reconfigure(Predict())  # empties the cache of repeats
    assert await refined(predictor, view()) == before
    assert (predictor.snapshot().index_rows, predictor.snapshot().learn_lost) == (0, 0)


async def test_promise_passes_a_full_queue_and_has_a_bound_of_its_own(make: Make) -> None:
    """A lesson whose caller waits is taken although the other queue is full; beyond its own queue's
    bound it is refused."""
    children, shelf = Children(), Shelf()
    predictor = make(Predict(learn_items=2), connect=children)
    await refined(predictor, view())
    await holding(predictor, children.last)
    assert [predictor.learn(lesson(9)) for _ in range(3)] == [True, True, False]
    promises = [promised(predictor, shelf) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await promises.pop()
    children.last.release()
    for _ in promises:
        shelf.report(None)
    assert await asyncio.gather(*promises) == shelf.rows


async def test_promise_whose_caller_leaves_before_the_store_is_not_stored(make: Make) -> None:
    """A cancelled caller will send the row again, so storing it now would leave it there twice."""
    children, shelf = Children(), Shelf()
    predictor = make(connect=children)
    await refined(predictor, view())
    await holding(predictor, children.last)
    promise = promised(predictor, shelf)
    await asyncio.sleep(0)
    promise.cancel()
    children.last.release()
    await learned(predictor, 9, "barrier")
    assert (promise.cancelled(), shelf.rows) == (True, [])


async def test_promise_whose_caller_leaves_during_the_store_is_learned(make: Make) -> None:
    """The row is in history, so the index has it, too."""
    predictor, shelf = make(), Shelf()
    promise = promised(predictor, shelf)
    await shelf.wait()
    promise.cancel()
    await asyncio.sleep(0)
    shelf.report(None)
    await until(lambda: predictor.snapshot().index_rows == 1)
    assert promise.cancelled()


async def test_promise_whose_draft_fails_is_not_stored(make: Make) -> None:
    """A lesson that the child cannot read has no row."""
    predictor, shelf = make(), Shelf()
    broken = lesson("many")  # type: ignore[arg-type]  # nothing after the API expects that
    with pytest.raises(ChildError):
        await predictor.learn_stored(broken, shelf)
    assert (shelf.rows, predictor.snapshot().learn_lost) == ([], 1)


async def test_promised_row_stored_while_its_child_went_is_in_the_index_once(make: Make) -> None:
    """The next child reads the row from history, and it is not learned a second time."""
    shelf = Shelf()
    predictor = make(history=lambda _: [shelf.rows], connect=Children(FragileChild))
    promise = promised(predictor, shelf)
    await shelf.wait()
    assert predictor.refine(view("fatal"), lambda _: None, always)
    assert (await refined(predictor, view())).rung is Rung.TENANT_NEIGHBORS
    assert (predictor.snapshot().restarts, predictor.snapshot().index_rows) == (1, 1)
    shelf.report(None)
    assert [await promise] == shelf.rows
    await learned(predictor, 5, "another")
    assert predictor.snapshot().index_rows == 2


class KilledChild:
    """The real child, killed as soon as a lesson of a certain word is sent to it."""

    def __init__(self, client: ChildClient) -> None:
        self.client = client

    @classmethod
    async def start(cls) -> KilledChild:
        return cls(await real_child())

    async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
        if isinstance(question, LearnLessons) and "fatal" in text_of(question):
            os.kill(self.client.pid, signal.SIGKILL)
        return await self.client.ask(question, timeout_s)

    async def close(self) -> None:
        await self.client.close()


class Blocked:
    """A connection whose first forecast waits, so that lessons gather behind it."""

    def __init__(self, connect: Connect) -> None:
        self.release = asyncio.Event()
        self._connect = connect

    async def __call__(self) -> Blocked:
        self._link = await self._connect()
        return self

    async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
        if text_of(question) == "held":
            await self.release.wait()
        return await self._link.ask(question, timeout_s)

    async def close(self) -> None:
        await self._link.close()


@pytest.mark.parametrize("connect", [Children(FragileChild), KilledChild.start])
async def test_child_that_dies_of_a_lesson_beside_a_draft_costs_the_lesson_alone(
    make: Make, connect: Connect
) -> None:
    """The drafted row is stored, returned and in the index once; the lesson is lost once; stage 0
    forecasts meanwhile, and the next child answers what waits."""
    shelf, blocked = Shelf(), Blocked(connect)
    predictor = make(history=lambda _: [shelf.rows], connect=blocked)
    lost, later = Mailbox(), Mailbox()
    assert predictor.refine(view("held"), lambda _: None, always)
    assert predictor.learn(lesson(5, "fatal"), lost)
    promise = promised(predictor, shelf)
    await asyncio.sleep(0)
    blocked.release.set()
    assert [type(x) for x in await lost.wait()] == [ChildGone]
    assert predictor.forecast(view("meanwhile")).rung is Rung.MODEL_ONLY
    assert predictor.refine(view(), later, always)
    assert [x.rung for x in await later.wait()] == [Rung.TENANT_NEIGHBORS]
    shelf.report(None)
    assert [await promise] == shelf.rows
    await learned(predictor, 5, "another")
    shot = predictor.snapshot()
    assert (shot.restarts, shot.index_rows, shot.learn_lost) == (1, 2, 1)
    assert len(lost.items) == len(later.items) == 1


async def test_promised_row_is_returned_whatever_becomes_of_the_lesson(make: Make) -> None:
    """A stored row is returned although the child dies while learning it: it is in history."""

    class Forgetful(InlineChild):
        async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
            if isinstance(question, LearnLessons):
                raise ChildGone("it cannot learn")
            return await super().ask(question, timeout_s)

    shelf = Shelf()
    predictor = make(history=lambda _: [shelf.rows], connect=Children(Forgetful))
    promise = promised(predictor, shelf)
    shelf.report(None)
    assert [await promise] == shelf.rows
    await refined(predictor, view())
    assert predictor.snapshot().index_rows == 1


@pytest.mark.parametrize("stopped", [False, True])
async def test_promised_row_stored_without_a_predictor_is_returned(
    make: Make, stopped: bool
) -> None:
    """A row stored while prediction is off or stopped is returned; the next child reads it."""
    children, shelf = Children(), Shelf()
    predictor = make(connect=children)
    promise = promised(predictor, shelf)
    await shelf.wait()
    if stopped:
        await predictor.stop(WAIT_S)
    else:
        predictor.reconfigure(Predict(enabled=False))
        await asyncio.wait_for(children.last.closed.wait(), WAIT_S)
    shelf.report(None)
    assert [await promise] == shelf.rows


async def test_promise_waiting_when_the_predictor_stops_is_refused(make: Make) -> None:
    """A draft that still waits at the stop is refused, and nothing is stored."""
    children, shelf = Children(), Shelf()
    predictor = make(connect=children)
    await refined(predictor, view())
    await holding(predictor, children.last)
    promise = promised(predictor, shelf)
    await asyncio.sleep(0)
    await predictor.stop(0.0)
    with pytest.raises(ChildGone):
        await promise
    assert shelf.rows == []
