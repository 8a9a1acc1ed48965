"""The predictor's child process: encoder, index and boosters, away from the event loop.

It is a process and no thread because the numeric libraries hold the interpreter lock between
their computations, and the event loop waits for that lock. A process can also be given a low
priority, can be killed when it hangs, and may crash in native code without taking a request
along. What it brings is measured in tests/bench/RESULTS.md.

It answers one question at a time (wire.py) from its standard input to its standard output,
until the first is closed, and learns in between (background_learning.py), so that a forecast waits
for one lesson at most. On Linux the end of the gateway ends it at once, however busy it is.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import BinaryIO

from msgspec import structs

from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import Changes
from gateway.predict.encoder import exported_folder
from gateway.predict.process.background_learning import (
    BackgroundLearning,
    NoHistory,
    RowWriter,
    described,
)
from gateway.predict.process.priority import lower_priority
from gateway.predict.process.wire import (
    ChangeSettings,
    ChildAnswer,
    ChildSetup,
    ChildStatus,
    FillIndex,
    FinishLessons,
    MakeForecasts,
    OpenModels,
    Question,
    StoreLessons,
    TakeLessons,
    TellMore,
    UseVersion,
    framed,
    in_pieces,
    message_encoder,
    question_decoder,
    read_frame,
)
from gateway.predict.prompt_view import PromptView
from gateway.predict.teaching import LearningForecaster
from gateway.types import HistoryRow, Workload

OpenHistory = Callable[[str], RowWriter]
"""Opens the history of a store's file. Raises what keeps it from being written."""
OOM_SCORE = "500"  # sooner than the gateway, where memory runs out


def run(open_history: OpenHistory) -> int:
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
        serve(questions, answers, open_history)
    return 0


def serve(questions: BinaryIO, answers: BinaryIO, open_history: OpenHistory) -> None:
    """Answer until the questions end, and work in between. Raises OSError where the answers cannot
    be written."""
    host = ModelHost(lower_priority, open_history)
    coming = select.poll()
    coming.register(questions, select.POLLIN)
    pause_s: float | None = None
    while True:
        # A frame is never read ahead: the next question comes after the answer to the last.
        if not coming.poll(None if pause_s is None else 1000.0 * pause_s):
            pause_s = host.work()
            continue
        if (payload := read_frame(questions)) is None:
            break
        answers.write(framed(message_encoder.encode(host.answer(payload))))
        answers.flush()
        pause_s = 0.0
    host.close()


def _die_with_parent() -> None:
    """Have this process killed when its parent ends; Linux alone (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class ModelHost:
    """The models, the answers they give to questions, and what they learn.

    Args:
        lower: lowers the priority, and names the new one; called once, before the first forecast
            or lesson. Opening comes before it: that would take long beside busy neighbours.
        open_history: opens the store's file.
    """

    def __init__(self, lower: Callable[[], str], open_history: OpenHistory) -> None:
        self._lower = lower
        self._priority = ""
        self._open_history = open_history
        self._artefacts: Artefacts | None = None
        self._forecaster: LearningForecaster | None = None
        self._learning: BackgroundLearning | None = None
        self._unsent: list[Changes] = []  # of the calibration
        self._restored = True
        self._problems: list[str] = []

    def work(self) -> float | None:
        """Learn one lesson; seconds until there may be more to do, None where there is nothing."""
        return None if self._learning is None else self._learning.step()

    def close(self) -> None:
        """Store what was learned. Blocks."""
        if self._learning is not None:
            self._learning.close()

    def answer(self, payload: bytes) -> ChildAnswer:
        """Answer an encoded question; what fails is the answer's `error`."""
        try:
            answer = self._answered(question_decoder.decode(payload))
        except Exception as error:
            answer = ChildAnswer(error=described(error))
        forecaster, artefacts = self._forecaster, self._artefacts
        if forecaster is None or artefacts is None:
            return answer
        residuals = forecaster.residuals
        if not self._unsent:
            self._unsent = in_pieces(residuals.changes())
        changes = self._unsent.pop(0)
        moved = changes.complete or changes.models or changes.templates or changes.levels
        status = ChildStatus(
            encoder=artefacts.encoder_name,
            rows=forecaster.rows,
            cpu_s=time.process_time(),
            drifts=residuals.drifts,
            priority=self._priority,
            problems=(*artefacts.problems, *self._problems),
            restored=self._restored,
        )
        return structs.replace(
            answer,
            status=status,
            changes=changes if moved else None,
            more=bool(self._unsent),
        )

    def _answered(self, question: Question) -> ChildAnswer:
        if isinstance(question, OpenModels):
            self._open(question.setup)
            return ChildAnswer()
        forecaster, learning = self._forecaster, self._learning
        assert forecaster is not None, "nothing is opened yet"
        assert learning is not None
        if isinstance(question, MakeForecasts):
            self._begin_work()
            workloads = [_tried(forecaster, view) for view in question.views]
            learning.excuse()
            return ChildAnswer(workloads=workloads)
        if isinstance(question, TakeLessons | StoreLessons | FinishLessons):
            self._begin_work()
            return _taught(learning, question)
        if isinstance(question, FillIndex):
            bad = _fill(forecaster, question.rows)
            learning.excuse()
            return ChildAnswer(bad=bad)
        if isinstance(question, TellMore):
            return ChildAnswer()
        learning.forget_repeats()
        if isinstance(question, ChangeSettings):
            forecaster.configure(question.settings, question.private)
        elif isinstance(question, UseVersion):
            assert self._artefacts is not None
            self._artefacts = self._artefacts.refitted(_folder(question.version))
            forecaster.adopt(self._artefacts)
        else:
            learning.forget()
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
        history = self._opened_history(setup.store)
        self._learning = BackgroundLearning(self._forecaster, setup.key, history, Random())
        stored = setup.calibration
        self._restored = stored is None or self._forecaster.residuals.restore(stored)

    def _opened_history(self, path: str) -> RowWriter:
        """The history; one that refuses all rows where there is no store, or it is unusable."""
        if not path:
            return NoHistory("there is no store")
        try:
            return self._open_history(path)
        except Exception as error:
            self._problems.append(f"no history is stored: {error}")
            return NoHistory(str(error))

    def _begin_work(self) -> None:
        if not self._priority:
            self._priority = self._lower()


def _folder(version: str) -> Path | None:
    return Path(version) if version else None


def _taught(
    learning: BackgroundLearning, question: TakeLessons | StoreLessons | FinishLessons
) -> ChildAnswer:
    if isinstance(question, TakeLessons):
        learning.take_in(question.lessons, question.cpu_share)
    elif isinstance(question, StoreLessons):
        learning.store(question.lessons)
    else:
        learning.finish()
    return ChildAnswer(report=learning.report())


def _tried(forecaster: LearningForecaster, view: PromptView) -> Workload | str:
    try:
        return forecaster.forecast(view)
    except Exception as error:
        return described(error)


def _fill(forecaster: LearningForecaster, rows: list[HistoryRow]) -> int:
    """Put rows into the index; the number that could not be read and were skipped."""
    bad = 0
    for row in rows:
        try:
            forecaster.remember(row)
        except Exception:
            bad += 1
    return bad
