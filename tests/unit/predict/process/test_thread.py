"""The predictor thread: in which order it works, how it rests, fails and ends."""

from __future__ import annotations

import threading
import time

from gateway.predict.calibrate import Calibration
from gateway.predict.process.backend import BackendGone, Local, Setup
from gateway.settings.schema import Predict
from gateway.types import HistoryRow, Rung, Workload
from tests.unit.predict.process.asking import (
    WAIT_S,
    Fragile,
    Gate,
    Inbox,
    Make,
    always,
    learned,
    refined,
    view,
)


def test_predictor_skips_an_item_nobody_waits_for(make: Make) -> None:
    """`wanted` is asked just before work; False means no work and no answer."""
    predictor = make()
    inbox = Inbox()
    assert predictor.refine(view(), inbox, lambda: False)
    refined(predictor, view("another"))
    assert inbox.items == []
    assert predictor.snapshot().skipped_late == 1


def test_predictor_forecasts_before_it_learns(make: Make) -> None:
    """A result that waits lets later forecasts pass."""
    predictor = make()
    gate = Gate(predictor)
    order = Inbox()
    told = {"prompt_tokens": 1, "censored": False, "success": True, "wall_s": 1.0}
    assert predictor.learn(view(), output_tokens=9, done=order, **told)
    assert predictor.refine(view(), order, always)
    gate.open()
    kinds = [type(item) for item in order.wait(2)]
    assert kinds == [Workload, HistoryRow]


def test_predictor_survives_callers_that_fail(make: Make) -> None:
    """An exception in `wanted` or `done` costs that item only."""
    predictor = make()

    def fail(*_: object) -> bool:
        raise RuntimeError("the caller's fault")

    assert predictor.refine(view(), fail, always)
    assert predictor.refine(view(), lambda _: None, fail)
    told = {"prompt_tokens": 1, "censored": False, "success": True, "wall_s": 1.0}
    assert predictor.learn(view(), output_tokens=9, done=fail, **told)
    assert refined(predictor, view()).p50 > 0
    assert predictor.snapshot().ready


def test_predictor_outlives_its_thread(make: Make) -> None:
    """A thread that dies is said in the state; stage 0 goes on."""

    class Fatal(BaseException):
        """What nothing on the thread may take."""

    def broken(_: str) -> list[list[HistoryRow]]:
        raise Fatal

    predictor = make(history=broken)
    predictor._thread.join(WAIT_S)
    assert predictor.snapshot().state == "degraded: the predictor thread died: Fatal"
    assert not predictor.snapshot().ready
    assert predictor.forecast(view()).rung is Rung.MODEL_ONLY
    assert not predictor.refine(view(), lambda _: None, always)


def test_predictor_is_not_ready_while_its_backend_is_gone(make: Make) -> None:
    """The state says why, and stopping does not wait for the pause to pass."""
    opened = 0

    def once(setup: Setup) -> Local:
        nonlocal opened
        opened += 1
        if opened > 1:
            raise BackendGone("no more memory")
        return Fragile(setup)

    predictor = make(open_backend=once)
    lost = Inbox()
    assert predictor.refine(view("fatal"), lost, always)
    gone = threading.Event()

    def look() -> bool:
        shot = predictor.snapshot()
        return not shot.ready and "predictor's process" in shot.state

    until = time.monotonic() + WAIT_S
    while not look() and time.monotonic() < until:
        gone.wait(0.01)
    assert look()
    began_s = time.monotonic()
    predictor.stop(WAIT_S)
    assert time.monotonic() - began_s < 5
    assert lost.items == []


def test_predictor_learns_what_waits_before_it_stops(make: Make) -> None:
    """Stopping drops forecasts, and takes in results for as long as it may."""
    predictor = make()
    gate = Gate(predictor)
    forecasts, rows = Inbox(), Inbox()
    told = {"prompt_tokens": 1, "censored": False, "success": True, "wall_s": 1.0}
    assert predictor.refine(view(), forecasts, always)
    for _ in range(3):
        assert predictor.learn(view(), output_tokens=9, done=rows, **told)
    stopping = threading.Thread(target=predictor.stop, args=(WAIT_S,))
    stopping.start()
    gate.open()
    stopping.join(WAIT_S)
    assert len(rows.items) == 3
    assert forecasts.items == []


