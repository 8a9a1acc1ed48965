"""Client of the predictor's child process: starts it, asks it, ends it.

Everything runs on the event loop. One question is under way at a time, so no more than one
frame is buffered on its way to a child that does not read. A child that ends, or is silent for
longer than the question may take, is given up: a late answer would be taken for the next
question's. One that waits for the processor is waited for: it gives way to the gateway, and a
gateway that is busy for long must not kill it for that.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Protocol, cast

import msgspec

from gateway.predict.process.wire import (
    HEAD_BYTES,
    ChildAnswer,
    ChildGone,
    Question,
    answer_decoder,
    encoded,
    framed,
    payload_size,
)

STARVED = 0.5  # of a time limit: a child that got less of the processor has not hung
STOPPED_S = 1.0  # late for a time limit: the machine, or this process, was stopped meanwhile
LAST_WORDS_S = 2.0  # from the end of its input to the child's own
ENVIRONMENT = frozenset(
    {"PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "HOME", "TMPDIR"}
    | {"LANG", "LC_ALL", "TZ", "SYSTEMROOT"}
    | {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_CORETYPE"}
)
"""Variables of the environment that the child gets: no secrets, but the numeric libraries'
choices, or the same sums would end in other last bits than here."""


class ChildLink(Protocol):
    """Connection to a child: the real one's is `ChildClient`."""

    async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
        """Ask one question and await its answer. Raises ChildGone."""
        ...

    def watch(self, gone: Callable[[str], object]) -> None:
        """Have this called, with the reason, when the child ends by itself or is given up."""
        ...

    async def close(self) -> None:
        """End the child; does not raise."""
        ...


Connect = Callable[[], Awaitable[ChildLink]]
"""Starts a child. Raises ChildGone."""


class ChildClient(asyncio.Protocol):
    """A running child process and the socket to it; made by `start_child`."""

    def __init__(self, process: subprocess.Popen[bytes], last_words_s: float) -> None:
        self._process = process
        self._last_words_s = last_words_s
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._payload: asyncio.Future[bytes] | None = None  # of the answer that is owed
        self._timer: asyncio.TimerHandle | None = None  # of the answer that is owed
        self._why_gone = ""  # a reason: nothing more is asked
        self._gone: Callable[[str], object] = lambda why: None

    def __repr__(self) -> str:
        return f"<ChildClient pid={self.pid} gone={self._why_gone!r}>"

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
        """Ask one question and await its answer.

        Raises:
            ChildGone: the child has ended, sent something else, or took longer than `timeout_s`.
                Every later call raises it, too.
        """
        if self._why_gone or self._payload is not None or self._transport is None:
            raise ChildGone(self._why_gone or "it was given up")
        frame = framed(encoded(question))
        loop = asyncio.get_running_loop()
        payload = self._payload = loop.create_future()
        self._transport.write(frame)
        self._wait_for(timeout_s, _cpu_s(self.pid))
        try:
            answer = answer_decoder.decode(await payload)
        except msgspec.DecodeError as error:
            self._give_up(f"what came is no answer: {error}")
            raise ChildGone(self._why_gone) from None
        finally:
            assert self._timer is not None
            self._timer.cancel()
        self._payload = None
        return answer

    def watch(self, gone: Callable[[str], object]) -> None:
        """Have this called, with the reason, when the child ends by itself or is given up."""
        self._gone = gone

    async def close(self) -> None:
        """End the child's input, which ends it; kill it where it takes longer than
        `last_words_s`."""
        if self._transport is not None:
            self._transport.abort()
        await asyncio.to_thread(_reap, self._process, self._last_words_s)

    # --- asyncio.Protocol -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is of no common class

    def data_received(self, data: bytes) -> None:
        """Collect an answer, which may come in any pieces. Unasked for, nothing is collected."""
        if self._payload is None or self._payload.done():
            self._give_up("it wrote without a question")
            if self._transport is not None:
                self._transport.abort()
            return
        self._received += data
        if len(self._received) < HEAD_BYTES:
            return
        try:
            end = HEAD_BYTES + payload_size(bytes(self._received[:HEAD_BYTES]))
        except ChildGone as error:
            self._give_up(str(error))
            return
        if len(self._received) >= end:
            self._payload.set_result(bytes(self._received[HEAD_BYTES:end]))
            self._received.clear()

    def connection_lost(self, error: Exception | None) -> None:
        self._give_up("it has ended")

    def _wait_for(self, timeout_s: float, before_s: float) -> None:
        """Give the child up after so long, unless it could run then and was hardly let since it
        was asked, or this process was stopped itself. `before_s`: CPU time it had used then."""
        due_s = monotonic() + timeout_s

        def overdue() -> None:
            starved = _is_runnable(self.pid) and _cpu_s(self.pid) - before_s < STARVED * timeout_s
            if starved or monotonic() - due_s > STOPPED_S:
                self._wait_for(timeout_s, before_s)
            else:
                self._give_up("no answer in time")

        self._timer = asyncio.get_running_loop().call_later(timeout_s, overdue)

    def _give_up(self, why: str) -> None:
        if not self._why_gone:
            self._why_gone = why
            self._gone(why)
        if self._payload is not None and not self._payload.done():
            self._payload.set_exception(ChildGone(why))


def _cpu_s(pid: int) -> float:
    """CPU time of the process in seconds; 0 where it is not known (proc(5), schedstat)."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _is_runnable(pid: int) -> bool:
    """True where the process runs or waits for a core, and for nothing else."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "R"
    except (OSError, IndexError):
        return False


async def start_child(
    command: Sequence[str],
    environ: Mapping[str, str] = os.environ,
    last_words_s: float = LAST_WORDS_S,
) -> ChildClient:
    """Start the child process.

    Args:
        command: runs `run` of worker.py.
        environ: the child gets what `ENVIRONMENT` names of it.
        last_words_s: time that it has to end by itself when it is closed.

    Raises:
        ChildGone: it cannot be started.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            # On this thread, not on a worker's: the child ends with the thread that started it.
            process = _spawn(command, theirs, environ)
        except OSError as error:
            ours.close()
            raise ChildGone(f"it cannot be started: {error.strerror}") from None
    client = ChildClient(process, last_words_s)
    try:
        await asyncio.get_running_loop().create_unix_connection(lambda: client, sock=ours)
        return client
    except BaseException:
        ours.close()
        await asyncio.to_thread(_reap, process, last_words_s)
        raise


def _spawn(
    command: Sequence[str], end: socket.socket, environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    allowed = {name: value for name, value in environ.items() if name in ENVIRONMENT}
    return subprocess.Popen(command, stdin=end.fileno(), stdout=end.fileno(), env=allowed)


def _reap(process: subprocess.Popen[bytes], last_words_s: float) -> None:
    try:
        process.wait(last_words_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
