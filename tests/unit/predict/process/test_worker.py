"""The child's models and their answers, in the test's own process."""

from __future__ import annotations

import pytest
from msgspec import structs

from gateway.predict.process.wire import (
    ChildAnswer,
    ChildSetup,
    FillIndex,
    FinishLessons,
    ForgetLearned,
    MakeForecasts,
    OpenModels,
    Question,
    StoreLessons,
    TakeLessons,
    encoded,
)
from gateway.predict.process.worker import ModelHost
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.types import HistoryRow, Workload
from tests.unit.predict.process.inline_child import Shelf, lesson, view

SETUP = ChildSetup(Predict(), str(shipped("models")), b"key", {}, frozenset())


class Host:
    """A model host, and how often it was told that its work begins."""

    def __init__(self) -> None:
        self.begun = 0
        self.shelf = Shelf()
        self._host = ModelHost(self._begins, Shelf.at)

    def _begins(self) -> str:
        self.begun += 1
        return "lowered"

    def __call__(self, question: Question) -> ChildAnswer:
        if isinstance(question, OpenModels):
            setup = structs.replace(question.setup, store=str(self.shelf.path))
            question = OpenModels(setup)
        answer = self._host.answer(encoded(question))
        assert answer.error is None
        return answer


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", b"\x81\xa4type\xa3Nix"])
def test_host_answers_what_it_cannot_read(payload: bytes) -> None:
    """Garbage, or a question before anything is opened, gets an error and no end."""
    host = ModelHost(lambda: "normal", Shelf.at)
    assert host.answer(payload).error
    assert host.answer(encoded(ForgetLearned())).error


def test_host_begins_work_once_and_not_by_opening() -> None:
    """The priority is lowered at the first forecast or lesson, not by opening or filling."""
    questions = MakeForecasts([view()]), TakeLessons([lesson(9)], 1.0), StoreLessons({1: lesson(9)})
    for question in questions:
        host = Host()
        host(OpenModels(SETUP))
        host(FillIndex([]))
        assert host.begun == 0
        assert host(question).status.priority == "lowered"
        host(question)
        assert host.begun == 1


def test_host_reports_what_moved_and_only_that() -> None:
    """The first status has all of the calibration, later ones only what a lesson changed."""
    host = Host()
    opened = host(OpenModels(SETUP)).changes
    assert opened is not None
    assert opened.complete
    assert host(MakeForecasts([view()])).changes is None
    assert host(TakeLessons([lesson(900)], 1.0)).changes is None
    moved = host(FinishLessons()).changes
    assert moved is not None
    assert not moved.complete
    assert moved.models


def test_forecast_that_fails_costs_itself_alone() -> None:
    """A failed forecast's place in the answer has the traceback, the others their forecasts."""
    host = Host()
    host(OpenModels(SETUP))
    broken = structs.replace(view(), chars=-10)
    good, bad, also = host(MakeForecasts([view(), broken, view("another")])).workloads
    assert isinstance(good, Workload)
    assert isinstance(also, Workload)
    assert isinstance(bad, str)


def test_host_passes_over_rows_of_no_use() -> None:
    """A row whose vector is damaged costs itself alone."""
    host = Host()
    host(OpenModels(SETUP))
    host(StoreLessons({1: lesson(100)}))
    [good] = host.shelf.rows
    bad = HistoryRow(1.0, "a", "m", "", b"k", good.encoder, b"short", 1, 5, 0, False, True)
    answer = host(FillIndex([good, bad, good]))
    assert (answer.bad, answer.status.rows) == (0, 3)


def test_host_reports_a_calibration_that_is_not_usable() -> None:
    """An unreadable calibration is replaced by an empty one, and the status says so."""
    garbage = ChildSetup(Predict(), SETUP.folder, b"key", {}, frozenset(), calibration=b"\xff")
    assert not Host()(OpenModels(garbage)).status.restored
    assert Host()(OpenModels(SETUP)).status.restored
