"""The child's supervisor: one child at a time, and the state that outlives each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import Calibration, group_keys
from gateway.predict.process.predictor import Predictor
from gateway.predict.process.supervisor import CalibrationStore, FaultLog
from gateway.predict.process.wire import PIECE, ChildAnswer, ChildGone, ForgetLearned, Question
from gateway.predict.refit.due import CURRENT, Refits
from gateway.predict.refit.refit import refit
from gateway.predict.residuals import Residuals
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.types import HistoryRow, Rung
from tests.unit.predict.conftest import Damage, flip, replace
from tests.unit.predict.process.inline_child import (
    POEM,
    Children,
    FragileChild,
    InlineChild,
    Mailbox,
    Make,
    Shelf,
    all_learned,
    always,
    learned,
    lesson,
    refined,
    until,
    view,
)
from tests.unit.predict.rows import ruled_rows

LATER = "Write of the sea at night"


async def stored_row(make: Make) -> HistoryRow:
    """A row that a predictor stored."""
    shelf = Shelf()
    await learned(make(shelf=shelf), 800)
    return (await shelf.wait())[0]


@pytest.mark.anyio
async def test_predictor_fills_its_index_from_history(make: Make) -> None:
    """Rows given at the start serve as neighbours."""
    rows = [await stored_row(make)] * 6
    other = make(history=lambda _: [rows])
    assert (await refined(other, view())).rung is Rung.TENANT_NEIGHBORS
    assert other.snapshot().index_rows == 6


@pytest.mark.anyio
async def test_predictor_takes_history_a_page_at_a_time(make: Make) -> None:
    """Each page is in the index before the next is asked for; the encoder's own rows are."""
    row = await stored_row(make)
    counts: list[int] = []
    encoders: list[str] = []

    def pages(encoder: str) -> Iterator[list[HistoryRow]]:
        encoders.append(encoder)
        for _ in range(4):
            counts.append(other.snapshot().index_rows)
            yield [row] * 3

    other: Predictor = make(history=pages)
    await refined(other, view())
    assert (counts, encoders) == ([0, 3, 6, 9], [row.encoder])


@pytest.mark.anyio
async def test_history_row_that_cannot_be_used_is_passed_over(make: Make) -> None:
    """A damaged row, or one that spoils its page's frame, is no reason to forget the others."""
    good = await stored_row(make)
    bad = HistoryRow(1.0, "a", "m", "", b"k" * 16, good.encoder, b"short", 1, 5, 0, False, True)
    predictor = make(history=lambda _: [[good, None, bad, good]])
    assert (await refined(predictor, view())).rung is Rung.TENANT_NEIGHBORS
    shot = predictor.snapshot()
    assert (shot.ready, shot.index_rows, shot.restarts) == (True, 2, 0)


@pytest.mark.anyio
async def test_predictor_tries_again_when_history_cannot_be_read(make: Make) -> None:
    """The store may be busy or failing just then; the child that was begun is ended."""
    calls, children = 0, Children()

    def failing(_: str) -> Iterator[list[HistoryRow]]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("not now")
        yield []

    predictor = make(history=failing, connect=children)
    mailbox = Mailbox()
    assert predictor.refine(view(), mailbox, always)
    await mailbox.wait()
    assert (predictor.snapshot().state, predictor.snapshot().restarts) == ("ready", 1)
    assert [child.closed.is_set() for child in children.made] == [True, False]


@pytest.mark.anyio
async def test_predictor_replaces_a_child_that_has_gone(make: Make) -> None:
    """The new child is filled from history and continues the calibration; requests that wait are
    answered, the lesson that killed the old one is counted, and stage 0 forecasts meanwhile."""
    shelf = Shelf()
    predictor = make(history=lambda _: [shelf.rows], connect=Children(FragileChild), shelf=shelf)
    await all_learned(predictor, 2500, [POEM] * 8)
    before = await refined(predictor, view())
    await shelf.wait(8)
    assert predictor.learn(lesson(5, "fatal"))
    await until(lambda: predictor.snapshot().restarts == 1)
    assert predictor.forecast(view("meanwhile")).rung is Rung.MODEL_ONLY
    after = await refined(predictor, view())
    assert after.rung is before.rung is Rung.TENANT_NEIGHBORS
    shot = predictor.snapshot()
    assert (shot.state, shot.ready, shot.restarts, shot.index_rows) == ("ready", True, 1, 8)
    assert shot.learn_lost == 1


