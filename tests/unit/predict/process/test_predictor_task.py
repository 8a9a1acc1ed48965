"""The predictor's task: its order of work, its rests, its faults and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from gateway.predict.calibrate import Calibration
from gateway.predict.process.child_client import ChildClient
from gateway.predict.process.pending import FORECASTS, PROMISES
from gateway.predict.process.wire import ChildAnswer, ChildGone, MakeForecasts, Question
from gateway.predict.refit.due import Refits
from gateway.settings.schema import Predict
from gateway.types import Rung, Workload
from tests.unit.predict.process.inline_child import (
    WAIT_S,
    Children,
    FragileChild,
    InlineChild,
    Mailbox,
    Make,
    Shelf,
    all_learned,
    always,
    holding,
    learned,
    lesson,
    real_child,
    refined,
    until,
    view,
)

pytestmark = pytest.mark.anyio


async def test_predictor_skips_a_forecast_nobody_waits_for(make: Make) -> None:
    """`wanted` is asked just before the work; False means no work and no answer."""
    predictor = make()
    mailbox = Mailbox()
    assert predictor.refine(view(), mailbox, lambda: False)
    await refined(predictor, view("another"))
    assert mailbox.items == []
    assert predictor.snapshot().skipped_late == 1


async def test_predictor_forecasts_before_it_learns(make: Make) -> None:
    """A lesson that waits lets later forecasts pass."""
    children, order, shelf = Children(), Mailbox(), Shelf()
    predictor = make(connect=children, shelf=shelf)
    await refined(predictor, view())
    await holding(predictor, children.last)
    promise = asyncio.create_task(predictor.learn_stored(lesson(9)))
    promise.add_done_callback(order)
    assert predictor.learn(lesson(9))
    assert predictor.refine(view(), order, always)
    children.last.release()
    assert [type(item) for item in await order.wait(2)] == [Workload, asyncio.Task]


async def test_forecasts_without_end_do_not_keep_a_promise_waiting(make: Make) -> None:
    """Each forecast that comes asks for the next; a row is stored all the same."""
    shelf, count = Shelf(), 0
    predictor = make(shelf=shelf)

    def again(_: Workload) -> None:
        nonlocal count
        count += 1
        predictor.refine(view(f"number {count}"), again, always)

    for _ in range(2):
        again(await refined(predictor, view()))
    await asyncio.wait_for(predictor.learn_stored(lesson(9)), WAIT_S)
    assert len(shelf.rows) == 1


async def test_forecasts_of_one_turn_are_asked_for_together(make: Make) -> None:
    """Waiting forecasts are one question, the newest first, less those no longer wanted; beyond a
    bound they are another."""
    asked: list[int] = []

    class Counting(InlineChild):
        async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
            if isinstance(question, MakeForecasts):
                asked.append(len(question.views))
            return await super().ask(question, timeout_s)

    mailbox = Mailbox()
    predictor = make(connect=Children(Counting))
    await refined(predictor, view())
    asked.clear()
    for number in range(FORECASTS + 2):
        done = partial(lambda number, workload: mailbox(number), number)
        assert predictor.refine(view(f"number {number}"), done, lambda n=number: n != 1)  # type: ignore[misc]
    newest_first = range(FORECASTS + 1, -1, -1)
    assert await mailbox.wait(FORECASTS + 1) == [n for n in newest_first if n != 1]
    assert asked == [FORECASTS, 1]


async def test_predictor_survives_callers_that_fail(make: Make) -> None:
    """An exception in `wanted` or `done` costs that item only."""
    predictor = make()

    def fail(*_: object) -> bool:
        raise RuntimeError("the caller's fault")

    assert predictor.refine(view(), fail, always)
    assert predictor.refine(view(), lambda _: None, fail)
    assert (await refined(predictor, view())).p50 > 0
    assert predictor.snapshot().ready


async def test_predictor_outlives_its_task(make: Make, tmp_path: Path) -> None:
    """A task that dies is named in the state; stage 0 goes on, and the child is not left."""

    class Broken(Refits):
        def current(self) -> Path | None:
            raise LookupError

    predictor = make(refits=Broken(tmp_path))
    await until(lambda: predictor.snapshot().state != "starting")
    shot = predictor.snapshot()
    assert (shot.state, shot.ready) == ("degraded: the predictor died: LookupError", False)
    assert predictor.forecast(view()).rung is Rung.HEURISTIC
    assert not predictor.refine(view(), lambda _: None, always)


async def test_lesson_taken_by_a_task_that_dies_is_given_up(make: Make, tmp_path: Path) -> None:
    """The caller gets an error, and does not wait for ever; both lessons are counted."""

    class Broken(Refits):
        def current(self) -> Path | None:
            raise LookupError

    predictor = make(refits=Broken(tmp_path))
    assert predictor.learn(lesson(9))
    with pytest.raises(ChildGone):
        await predictor.learn_stored(lesson(9))
    assert predictor.snapshot().learn_lost == 2


async def test_predictor_is_not_ready_while_its_child_is_gone(make: Make) -> None:
    """The state says why, and stopping does not wait for the pause to pass."""
    started = 0

    async def once() -> InlineChild:
        nonlocal started
        started += 1
        if started > 1:
            raise ChildGone("no more memory")
        return FragileChild()

    predictor = make(connect=once, pause_s=0.5)
    await refined(predictor, view())
    lost = Mailbox()
    assert predictor.refine(view("fatal"), lost, always)
    assert predictor.learn(lesson(9))
    await until(lambda: predictor.snapshot().restarts == 2)  # the second does not start
    shot = predictor.snapshot()
    assert (shot.ready, shot.state) == (
        False,
        "degraded: the predictor's process: no more memory",
    )
    began_s = time.monotonic()
    await predictor.stop(WAIT_S)
    assert time.monotonic() - began_s < 5
    assert lost.items == []
    assert predictor.snapshot().learn_lost == 1


async def test_predictor_learns_what_waits_before_it_stops(make: Make) -> None:
    """Stopping drops forecasts, and learns and stores the lessons that wait."""
    children, forecasts, shelf = Children(), Mailbox(), Shelf()
    predictor = make(connect=children, shelf=shelf)
    await refined(predictor, view())
    await holding(predictor, children.last)
    assert predictor.refine(view(), forecasts, always)
    for _ in range(3):
        assert predictor.learn(lesson(9))
    stopping = asyncio.create_task(predictor.stop(WAIT_S))
    await asyncio.sleep(0)
    children.last.release()
    await stopping
    assert len(shelf.rows) == predictor.snapshot().learned == 3
    assert forecasts.items == []
    assert children.last.closed.is_set()


async def test_predictor_stops_in_time_beside_a_child_that_hangs(make: Make) -> None:
    """Lessons for which the stop has no time are lost and counted."""
    children, kept = Children(), list[bytes]()
    predictor = make(connect=children, keep=kept.append)
    await learned(predictor, 3000)
    await holding(predictor, children.last)
    for _ in range(3):
        assert predictor.learn(lesson(9))
    began_s = time.monotonic()
    await predictor.stop(0.05)
    assert time.monotonic() - began_s < 5
    assert predictor.snapshot().learn_lost == 3
    assert children.last.closed.is_set()
    assert kept != [Calibration().dump()]  # what was learned before is kept
    assert len(kept) == 1


async def test_lessons_at_the_child_when_time_is_up_are_given_up(make: Make) -> None:
    """Those of the question under way, and those behind it, are lost and counted; who waits gets an
    error."""
    children = Children()
    predictor = make(connect=children)
    await refined(predictor, view())
    children.last.hold()
    promises = [asyncio.create_task(predictor.learn_stored(lesson(8))) for _ in range(PROMISES + 1)]
    await asyncio.wait_for(children.last.held.wait(), WAIT_S)
    assert predictor.learn(lesson(9))
    await predictor.stop(0.05)
    for promise in promises:
        with pytest.raises(ChildGone):
            await asyncio.wait_for(promise, WAIT_S)
    assert predictor.snapshot().learn_lost == len(promises) + 1


async def test_refit_ends_though_the_time_is_up_while_the_child_ends(
    make: Make, tmp_path: Path
) -> None:
    """Stopping ends child and refit whatever it interrupts; a refit is not waited for on the
    loop, which its memory would hold up."""

    class Slow(InlineChild):
        async def close(self) -> None:
            self.closed.set()
            await asyncio.sleep(WAIT_S)

    class Noted(Refits):
        threads: list[threading.Thread] = []  # noqa: RUF012 - one instance

        def stop(self) -> None:
            self.threads.append(threading.current_thread())

    children, refits = Children(Slow), Noted(tmp_path)
    predictor = make(connect=children, refits=refits)
    await refined(predictor, view())
    await predictor.stop(0.1)
    assert children.last.closed.is_set()
    assert len(refits.threads) == 1
    assert threading.current_thread() not in refits.threads


async def test_predictor_stops_at_once_while_a_child_is_being_opened(make: Make) -> None:
    """With nothing to learn there is nothing to wait for, and the child is ended."""
    children = Children()

    async def held() -> InlineChild:
        child = await children()
        child.hold()
        return child

    predictor = make(connect=held)
    await until(lambda: bool(children.made))
    await children.last.held.wait()
    began_s = time.monotonic()
    await predictor.stop(WAIT_S)
    assert time.monotonic() - began_s < 5
    assert children.last.closed.is_set()


async def test_predictor_switched_off_ends_its_child_and_on_again_opens_one(make: Make) -> None:
    """Off, it keeps only calibration and history; switched on again, it works as before."""
    children, shelf = Children(), Shelf()
    predictor = make(
        Predict(enabled=False), connect=children, history=lambda _: [shelf.rows], shelf=shelf
    )
    for _ in range(2):
        predictor.reconfigure(Predict(enabled=True))
        await learned(predictor, 2500)
        before = predictor.forecast(view("Write of the sea at night")).p50
        assert not children.last.closed.is_set()
        predictor.reconfigure(Predict(enabled=False))
        await asyncio.wait_for(children.last.closed.wait(), WAIT_S)
        shot = predictor.snapshot()
        assert (shot.state, shot.ready, shot.index_rows, shot.restarts) == ("off", False, 0, 0)
        assert predictor.forecast(view()).rung is Rung.HEURISTIC
        assert not predictor.refine(view(), lambda _: None, always)
    predictor.reconfigure(Predict(enabled=True))
    assert (await refined(predictor, view())).rung is Rung.TENANT_NEIGHBORS
    assert predictor.snapshot().index_rows == 2
    assert predictor.forecast(view("Write of the sea at night")).p50 == before
    assert predictor.snapshot().state == "ready"


class LingeringChild(InlineChild):
    """A child that does not end before `end` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.end = asyncio.Event()

    async def close(self) -> None:
        await super().close()
        await asyncio.wait_for(self.end.wait(), WAIT_S)


