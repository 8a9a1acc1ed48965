"""A backend in a child process: started, asked, ended, and never waited for too long.

Used by the predictor's thread alone, except `calibration`, which the event loop reads. What
goes wrong with the child, its end or its silence, is one thing to the caller: BackendGone.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Mapping, Sequence

import msgspec

from gateway.predict.calibrate import Calibration, Mirror
from gateway.predict.lesson import Lesson
from gateway.predict.process.backend import About, BackendError, BackendGone, Setup
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
    answer_decoder,
    encoder,
)
from gateway.predict.view import PromptView
from gateway.settings.schema import Predict
from gateway.types import HistoryRow, Workload

OPEN_TIMEOUT_S = 120.0  # a cold disk, a busy machine
TIMEOUT_S = 30.0  # a forecast takes some 6 ms
LAST_WORDS_S = 2.0
ENVIRONMENT = frozenset(
    {"PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "HOME", "TMPDIR"}
    | {"LANG", "LC_ALL", "TZ", "SYSTEMROOT"}
    | {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_CORETYPE"}
)
"""Variables of the environment that the child gets: no secrets, but the numeric libraries'
choices, or the same sums would end in other last bits than here."""


class Remote:
    """Starts the child and opens its backend. Raises BackendGone, BackendError.

    Args:
        command: runs worker.py's `run`.
        environ: what the child may see of it is `ENVIRONMENT`.
        timeout_s: of one call; the first has longer.
    """

    def __init__(
        self,
        command: Sequence[str],
        setup: Setup,
        environ: Mapping[str, str] = os.environ,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._timeout_s = timeout_s
        self._gone = False
        self._mirror = Mirror()
        self._about = About()
        try:
            self._child = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={name: value for name, value in environ.items() if name in ENVIRONMENT},
            )
        except OSError as error:
            raise BackendGone(f"the predictor's process cannot start: {error.strerror}") from None
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._frames = Frames(self._child.stdout.fileno(), self._child.stdin.fileno())
        try:
            self._ask(Open(setup), OPEN_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def about(self) -> About:
        return self._about

    @property
    def calibration(self) -> Calibration:
        return self._mirror.table

    def forecast(self, view: PromptView) -> Workload:
        found = self._ask(Forecast(view)).workload
        assert found is not None
        return found

    def learn(self, lessons: Sequence[Lesson]) -> list[HistoryRow | Exception]:
        return self._rows(Learn(list(lessons)))

    def draft(self, lessons: Sequence[Lesson]) -> list[HistoryRow | Exception]:
        return self._rows(Draft(list(lessons)))

    def _rows(self, question: Learn | Draft) -> list[HistoryRow | Exception]:
        rows = self._ask(question).rows
        return [BackendError(row) if isinstance(row, str) else row for row in rows]

    def remember(self, rows: Sequence[HistoryRow]) -> int:
        return self._ask(Remember(list(rows))).bad

    def configure(self, settings: Predict, private: Collection[str]) -> None:
        self._ask(Configure(settings, frozenset(private)))

    def adopt(self, version: str) -> None:
        self._ask(Adopt(version))

    def forget(self) -> None:
        self._ask(Forget())

    def close(self) -> None:
        child = self._child
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        try:
            child.wait(LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _ask(self, question: Question, timeout_s: float | None = None) -> Answer:
        if self._gone:
            raise BackendGone("it was given up")
        payload, timeout_s = _encoded(question), timeout_s or self._timeout_s
        try:
            self._frames.send(payload, timeout_s)
            answer = answer_decoder.decode(self._frames.receive(timeout_s))
        except msgspec.DecodeError as error:
            self._gone = True
            raise BackendGone(f"what came is no answer: {error}") from None
        except BackendGone:
            self._gone = True  # a late answer would be taken for the next question's
            raise
        self._about = answer.about
        if answer.changes is not None:
            self._mirror.apply(answer.changes)
        if answer.error is not None:
            raise BackendError(answer.error)
        return answer


def _encoded(question: Question) -> bytes:
    try:
        return encoder.encode(question)
    except UnicodeEncodeError:  # lone surrogates are no Unicode text: "?" in their place
        return encoder.encode(_clean(question))


def _clean(value: object) -> object:
    """The same with every text valid."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, tuple):
        return tuple(map(_clean, value))
    if isinstance(value, list):
        return list(map(_clean, value))
    if isinstance(value, msgspec.Struct):
        fields = value.__struct_fields__
        return msgspec.structs.replace(
            value, **{name: _clean(getattr(value, name)) for name in fields}
        )
    return value
