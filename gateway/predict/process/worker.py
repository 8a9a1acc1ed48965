"""The predictor's child process: encoder, index and boosters, away from the event loop.

It is a process and no thread because the numeric libraries hold the interpreter lock between
their computations, and the event loop waits for that lock. A process can also be given a low
priority, can be killed when it hangs, and may crash in native code without taking a request
along. What it brings is measured in tests/bench/RESULTS.md.

It answers one question at a time (wire.py) from its standard input to its standard output,
until the first is closed. On Linux the end of the gateway ends it at once, however busy it is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from msgspec import structs

from gateway.predict.artefacts import Artefacts
from gateway.predict.encoder import exported_folder
from gateway.predict.lesson import Lesson
from gateway.predict.process.wire import (
    ChangeSettings,
    ChildAnswer,
    ChildSetup,
    ChildStatus,
    DraftRows,
    FillIndex,
    ForgetLearned,
    LearnLessons,
    MakeForecast,
    OpenModels,
    Question,
    UseVersion,
    framed,
    message_encoder,
    question_decoder,
    read_frame,
)
from gateway.predict.teaching import LearningForecaster
from gateway.types import HistoryRow

NICE = 7
"""On a core that both want, the loop keeps 83 % of it (weights 1024 : 215, sched(7)). At 19 it
would keep 98 %, and a forecast beside a busy neighbour take ten times as long (RESULTS.md)."""
OOM_SCORE = "500"  # sooner than the gateway, where memory runs out


def run() -> int:
    """Run as the child process; the exit code."""
    # Signals to the process group are the gateway's: it closes our input when it is done.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    # Libraries print to standard output at will: it is theirs no more.
    answers_fd = os.dup(1)
    os.dup2(2, 1)
    with suppress(OSError), os.fdopen(0, "rb") as questions, os.fdopen(answers_fd, "wb") as answers:
        serve(questions, answers)
    return 0


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the questions end. Raises OSError where the answers cannot be written."""
    host = ModelHost(_lower_priority)
    while (payload := read_frame(questions)) is not None:
        answers.write(framed(message_encoder.encode(host.answer(payload))))
        answers.flush()


def _die_with_parent() -> None:
    """Have this process killed when its parent ends; Linux alone (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _lower_priority() -> None:
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)


class ModelHost:
    """The models, and the answers they give to questions.

    Args:
        begins_work: called once, before the first forecast or lesson. Opening comes before it:
            at a low priority that would take long beside busy neighbours.
    """

    def __init__(self, begins_work: Callable[[], None]) -> None:
        self._begins_work: Callable[[], None] | None = begins_work
        self._artefacts: Artefacts | None = None
        self._forecaster: LearningForecaster | None = None
        self._restored = True

    def answer(self, payload: bytes) -> ChildAnswer:
        """Answer an encoded question; what fails is the answer's `error`."""
        try:
            answer = self._answered(question_decoder.decode(payload))
        except Exception as error:
            answer = ChildAnswer(error=_described(error))
        forecaster, artefacts = self._forecaster, self._artefacts
        if forecaster is None or artefacts is None:
            return answer
        residuals = forecaster.residuals
        changes = residuals.changes()
        moved = changes.complete or changes.models or changes.templates or changes.levels
        status = ChildStatus(
            artefacts.encoder_name,
            forecaster.rows,
            residuals.drifts,
            tuple(artefacts.problems),
            self._restored,
        )
        return structs.replace(answer, status=status, changes=changes if moved else None)

    def _answered(self, question: Question) -> ChildAnswer:
        if isinstance(question, OpenModels):
            self._open(question.setup)
            return ChildAnswer()
        forecaster = self._forecaster
        assert forecaster is not None, "nothing is opened yet"
        if isinstance(question, MakeForecast | LearnLessons | DraftRows):
            return self._worked(forecaster, question)
        if isinstance(question, FillIndex):
            return ChildAnswer(bad=_fill(forecaster, question.rows))
        if isinstance(question, ChangeSettings):
            forecaster.configure(question.settings, question.private)
        elif isinstance(question, UseVersion):
            assert self._artefacts is not None
            self._artefacts = self._artefacts.refitted(_folder(question.version))
            forecaster.adopt(self._artefacts)
        elif isinstance(question, ForgetLearned):
            forecaster.forget()
        return ChildAnswer()

    def _open(self, setup: ChildSetup) -> None:
        settings = setup.settings
        self._artefacts = Artefacts(
            *(Path(setup.folder), settings.embedding_model_name, settings.max_encoder_tokens),
            exported=exported_folder(settings.models_path),
        ).refitted(_folder(setup.version))
        self._forecaster = LearningForecaster(
            settings, self._artefacts, setup.key, setup.prices, setup.private
        )
        stored = setup.calibration
        self._restored = stored is None or self._forecaster.residuals.restore(stored)

    def _worked(
        self,
        forecaster: LearningForecaster,
        question: MakeForecast | LearnLessons | DraftRows,
    ) -> ChildAnswer:
        if self._begins_work is not None:
            begins_work, self._begins_work = self._begins_work, None
            begins_work()
        if isinstance(question, MakeForecast):
            return ChildAnswer(workload=forecaster.forecast(question.view))
        make = forecaster.learn if isinstance(question, LearnLessons) else forecaster.draft
        return ChildAnswer(rows=[_tried(make, lesson) for lesson in question.lessons])


def _folder(version: str) -> Path | None:
    return Path(version) if version else None


def _tried(make: Callable[[Lesson], HistoryRow], lesson: Lesson) -> HistoryRow | str:
    try:
        return make(lesson)
    except Exception as error:
        return _described(error)


def _fill(forecaster: LearningForecaster, rows: list[HistoryRow]) -> int:
    """Put rows into the index; the number that could not be read and were skipped."""
    bad = 0
    for row in rows:
        try:
            forecaster.remember(row)
        except Exception:
            bad += 1
    return bad


def _described(error: Exception) -> str:
    """A traceback: lines of code and the error's kind, no prompt."""
    return "".join([*traceback.format_tb(error.__traceback__)[-6:], type(error).__name__])