async def test_predictor_switched_on_beside_its_ending_child_is_not_ready(make: Make) -> None:
    """The state is `starting` from the order to switch off until the next child is open."""
    first, second = LingeringChild(), LingeringChild()
    second.end.set()
    children = Children(iter((first, second)).__next__)
    predictor = make(connect=children)
    await refined(predictor, view())
    predictor.reconfigure(Predict(enabled=False))
    await asyncio.wait_for(first.closed.wait(), WAIT_S)
    predictor.reconfigure(Predict(enabled=True))
    shot = predictor.snapshot()
    assert (shot.state, shot.ready) == ("starting", False)
    first.end.set()
    await refined(predictor, view())
    assert predictor.snapshot().state == "ready"


async def test_predictor_does_what_was_taken_before_it_was_switched_off(make: Make) -> None:
    """Forecasts and lessons that wait are answered, and then the child ends."""
    children, answers, shelf = Children(), Mailbox(), Shelf()
    predictor = make(connect=children, shelf=shelf)
    await refined(predictor, view())
    await holding(predictor, children.last)
    assert predictor.refine(view(), answers, always)
    assert predictor.learn(lesson(9))
    predictor.reconfigure(Predict(enabled=False))
    children.last.release()
    await asyncio.wait_for(children.last.closed.wait(), WAIT_S)
    assert [type(x) for x in answers.items] == [Workload]
    assert len(shelf.rows) == 1