@pytest.mark.anyio
async def test_predictor_keeps_its_calibration_when_its_child_has_gone(make: Make) -> None:
    """Stage 0 forecasts the same before and after the child's end, and so would the next start."""
    kept: list[bytes] = []
    predictor = make(connect=Children(FragileChild), keep=kept.append)
    await all_learned(predictor, 2500, [POEM] * 20)
    before = predictor.forecast(view(LATER))
    assert predictor.refine(view("fatal"), lambda _: None, always)
    await until(lambda: predictor.snapshot().restarts == 1)
    await refined(predictor, view())
    predictor.reconfigure(Predict())  # empties the cache of repeats
    assert predictor.forecast(view(LATER)) == before
    other = make(state=kept[-1])
    await refined(other, view())
    assert other.forecast(view(LATER)) == before


@pytest.mark.anyio
async def test_large_calibration_comes_in_pieces(make: Make) -> None:
    """A child with thousands of groups is opened without a long message, and stage 0 has them
    all."""
    residuals, groups = Residuals(), 5 * PIECE
    for number in range(groups):
        keys = group_keys("m", f"t{number}")
        residuals.learn(keys, 8.0, stage0=2.0, full=None, censored=False)
    largest = 0

    class Measured(InlineChild):
        async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
            nonlocal largest
            answer = await super().ask(question, timeout_s)
            if answer.changes is not None:
                largest = max(largest, len(answer.changes.models))
            return answer

    predictor = make(state=residuals.table.dump(), connect=Children(Measured))
    await refined(predictor, view())
    assert largest == PIECE
    untaught = predictor.forecast(view(tenant="none")).p50
    for number in (0, groups // 2, groups - 1):
        assert predictor.forecast(view(tenant=f"t{number}")).p50 > 1.2 * untaught


@pytest.mark.anyio
async def test_predictor_begins_anew_with_a_state_of_another_kind(make: Make) -> None:
    """A stored calibration that cannot be read costs itself alone."""
    predictor = make(state=b"\xff\x00")
    assert (await refined(predictor, view())).p50 > 0
    assert predictor.snapshot().state == "ready"


@pytest.mark.anyio
async def test_encoder_that_is_not_shipped_is_named_in_the_state(make: Make) -> None:
    """Without an encoder of that name the state is degraded, with the reason; forecasts go on."""
    predictor = make(settings=Predict(embedding_model_name="another"))
    assert (await refined(predictor, view())).rung is Rung.MODEL_ONLY
    assert "no artefact for the encoder 'another'" in predictor.snapshot().state


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("damage", "rung"),
    [
        (flip("encoder.onnx"), Rung.MODEL_ONLY),
        (replace("encoder.onnx", b"garbage"), Rung.MODEL_ONLY),
        (flip("stage0.txt"), Rung.HEURISTIC),
        (replace("manifest.toml", b"\x00"), Rung.HEURISTIC),
    ],
)
async def test_predictor_degrades_with_a_bad_artefact(
    make: Make, damaged: Callable[[Damage], Path], damage: Damage, rung: Rung
) -> None:
    """A wrong or missing file is named in the state; forecasts go on, one rung lower."""
    predictor = make(folder=damaged(damage))
    await refined(predictor, view())
    assert predictor.snapshot().state.startswith("degraded: ")
    assert predictor.forecast(view("something not seen yet")).rung is rung
    await learned(predictor, 100)
    assert predictor.snapshot().learn_lost == 0


def test_reset_learned_needs_no_task() -> None:
    """If the predictor has been off since the start, a reset still overwrites the stored state,
    so that no restart brings it back."""
    kept: list[bytes] = []
    predictor = Predictor(
        Predict(enabled=False),
        shipped("models"),
        connect=Children(),
        key=b"key",
        keep=kept.append,
    )
    predictor.reset_learned()
    assert kept == [Calibration().dump()]


