"""What the predictor's thread and its child process say to each other.

MessagePack frames with a length before each, over two pipes: one question, one answer, never
two at once. Nothing of it leaves the machine or outlives the process, so it has no versions.
"""

from __future__ import annotations

import os
import select
import time

import msgspec
from msgspec import Struct

from gateway.predict.calibrate import Changes
from gateway.predict.lesson import Lesson
from gateway.predict.process.backend import About, BackendGone, Setup
from gateway.predict.view import PromptView
from gateway.settings.schema import Predict
from gateway.types import HistoryRow, Workload

HEAD_BYTES = 4
MOST_BYTES = 1 << 30
PART_BYTES = 1 << 20


class Open(Struct, frozen=True, tag=True):
    setup: Setup


class Forecast(Struct, frozen=True, tag=True):
    view: PromptView


class Learn(Struct, frozen=True, tag=True):
    lessons: list[Lesson]


class Draft(Struct, frozen=True, tag=True):
    lessons: list[Lesson]


class Remember(Struct, frozen=True, tag=True):
    rows: list[HistoryRow]


class Configure(Struct, frozen=True, tag=True):
    settings: Predict
    private: frozenset[str]


class Adopt(Struct, frozen=True, tag=True):
    version: str


class Forget(Struct, frozen=True, tag=True):
    pass


Question = Open | Forecast | Learn | Draft | Remember | Configure | Adopt | Forget


class Answer(Struct, frozen=True, omit_defaults=True):
    """To any question; what it does not ask for is None."""

    about: About = About()
    changes: Changes | None = None  # in the calibration; None: nothing moved
    workload: Workload | None = None
    rows: list[HistoryRow | str] = []  # a string: what went wrong
    bad: int = 0  # rows that could not be read
    error: str | None = None  # a traceback


question_decoder = msgspec.msgpack.Decoder(Question)
answer_decoder = msgspec.msgpack.Decoder(Answer)
encoder = msgspec.msgpack.Encoder()


class Frames:
    """Frames over a pair of pipe ends, of which each call waits at most so long.

    Raises BackendGone: the other side closed, or said nothing in time.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(read_fd, select.POLLIN | select.POLLHUP)
        self._writable.register(write_fd, select.POLLOUT | select.POLLERR)

    def send(self, payload: bytes, timeout_s: float | None) -> None:
        until = _until(timeout_s)
        left = memoryview(len(payload).to_bytes(HEAD_BYTES, "big") + payload)
        while left:
            _wait(self._writable, until)
            try:
                left = left[os.write(self._write_fd, left) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise BackendGone(f"closed: {error.strerror}") from None

    def receive(self, timeout_s: float | None) -> bytes:
        until = _until(timeout_s)
        size = int.from_bytes(self._exactly(HEAD_BYTES, until), "big")
        if size > MOST_BYTES:
            raise BackendGone("what came is no frame")
        return self._exactly(size, until)

    def _exactly(self, size: int, until: float | None) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            _wait(self._readable, until)
            try:
                part = os.read(self._read_fd, min(size - len(parts), PART_BYTES))
            except BlockingIOError:
                continue
            except OSError as error:
                raise BackendGone(f"closed: {error.strerror}") from None
            if not part:
                raise BackendGone("the other side has ended")
            parts += part
        return bytes(parts)


def _until(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _wait(poll: select.poll, until: float | None) -> None:
    left_ms = None if until is None else max(0.0, until - time.monotonic()) * 1000
    if not poll.poll(left_ms):
        raise BackendGone("no answer in time")
