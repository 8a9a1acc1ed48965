"""Changes of models, and rebuilding of the index, while requests flow."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.predict.artefacts import Artefacts
from gateway.predict.process.child_client import ChildClient
from gateway.predict.process.predictor import Predictor
from gateway.predict.process.wire import ChildAnswer, Question, UseVersion
from gateway.predict.prompt_view import PromptView
from gateway.predict.refit.due import CURRENT, Refits
from gateway.predict.refit.refit import refit
from gateway.settings.schema import Predict
from gateway.types import HistoryRow, Rung, Workload
from tests.unit.predict.process.inline_child import (
    Children,
    InlineChild,
    Make,
    Shelf,
    all_learned,
    always,
    learned,
    real_child,
    refined,
    until,
    view,
)
from tests.unit.predict.rows import ruled_rows

pytestmark = pytest.mark.anyio


class Switched(Refits):
    """Refits that never begin; the version named in the folder is taken at the next look."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def tend(self, settings: Predict, lessons: int, drifts: int) -> bool:
        return True

    def use(self, version: str) -> None:
        (self.folder / CURRENT).write_text(version)


@pytest.fixture(scope="module")
def versions(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one refit whose forecasts are far from the shipped ones."""
    folder = tmp_path_factory.mktemp("versions")
    assert refit(ruled_rows(artefacts, 400), artefacts, folder).accepted
    (folder / CURRENT).unlink()
    return folder


def unseen(number: int) -> PromptView:
    return view(f"8461 992 7731 5528 9936 {number}")


class Load:
    """Asks for forecasts of both kinds, some hundred a second."""

    def __init__(self, predictor: Predictor) -> None:
        self.first: set[tuple[float, ...]] = set()  # grids of stage 0
        self.better: set[tuple[float, ...]] = set()
        self.rungs: set[Rung] = set()
        self.count = 0
        self._predictor = predictor

    async def run(self) -> None:
        """Until it is cancelled; raises what a forecast raises."""
        while True:
            await asyncio.sleep(0.002)
            workload = self._predictor.forecast(unseen(1))
            self.first.add(workload.grid)
            self.rungs.add(workload.rung)
            if self._predictor.snapshot().forecast_queue < 8:
                self._predictor.refine(unseen(2), self._take, always)
            self.count += 1

    def _take(self, workload: Workload) -> None:
        self.better.add(workload.grid)


@asynccontextmanager
async def loaded(predictor: Predictor) -> AsyncIterator[Load]:
    """A load beside what is done meanwhile; an error of it is the test's."""
    load = Load(predictor)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(load.run())
        yield load
        running.cancel()


async def test_models_are_swapped_under_load(make: Make, versions: Path) -> None:
    """Versions change and come back while forecasts flow: none fails, and each is of one
    version or of the other."""
    refits = Switched(versions)
    predictor = make(refits=refits, connect=real_child)
    await refined(predictor, view())
    swaps: list[int] = []
    async with loaded(predictor) as load:
        for version in (1, 0, 1, 0):  # 0 is no folder: as shipped
            refits.use(str(version))
            predictor.tick()
            await until(lambda v=version: predictor.snapshot().version == v)  # type: ignore[misc]
            count = load.count
            await until(lambda c=count: load.count > c + 50)  # type: ignore[misc]
            swaps.append(predictor.snapshot().version)
    assert swaps == [1, 0, 1, 0]
    assert load.rungs == {Rung.MODEL_ONLY}
    assert (len(load.first), len(load.better)) == (2, 2)
    assert predictor.snapshot().state == "ready"


async def test_forecast_at_the_moment_of_a_swap_is_of_one_model(make: Make, versions: Path) -> None:
    """A forecast around the child's change equals the old model's or the new one's: residuals of
    one are never applied to the other's trees."""
    between: list[tuple[float, ...]] = []

    class Peeked(InlineChild):
        async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
            between.append(predictor.forecast(unseen(1)).grid)
            answer = await super().ask(question, timeout_s)
            between.append(predictor.forecast(unseen(1)).grid)
            asyncio.get_running_loop().call_soon(
                lambda: between.append(predictor.forecast(unseen(1)).grid)
            )
            swapped.append(isinstance(question, UseVersion))
            return answer

    refits, swapped = Switched(versions), list[bool]()
    predictor = make(connect=Children(Peeked), refits=refits)
    texts = (f"{i} 992 7731 5528" for i in range(40))
    await all_learned(predictor, 3000, texts)  # a bias of the shipped models
    old = predictor.forecast(unseen(1)).grid
    between.clear()
    refits.use("1")
    predictor.tick()
    await refined(predictor, view("barrier"))
    new = predictor.forecast(unseen(1)).grid
    assert new != old
    assert any(swapped)
    assert {old, new} == set(between)


async def test_index_is_rebuilt_under_load(make: Make) -> None:
    """The process is killed amid requests: stage 0 answers all of them, the next process has
    every row that is stored, those stored meanwhile too."""
    shelf = Shelf()
    await learned(make(shelf=shelf), 800)
    stored = await shelf.wait() * 1000
    clients: list[ChildClient] = []

    def pages(_: str) -> Iterator[list[HistoryRow]]:
        rows = list(stored)
        for i in range(0, len(rows), 64):
            yield rows[i : i + 64]

    async def started() -> ChildClient:
        clients.append(await real_child())
        return clients[-1]

    predictor = make(connect=started, history=pages)
    await refined(predictor, view())
    async with loaded(predictor) as load:
        os.kill(clients[0].pid, signal.SIGKILL)
        await until(lambda: predictor.snapshot().restarts == 1)
        await until(lambda: predictor.snapshot().ready)
    assert load.count > 50
    assert load.rungs == {Rung.MODEL_ONLY}
    assert (await refined(predictor, view())).rung is Rung.TENANT_NEIGHBORS
    assert predictor.snapshot().index_rows == len(stored)


async def test_index_is_resized_under_load(make: Make) -> None:
    """No request fails while the window is made smaller and larger."""
    predictor = make(connect=real_child)
    await all_learned(predictor, 100, (f"number {i}" for i in range(20)))
    async with loaded(predictor):
        for window, left in ((15, 15), (1000, 15), (9, 9)):
            predictor.reconfigure(Predict(history_window_size=window))
            await until(lambda n=left: predictor.snapshot().index_rows == n)  # type: ignore[misc]
    assert predictor.snapshot().state == "ready"
