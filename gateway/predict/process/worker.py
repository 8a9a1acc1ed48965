"""The predictor's child process: encoder, index and boosters, away from the event loop.

Why a process. The libraries give the interpreter lock free while they compute, but what
lies between them does not, and the loop waits for the lock: on two cores at 200 requests a second
a thread raised p99 by 15 to 20 ms, a process by some 8 in the middle of runs that differ as
much among themselves (tests/bench/RESULTS.md). A process can also be given a low priority
without holding the lock while it waits for its turn, can be killed when it hangs, and may
crash in native code without taking a request along.

It answers one question at a time (wire.py) from its standard input to its standard output
until the first is closed. Where the system allows it, the end of whoever started it ends it
at once, however busy it is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import msgspec

from gateway.predict.calibrate import Changes
from gateway.predict.process.backend import BackendGone, Local
from gateway.predict.process.wire import (
    Adopt,
    Answer,
    Configure,
    Draft,
    Forecast,
    Forget,
    Frames,
    Learn,
    Open,
    Question,
    Remember,
    encoder,
    question_decoder,
)

NICE = 7
"""On a core that both want, the loop keeps 83 % of it (weights 1024 : 215, sched(7)). At 19 it has
98 %, which it has no use for, and beside a busy neighbour a forecast of 6 ms takes 400 ms and more;
at 7 some 40. Measured in tests/bench/RESULTS.md."""
OOM_SCORE = "500"  # sooner than the gateway, where memory runs out


def run() -> int:
    """Be the child; the exit code."""
    # Signals to the process group are the gateway's: it closes our input when it is done.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    # Libraries print to standard output at will: it is theirs no more.
    write_fd = os.dup(1)
    os.dup2(2, 1)
    serve(Frames(0, write_fd))
    return 0


def serve(frames: Frames) -> None:
    """Answer until the other side closes."""
    desk = Desk()
    while True:
        try:
            payload = frames.receive(None)
        except BackendGone:
            return
        answer = desk.answer(payload)
        try:
            frames.send(encoder.encode(answer), None)
        except BackendGone:
            return


def _die_with_parent() -> None:
    """On Linux (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _give_way() -> None:
    """Lower priority from now on: opening at it would take long beside busy neighbours."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)


class Desk:
    """Questions in, answers out, around a `Local`."""

    def __init__(self) -> None:
        self._backend: Local | None = None
        self._at_work = False

    def answer(self, payload: bytes) -> Answer:
        """Never raises: what failed is said, and the next question is heard."""
        try:
            said = self._said(question_decoder.decode(payload))
        except Exception as error:
            said = Answer(error=_told(error))
        if self._backend is None:
            return said
        changes: Changes | None = self._backend.changes()
        if changes is not None and not (
            changes.whole or changes.models or changes.templates or changes.levels
        ):
            changes = None
        return msgspec.structs.replace(said, about=self._backend.about, changes=changes)

    def _said(self, question: Question) -> Answer:
        if isinstance(question, Open):
            self._backend = Local(question.setup)
            return Answer()
        backend = self._backend
        assert backend is not None, "nothing is opened yet"
        if isinstance(question, Forecast | Learn | Draft) and not self._at_work:
            self._at_work = True
            _give_way()
        if isinstance(question, Forecast):
            return Answer(workload=backend.forecast(question.view))
        if isinstance(question, Learn | Draft):
            make = backend.learn if isinstance(question, Learn) else backend.draft
            rows = make(question.lessons)
            return Answer(rows=[_told(x) if isinstance(x, Exception) else x for x in rows])
        if isinstance(question, Remember):
            return Answer(bad=backend.remember(question.rows))
        if isinstance(question, Configure):
            backend.configure(question.settings, question.private)
        elif isinstance(question, Adopt):
            backend.adopt(question.version)
        elif isinstance(question, Forget):
            backend.forget()
        return Answer()


def _told(error: Exception) -> str:
    """A traceback: lines of code and the error's kind, no prompt."""
    return "".join([*traceback.format_tb(error.__traceback__)[-6:], type(error).__name__])
