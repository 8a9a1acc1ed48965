"""Client of the predictor's child process: starts it, asks it, ends it.

Everything runs on the event loop. One question is under way at a time, so no more than one
frame is buffered on its way to a child that does not read. A child that ends, or is silent for
longer than the question may take, is given up: a late answer would be taken for the next
question's.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

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

    async def close(self) -> None:
        """End the child; does not raise."""
        ...


Connect = Callable[[], Awaitable[ChildLink]]
"""Starts a child. Raises ChildGone."""


class ChildClient:
    """A running child process and the socket to it; made by `start_child`."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._in_step = True  # no answer is owed

    def __repr__(self) -> str:
        return f"<ChildClient pid={self.pid} in_step={self._in_step}>"

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
        """Ask one question and await its answer.

        Raises:
            ChildGone: the child has ended, sent something else, or took longer than `timeout_s`.
                Every later call raises it, too.
        """
        if not self._in_step:
            raise ChildGone("it was given up")
        frame = framed(encoded(question))
        self._in_step = False
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.write(frame)
                await self._writer.drain()
                size = payload_size(await self._reader.readexactly(HEAD_BYTES))
                answer = answer_decoder.decode(await self._reader.readexactly(size))
        except TimeoutError:
            raise ChildGone("no answer in time") from None
        except asyncio.IncompleteReadError:
            raise ChildGone("it has ended") from None
        except OSError as error:
            raise ChildGone(f"it has closed: {error.strerror or error}") from None
        except msgspec.DecodeError as error:
            raise ChildGone(f"what came is no answer: {error}") from None
        self._in_step = True
        return answer

    async def close(self) -> None:
        """End the child's input, which ends it; kill it where it takes longer than
        `LAST_WORDS_S`."""
        self._writer.transport.abort()
        await asyncio.to_thread(_reap, self._process)


async def start_child(
    command: Sequence[str], environ: Mapping[str, str] = os.environ
) -> ChildClient:
    """Start the child process.

    Args:
        command: runs `run` of worker.py.
        environ: the child gets what `ENVIRONMENT` names of it.

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
    try:
        return ChildClient(process, *await asyncio.open_unix_connection(sock=ours))
    except BaseException:
        ours.close()
        await asyncio.to_thread(_reap, process)
        raise


def _spawn(
    command: Sequence[str], end: socket.socket, environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    allowed = {name: value for name, value in environ.items() if name in ENVIRONMENT}
    return subprocess.Popen(command, stdin=end.fileno(), stdout=end.fileno(), env=allowed)


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(LAST_WORDS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
