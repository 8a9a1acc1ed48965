"""The child's models and their answers, in the test's own process."""

from __future__ import annotations

import pytest

from gateway.predict.process.wire import (
    ChildAnswer,
    ChildSetup,
    DraftRows,
    FillIndex,
    ForgetLearned,
    LearnLessons,
    MakeForecast,
    OpenModels,
    Question,
    encoded,
)
from gateway.predict.process.worker import ModelHost
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.types import HistoryRow
from tests.unit.predict.process.inline_child import lesson, view

SETUP = ChildSetup(Predict(), str(shipped("models")), b"key", {}, frozenset())


class Host:
    """A model host, and how often it was told that its work begins."""

    def __init__(self) -> None:
        self.begun = 0
        self._host = ModelHost(self._begins)

    def _begins(self) -> None:
        self.begun += 1

    def __call__(self, question: Question) -> ChildAnswer:
        answer = self._host.answer(encoded(question))
        assert answer.error is None
        return answer


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", b"\x81\xa4type\xa3Nix"])
def test_host_answers_what_it_cannot_read(payload: bytes) -> None:
    """Garbage, or a question before anything is opened, gets an error and no end."""
    host = ModelHost(lambda: None)
    assert host.answer(payload).error
    assert host.answer(encoded(ForgetLearned())).error


def test_host_begins_work_once_and_not_by_opening() -> None:
    """`begins_work` is called at the first forecast, lesson or draft, not by opening or filling."""
    for question in (MakeForecast(view()), LearnLessons([lesson(9)]), DraftRows([lesson(9)])):
        host = Host()
        host(OpenModels(SETUP))
        host(FillIndex([]))
        assert host.begun == 0
        host(question)
        host(question)
        assert host.begun == 1


def test_host_reports_what_moved_and_only_that() -> None:
    """The first status has all of the calibration, later ones only what a lesson changed."""
    host = Host()
    opened = host(OpenModels(SETUP)).changes
    assert opened is not None
    assert opened.complete
    assert host(MakeForecast(view())).changes is None
    moved = host(LearnLessons([lesson(900)])).changes
    assert moved is not None
    assert not moved.complete
    assert moved.models
    assert host(DraftRows([lesson(900)])).changes is None


def test_host_passes_over_rows_of_no_use() -> None:
    """A row whose vector is damaged costs itself alone."""
    host = Host()
    host(OpenModels(SETUP))
    [good] = host(LearnLessons([lesson(100)])).rows
    assert isinstance(good, HistoryRow)
    bad = HistoryRow(1.0, "a", "m", "", b"k", good.encoder, b"short", 1, 5, 0, False, True)
    answer = host(FillIndex([good, bad, good]))
    assert (answer.bad, answer.status.rows) == (0, 3)


def test_host_reports_a_calibration_that_is_not_usable() -> None:
    """An unreadable calibration is replaced by an empty one, and the status says so."""
    garbage = ChildSetup(Predict(), SETUP.folder, b"key", {}, frozenset(), calibration=b"\xff")
    assert not Host()(OpenModels(garbage)).status.restored
    assert Host()(OpenModels(SETUP)).status.restored