@pytest.mark.anyio
async def test_reset_learned_outlives_a_child_that_goes_with_it(make: Make) -> None:
    """A reset during which the child ends holds: the next child does not restore what was
    forgotten."""

    class Forgetful(InlineChild):
        async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
            if isinstance(question, ForgetLearned):
                raise ChildGone("it died of forgetting")
            return await super().ask(question, timeout_s)

    kept: list[bytes] = []
    predictor = make(connect=Children(Forgetful), keep=kept.append)
    await refined(predictor, view("barrier"))
    untaught = predictor.forecast(view(LATER))
    await all_learned(predictor, 3000, [POEM] * 5)
    assert predictor.forecast(view(LATER)) != untaught
    predictor.reset_learned()
    await refined(predictor, view())
    assert predictor.snapshot().restarts == 1
    assert predictor.forecast(view(LATER)) == untaught
    assert kept[-1] == Calibration().dump()


@pytest.mark.anyio
async def test_reset_learned_just_before_the_stop_is_kept(make: Make) -> None:
    """A reset that the task had no time for is carried out at its end."""
    children, kept = Children(), list[bytes]()
    predictor = make(connect=children, keep=kept.append)
    await learned(predictor, 3000)
    children.last.hold()
    assert predictor.refine(view("held"), lambda _: None, always)
    await children.last.held.wait()
    predictor.reset_learned()
    await predictor.stop(0.0)
    assert kept[-1] == Calibration().dump()


@pytest.mark.anyio
async def test_predictor_takes_a_refit_into_force(
    make: Make, artefacts: Artefacts, tmp_path: Path
) -> None:
    """A refit's version replaces the models here and in the child; a reset returns to shipped."""
    assert refit(ruled_rows(artefacts, 400), artefacts, tmp_path).accepted
    (tmp_path / CURRENT).unlink()
    fitting = [sys.executable, "-c", f"open({str(tmp_path / CURRENT)!r}, 'w').write('1')"]
    settings = Predict(refit_every_s=1e-6, refit_min_rows=100)
    predictor = make(settings, refits=Refits(tmp_path, fitting))
    seen, other = view("8461 992 7731 5528 9936 1288"), view("7461 993 7735 5528 9936 1289")
    before = (await refined(predictor, seen)).p50
    await all_learned(predictor, 100, (f"one {i}" for i in range(20)))
    shipped_p50 = predictor.forecast(other).p50

    def in_force() -> bool:
        predictor.tick()
        return predictor.snapshot().version == 1

    await until(in_force)
    await refined(predictor, view("barrier"))
    shot = predictor.snapshot()
    assert (shot.version, shot.state) == (1, "ready")
    assert shot.refit in ("accepted", "running")
    assert (await refined(predictor, seen)).p50 > 3 * before
    assert predictor.forecast(other).p50 > 1.5 * shipped_p50
    again = make(refits=Refits(tmp_path))
    assert (await refined(again, seen)).p50 > 3 * before
    again.reset_learned()
    assert (await refined(again, seen)).p50 == pytest.approx(before, rel=0.05)
    assert again.snapshot().version == 0


def test_calibration_store_has_the_bytes_put_last() -> None:
    """At first the store has the bytes it was given; later those of the last `put`, here and
    stored."""
    stored: list[bytes] = []
    kept = CalibrationStore(b"before", stored.append, FaultLog())
    assert kept.state == b"before"
    kept.put(b"after")
    assert stored == [kept.state] == [b"after"]


def test_calibration_store_goes_on_where_the_store_fails() -> None:
    """After a failed write the next child of this process still begins with the bytes; the fault is
    counted."""

    def full(_: bytes) -> None:
        raise OSError("the disk is full")

    faults = FaultLog()
    kept = CalibrationStore(None, full, faults)
    kept.put(b"after")
    assert (kept.state, faults.count) == (b"after", 1)


def test_calibration_store_needs_no_store() -> None:
    """Without a store the bytes are kept for the next child alone."""
    faults = FaultLog()
    kept = CalibrationStore(None, None, faults)
    kept.put(b"after")
    assert (kept.state, faults.count) == (b"after", 0)


def test_fault_log_counts_all_and_logs_ever_fewer(caplog: pytest.LogCaptureFixture) -> None:
    """Ten faults are four lines: the first, second, fourth, eighth, each with its traceback."""
    faults = FaultLog()
    for number in range(10):
        try:
            raise RuntimeError(f"number {number}")
        except RuntimeError:
            faults("a thing failed")
    assert faults.count == 10
    lines = [(line.getMessage(), str((line.exc_info or (0, 0))[1])) for line in caplog.records]
    assert lines == [
        (f"predictor: a thing failed ({count} so far)", f"number {count - 1}")
        for count in (1, 2, 4, 8)
    ]
