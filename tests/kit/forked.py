"""Processes forked from a server that has imported the gateway: starts without the imports.

A start of `python -m gateway serve` is half a second of imports, and the integration tests start
two hundred. Here `multiprocessing`'s fork server imports the gateway once in each test worker, and
every process is a fork of it. What then runs is the same: a process with a session, a folder, an
environment and an output of its own, that executes the module as `__main__`. Tests of the command
line itself, and measurements, start real ones.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import gateway

ROOT = Path(__file__).resolve().parents[2]
FORKS = sys.platform == "linux"  # elsewhere native libraries do not bear a fork

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.kit.preloaded", "tests.kit.forked"])


class ForkedProcess:
    """A forked `python -m MODULE ARGUMENTS`, with the members of `Popen` that the kit uses.

    Raises:
        AssertionError: the gateway under test is not this repository's.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], cwd: Path, env: dict[str, str]
    ) -> None:
        read_fd, write_fd = os.pipe()
        try:
            self._process = _context.Process(
                target=_run,
                args=(_Output(write_fd), module, list(arguments), str(cwd), env),
                daemon=True,
            )
            self._process.start()
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        self.stdout = open(read_fd, encoding="utf-8", errors="replace")  # noqa: SIM115
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __repr__(self) -> str:
        return f"<ForkedProcess {self.pid}: {self.returncode}>"

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Exit code. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(repr(self), timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


class _Output:
    """A file descriptor on its way into the forked process."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _Output._received, (DupFd(self.fd),)

    @staticmethod
    def _received(sent: Any) -> _Output:
        return _Output(sent.detach())


def _run(output: _Output, module: str, arguments: list[str], cwd: str, env: dict[str, str]) -> None:
    """The forked process: become what `python -m module` would have been."""
    os.setsid()
    for fd in (1, 2):
        os.dup2(output.fd, fd)
    os.close(output.fd)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    assert gateway.__file__ is not None
    assert Path(gateway.__file__).is_relative_to(ROOT), "run the tests in the repository's root"
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
