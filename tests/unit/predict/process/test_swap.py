"""Models that change, and an index that is filled anew, while requests flow."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import Calibration
from gateway.predict.process.backend import Backend, Local, Setup
from gateway.predict.process.predictor import Predictor
from gateway.predict.process.remote import Remote
from gateway.predict.refit.due import CURRENT, Refits
from gateway.predict.refit.refit import refit
from gateway.predict.view import PromptView
from gateway.settings.schema import Predict
from gateway.shipped import own_command, own_environ, shipped
from gateway.types import HistoryRow, Rung, Workload
from tests.unit.predict.process.asking import always, learned, refined, view
from tests.unit.predict.rows import ruled_rows

WAIT_S = 60.0
Open = Callable[[Setup], Backend]


class Switched(Refits):
    """Whatever version is named in the folder is in force at the next look; makes none."""

    def tend(self, settings: Predict, lessons: int, drifts: int) -> bool:
        return True

    def use(self, version: str) -> None:
        (self._folder / CURRENT).write_text(version)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder


@pytest.fixture(scope="module")
def versions(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one refit whose forecasts are far from the shipped ones."""
    folder = tmp_path_factory.mktemp("versions")
    assert refit(ruled_rows(artefacts, 400), artefacts, folder).accepted
    (folder / CURRENT).unlink()
    return folder


def remote(setup: Setup) -> Remote:
    return Remote(own_command("predictor"), setup, own_environ())


@pytest.fixture
def running() -> Iterator[Callable[..., Predictor]]:
    made: list[Predictor] = []

    def build(open_backend: Open = remote, **more: object) -> Predictor:
        predictor = Predictor(
            Predict(),
            shipped("models"),
            key=b"key",
            open_backend=open_backend,
            **more,  # type: ignore[arg-type]
        )
        made.append(predictor)
        predictor.start()
        return predictor

    yield build
    for predictor in made:
        predictor.stop(10)


def unseen(number: int) -> PromptView:
    return view(f"8461 992 7731 5528 9936 {number}")


class Load(threading.Thread):
    """Asks for forecasts of both kinds, some hundred a second, until it is left."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(daemon=True)
        self.first: set[tuple[float, ...]] = set()  # grids of stage 0
        self.better: set[tuple[float, ...]] = set()
        self.rungs: set[Rung] = set()
        self.failed: list[BaseException] = []
        self.count = 0
        self._predictor = predictor
        self._over = threading.Event()

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(WAIT_S)

    def run(self) -> None:
        while not self._over.wait(0.002):  # the child is the last to be given a core
            try:
                found = self._predictor.forecast(unseen(1))
                self.first.add(found.grid)
                self.rungs.add(found.rung)
                if self._predictor.snapshot().forecast_queue < 8:
                    self._predictor.refine(unseen(2), self._home, always)
                self.count += 1
            except BaseException as error:
                self.failed.append(error)

    def _home(self, workload: Workload) -> None:
        self.better.add(workload.grid)


def until(true: Callable[[], bool]) -> None:
    end, moment = time.monotonic() + WAIT_S, threading.Event()
    while not true():
        moment.wait(0.005)
        assert time.monotonic() < end, "it did not come to be"


def test_models_are_swapped_under_load(running: Callable[..., Predictor], versions: Path) -> None:
    """Versions change and come back while forecasts flow: none fails, and each is of one
    version or of the other."""
    refits = Switched(versions)
    predictor = running(refits=refits)
    refined(predictor, view())
    swaps: list[int] = []
    with Load(predictor) as load:
        for version in ("1", "0", "1", "0"):  # 0 is no folder: as shipped
            refits.use(version)
            predictor.tick()
            until(lambda v=int(version): predictor.snapshot().version == v)  # type: ignore[misc]
            count = load.count
            until(lambda c=count: load.count > c + 50)  # type: ignore[misc]
            swaps.append(predictor.snapshot().version)
    assert swaps == [1, 0, 1, 0]
    assert load.failed == []
    assert load.rungs == {Rung.MODEL_ONLY}
    assert (len(load.first), len(load.better)) == (2, 2)
    assert predictor.snapshot().state == "ready"


def test_forecast_at_the_moment_of_a_swap_is_of_one_model(
    running: Callable[..., Predictor], versions: Path
) -> None:
    """Residuals of the old model are never applied to the new one's trees: asked for whenever
    the calibration is on its way, stage 0 says what the old one says or what the new one does."""
    between: list[tuple[float, ...]] = []

    class Peeked(Local):
        @property
        def calibration(self) -> Calibration:
            between.append(predictor.forecast(unseen(1)).grid)
            return super().calibration

    refits = Switched(versions)
    predictor = running(open_backend=Peeked, refits=refits)
    for i in range(40):
        learned(predictor, view(f"{i} 992 7731 5528"), 3000)  # a bias of the shipped models
    old = predictor.forecast(unseen(1)).grid
    between.clear()
    refits.use("1")
    predictor.tick()
    refined(predictor, view("barrier"))
    new = predictor.forecast(unseen(1)).grid
    assert new != old
    assert len(between) > 0
    assert set(between) <= {old, new}


def test_index_is_rebuilt_under_load(running: Callable[..., Predictor]) -> None:
    """The process is killed amid requests: stage 0 answers all of them, the next process has
    every row that is stored, those stored meanwhile too."""
    stored: list[HistoryRow] = []

    def pages(_: str) -> Iterator[list[HistoryRow]]:
        rows = list(stored)
        for i in range(0, len(rows), 64):
            yield rows[i : i + 64]

    children: list[Remote] = []

    def opened(setup: Setup) -> Remote:
        children.append(remote(setup))
        return children[-1]

    predictor = running(open_backend=opened, history=pages)
    row = learned(predictor, view(), 800)
    stored += [row] * 1000
    with Load(predictor) as load:
        os.kill(children[0].pid, signal.SIGKILL)
        until(lambda: predictor.snapshot().restarts == 1)
        until(lambda: predictor.snapshot().ready)
    assert load.failed == []
    assert load.count > 50
    assert load.rungs == {Rung.MODEL_ONLY}
    assert refined(predictor, view()).rung is Rung.TENANT_NEIGHBORS
    assert predictor.snapshot().index_rows == len(stored)


def test_index_is_resized_under_load(running: Callable[..., Predictor]) -> None:
    """A window made smaller and larger while requests flow: no answer fails."""
    predictor = running()
    for i in range(20):
        learned(predictor, view(f"number {i}"), 100)
    with Load(predictor) as load:
        for window, left in ((15, 15), (1000, 15), (9, 9)):
            predictor.reconfigure(Predict(history_window_size=window))
            until(lambda n=left: predictor.snapshot().index_rows == n)  # type: ignore[misc]
    assert load.failed == []
    assert predictor.snapshot().state == "ready"