async def test_predictor_stops_while_it_is_switched_off(make: Make) -> None:
    """A resting task ends like a working one; orders reach it meanwhile."""
    children, kept = Children(), list[bytes]()
    predictor = make(connect=children, keep=kept.append)
    await learned(predictor, 3000)
    predictor.reconfigure(Predict(enabled=False))
    await asyncio.wait_for(children.last.closed.wait(), WAIT_S)
    assert kept[-1] != Calibration().dump()
    predictor.reset_learned()
    await predictor.stop(WAIT_S)
    assert "predictor" not in {task.get_name() for task in asyncio.all_tasks()}
    assert kept[-1] == Calibration().dump()


async def test_reconfigure_takes_effect_in_the_child(make: Make) -> None:
    """A smaller window keeps the newest rows; another encoder needs a restart, and is not
    tried."""
    predictor = make()
    await all_learned(predictor, 100, (f"Tell me about the number {i}" for i in range(4)))
    predictor.reconfigure(Predict(history_window_size=2))
    await refined(predictor, view())
    assert predictor.snapshot().index_rows == 2
    predictor.reconfigure(Predict(embedding_model_name="another"))
    await refined(predictor, view())
    assert predictor.snapshot().state == "ready"


async def test_reconfigure_takes_private_tenants(make: Make) -> None:
    """A tenant that becomes private takes its rows out of the others' sight."""
    shelf = Shelf()
    predictor = make(shelf=shelf)
    for _ in range(2):
        await learned(predictor, 3000)
    assert (await refined(predictor, view(tenant="b"))).rung is Rung.GLOBAL_NEIGHBORS
    predictor.reconfigure(Predict(), private={"a"})
    assert (await refined(predictor, view(tenant="b"))).rung is Rung.MODEL_ONLY
    assert (await refined(predictor, view(tenant="a"))).rung is Rung.TENANT_NEIGHBORS
    await learned(predictor, 3000)
    assert [row.shared for row in await shelf.wait(3)] == [True, True, False]


async def test_predictor_beside_a_child_that_does_not_read_is_bounded(make: Make) -> None:
    """Beyond the queues' bounds everything is refused at once, and the loop is never held up."""
    clients: list[ChildClient] = []

    async def started() -> ChildClient:
        clients.append(await real_child())
        return clients[-1]

    predictor = make(Predict(queue_items=10, learn_items=20, max_chars=100_000), connect=started)
    await refined(predictor, view())
    os.kill(clients[0].pid, signal.SIGSTOP)
    late_s = 0.0
    for number in range(200):
        text = "x" * 90_000 + str(number)  # more than a socket takes
        predictor.refine(view(text), lambda _: None, always)
        predictor.learn(lesson(9, text))
        turn_s = time.monotonic()
        await asyncio.sleep(0)
        late_s = max(late_s, time.monotonic() - turn_s)
    shot = predictor.snapshot()
    assert (shot.forecast_queue, shot.learn_queue) == (10, 20)
    assert (shot.dropped_full, shot.learn_lost) == (200 - 10 - 1, 200 - 20)  # one is under way
    assert late_s < 1.0
    os.kill(clients[0].pid, signal.SIGKILL)