class Watched(Local):
    """A backend that says when it is ended."""

    def __init__(self, setup: Setup, ended: threading.Event) -> None:
        super().__init__(setup)
        self._ended = ended

    def close(self) -> None:
        self._ended.set()


def test_predictor_switched_off_ends_its_backend_and_on_again_opens_one(make: Make) -> None:
    """Off: nothing is left of it but the calibration and history; on: it is as it was."""
    ended, kept = threading.Event(), list[HistoryRow]()
    predictor = make(
        Predict(enabled=False),
        open_backend=lambda setup: Watched(setup, ended),
        history=lambda _: [kept],
    )
    for _ in range(2):
        predictor.reconfigure(Predict(enabled=True))
        kept += [learned(predictor, view(), 2500)]
        before = predictor.forecast(view("Write of the sea at night")).p50
        assert not ended.is_set()
        predictor.reconfigure(Predict(enabled=False))
        assert ended.wait(WAIT_S)
        shot = predictor.snapshot()
        assert (shot.state, shot.ready, shot.index_rows, shot.restarts) == ("off", False, 0, 0)
        assert predictor.forecast(view()).rung is Rung.HEURISTIC
        assert not predictor.refine(view(), lambda _: None, always)
        ended.clear()
    predictor.reconfigure(Predict(enabled=True))
    assert refined(predictor, view()).rung is Rung.TENANT_NEIGHBORS
    assert predictor.snapshot().index_rows == 2
    assert predictor.forecast(view("Write of the sea at night")).p50 == before
    assert predictor.snapshot().state == "ready"


def test_predictor_does_what_was_let_in_before_it_was_switched_off(make: Make) -> None:
    """Forecasts and results that wait are answered, and then the backend ends."""
    ended, answers, rows = threading.Event(), Inbox(), Inbox()
    predictor = make(open_backend=lambda setup: Watched(setup, ended))
    gate = Gate(predictor)
    told = {"prompt_tokens": 1, "censored": False, "success": True, "wall_s": 1.0}
    assert predictor.refine(view(), answers, always)
    assert predictor.learn(view(), output_tokens=9, done=rows, **told)
    predictor.reconfigure(Predict(enabled=False))
    gate.open()
    assert ended.wait(WAIT_S)
    assert [type(x) for x in answers.wait()] == [Workload]
    assert [type(x) for x in rows.wait()] == [HistoryRow]


def test_predictor_stops_while_it_is_switched_off(make: Make) -> None:
    """A resting thread ends like a working one; orders reach it meanwhile."""
    ended = threading.Event()
    predictor = make(open_backend=lambda setup: Watched(setup, ended))
    refined(predictor, view())
    predictor.reconfigure(Predict(enabled=False))
    assert ended.wait(WAIT_S)
    predictor.reset_learned()
    predictor.stop(WAIT_S)
    assert not predictor._thread.alive
    assert predictor._stage0.calibration == Calibration()


def test_reconfigure_takes_effect_on_the_thread(make: Make) -> None:
    """A smaller window keeps the newest rows; an encoder not shipped is said, not used."""
    predictor = make()
    for i in range(4):
        learned(predictor, view(f"Tell me about the number {i}"), 100)
    predictor.reconfigure(Predict(history_window_size=2))
    refined(predictor, view())
    assert predictor.snapshot().index_rows == 2
    predictor.reconfigure(Predict(embedding_model_name="another"))  # wants a restart
    refined(predictor, view())
    assert predictor.snapshot().state == "ready"


def test_reconfigure_takes_private_tenants(make: Make) -> None:
    """A tenant that becomes private takes its rows out of the others' sight."""
    predictor = make()
    for _ in range(2):
        learned(predictor, view(tenant="a"), 3000)
    assert refined(predictor, view(tenant="b")).rung is Rung.GLOBAL_NEIGHBORS
    predictor.reconfigure(Predict(), private={"a"})
    assert refined(predictor, view(tenant="b")).rung is Rung.MODEL_ONLY
    assert refined(predictor, view(tenant="a")).rung is Rung.TENANT_NEIGHBORS
    row = learned(predictor, view(tenant="a"), 3000)
    assert not row.shared
