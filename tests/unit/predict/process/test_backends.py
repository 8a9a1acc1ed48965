"""One backend at a time, and what the next one begins with."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import Calibration
from gateway.predict.process.backend import BackendGone, Local
from gateway.predict.process.predictor import Predictor
from gateway.predict.refit.due import CURRENT, Refits
from gateway.predict.refit.refit import refit
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.types import HistoryRow, Rung
from tests.unit.predict.conftest import Damage, flip, replace
from tests.unit.predict.process.asking import (
    WAIT_S,
    Fragile,
    Inbox,
    Make,
    always,
    learned,
    refined,
    view,
)
from tests.unit.predict.rows import ruled_rows


def test_predictor_fills_its_index_from_history(make: Make) -> None:
    """Rows given at start serve as neighbours."""
    rows = [learned(make(), view(), 800) for _ in range(2)] * 3
    other = make(history=lambda _: [rows])
    found = refined(other, view())
    assert found.rung is Rung.TENANT_NEIGHBORS
    assert other.snapshot().index_rows == 6


def test_predictor_takes_history_a_page_at_a_time(make: Make) -> None:
    """Each page is in the index before the next is asked for; rows of the encoder are asked for."""
    row = learned(make(), view(), 800)
    seen: list[int] = []
    asked: list[str] = []

    def pages(encoder: str) -> Iterator[list[HistoryRow]]:
        asked.append(encoder)
        for _ in range(4):
            seen.append(other.snapshot().index_rows)
            yield [row] * 3

    other = Predictor(Predict(), shipped("models"), key=b"key", history=pages)
    other.start()
    try:
        refined(other, view())
        assert (seen, asked) == ([0, 3, 6, 9], [row.encoder])
    finally:
        other.stop(10)


def test_history_row_that_cannot_be_used_is_passed_over(make: Make) -> None:
    """One damaged row is no reason to forget the others."""
    good = HistoryRow(1.0, "a", "m", "", b"k" * 16, "", b"", 1, 5, 0, False, True)
    predictor = make(history=lambda _: [[None, good]])
    assert refined(predictor, view()) is not None
    assert predictor.snapshot().ready


def test_predictor_tries_again_when_history_cannot_be_read(make: Make) -> None:
    """The store may be busy or failing just then."""
    asked = 0

    def failing(_: str) -> list[list[HistoryRow]]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise OSError("not now")
        return []

    predictor = make(history=failing)
    assert refined(predictor, view()).p50 > 0
    assert (predictor.snapshot().state, predictor.snapshot().restarts) == ("ready", 1)


def test_predictor_replaces_a_backend_that_has_gone(make: Make) -> None:
    """History fills the new one, the calibration goes on, what waits is answered, the item
    that it died of is told; meanwhile stage 0 forecasts."""
    stored: list[HistoryRow] = []
    predictor = make(history=lambda _: [stored], open_backend=Fragile)
    for _ in range(8):
        stored.append(learned(predictor, view(), 2500))
    before = refined(predictor, view())
    told = Inbox()
    values = {"prompt_tokens": None, "censored": False, "success": True, "wall_s": 1.0}
    assert predictor.learn(view("fatal"), output_tokens=5, done=told, **values)
    assert [type(x) for x in told.wait()] == [BackendGone]
    assert predictor.forecast(view("meanwhile")).rung is Rung.MODEL_ONLY
    after = refined(predictor, view())
    assert after.rung is before.rung is Rung.TENANT_NEIGHBORS
    shot = predictor.snapshot()
    assert (shot.state, shot.ready, shot.restarts, shot.index_rows) == ("ready", True, 1, 8)
    assert shot.learn_lost == 1


def test_predictor_keeps_its_calibration_when_its_backend_has_gone(make: Make) -> None:
    """Stage 0 says the same before and after; so does what is stored."""
    kept: list[bytes] = []
    predictor = make(open_backend=Fragile, keep=kept.append)
    for _ in range(20):
        learned(predictor, view(), 2500)
    before = predictor.forecast(view("Write of the sea at night"))
    told = Inbox()
    assert predictor.refine(view("fatal"), told, always)
    refined(predictor, view())
    assert predictor.snapshot().restarts == 1
    predictor.reconfigure(Predict())  # empties the cache of repeats
    assert predictor.forecast(view("Write of the sea at night")) == before
    assert kept[-1] == predictor._stage0.calibration.dump()


def test_predictor_begins_anew_with_a_state_of_another_kind(make: Make) -> None:
    """A stored calibration that cannot be read costs itself alone."""
    predictor = make(state=b"\xff\x00")
    assert refined(predictor, view()).p50 > 0
    assert predictor.snapshot().state == "ready"


def test_encoder_that_is_not_shipped_is_said(make: Make) -> None:
    """No artefact of that name: degraded, with the reason, and forecasts go on."""
    predictor = make(settings=Predict(embedding_model_name="another"))
    assert refined(predictor, view()).rung is Rung.MODEL_ONLY
    assert "no artefact for the encoder 'another'" in predictor.snapshot().state


@pytest.mark.parametrize(
    ("damage", "rung"),
    [
        (flip("encoder.onnx"), Rung.MODEL_ONLY),
        (replace("encoder.onnx", b"garbage"), Rung.MODEL_ONLY),
        (flip("stage0.txt"), Rung.HEURISTIC),
        (replace("manifest.toml", b"\x00"), Rung.HEURISTIC),
    ],
)
def test_predictor_degrades_with_a_bad_artefact(
    make: Make, damaged: Callable[[Damage], Path], damage: Damage, rung: Rung
) -> None:
    """A wrong or missing file is said in the state; forecasts go on, one rung lower."""
    predictor = make(folder=damaged(damage))
    refined(predictor, view())
    assert predictor.snapshot().state.startswith("degraded: ")
    assert predictor.forecast(view("something not seen yet")).rung is rung
    assert learned(predictor, view(), 100).output_tokens == 100


def test_reset_learned_needs_no_thread() -> None:
    """With the predictor off since the start there is nobody to follow the order: what is kept is
    overwritten all the same, so that no restart brings it back."""
    kept: list[bytes] = []
    predictor = Predictor(Predict(enabled=False), shipped("models"), key=b"key", keep=kept.append)
    predictor.reset_learned()
    assert kept == [Calibration().dump()]


def test_reset_learned_outlives_a_backend_that_goes_with_it(make: Make) -> None:
    """What was forgotten does not come back with the next backend."""

    class Forgetful(Local):
        def forget(self) -> None:
            raise BackendGone("it died of forgetting")

    kept: list[bytes] = []
    predictor = make(open_backend=Forgetful, keep=kept.append)
    for _ in range(5):
        learned(predictor, view(), 3000)
    predictor.reset_learned()
    refined(predictor, view())
    assert predictor.snapshot().restarts == 1
    assert predictor._stage0.calibration == Calibration()
    assert kept[-1] == Calibration().dump()


def test_predictor_takes_a_refit_into_force(
    make: Make, artefacts: Artefacts, tmp_path: Path
) -> None:
    """The child's version replaces the models on both threads; a reset returns to shipped."""
    assert refit(ruled_rows(artefacts, 400), artefacts, tmp_path).accepted
    (tmp_path / CURRENT).unlink()
    child = [sys.executable, "-c", f"open({str(tmp_path / CURRENT)!r}, 'w').write('1')"]
    settings = Predict(refit_every_s=1e-6, refit_min_rows=100)
    predictor = make(settings, refits=Refits(tmp_path, child))
    seen = view("8461 992 7731 5528 9936 1288")
    before = refined(predictor, seen).p50
    for i in range(20):
        learned(predictor, view(f"one {i}"), 100)
    shipped_p50 = predictor.forecast(view("7461 993 7735 5528 9936 1289")).p50
    until = time.monotonic() + WAIT_S
    while predictor.snapshot().version == 0 and time.monotonic() < until:
        predictor.tick()
        refined(predictor, view("barrier"))
    shot = predictor.snapshot()
    assert (shot.version, shot.state) == (1, "ready")
    assert shot.refit in ("accepted", "running")
    assert refined(predictor, seen).p50 > 3 * before
    assert predictor.forecast(view("7461 993 7735 5528 9936 1289")).p50 > 1.5 * shipped_p50
    again = make(refits=Refits(tmp_path))
    assert refined(again, seen).p50 > 3 * before
    again.reset_learned()
    assert refined(again, seen).p50 == pytest.approx(before, rel=0.05)
    assert again.snapshot().version == 0
