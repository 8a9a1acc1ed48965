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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

    Args:
        split: standard error has a pipe of its own, `stderr`; else it goes into `stdout`.

    Raises:
        AssertionError: the gateway under test is not this repository's.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        *,
        split: bool = False,
    ) -> None:
        pipes = [os.pipe() for _ in range(2 if split else 1)]
        outputs = _Outputs([write_fd for _, write_fd in pipes])
        try:
            self._process = _context.Process(
                target=_run,
                args=(outputs, module, list(arguments), str(cwd), dict(env)),
                daemon=True,
            )
            self._process.start()
        except BaseException:
            for read_fd, _ in pipes:
                os.close(read_fd)
            raise
        finally:
            for fd in outputs.fds:
                os.close(fd)
        readers = [open(fd, encoding="utf-8", errors="replace") for fd, _ in pipes]  # noqa: SIM115
        self.stdout, self.stderr = readers[0], readers[-1]
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


def run_forked(
    module: str, arguments: Sequence[str], cwd: Path, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` with `capture_output` does."""
    process = ForkedProcess(module, arguments, cwd, env, split=True)
    with ThreadPoolExecutor(1) as pool, process.stdout, process.stderr:
        errors = pool.submit(process.stderr.read)
        output = process.stdout.read()
    return subprocess.CompletedProcess(
        [module, *arguments], process.wait(), output, errors.result()
    )


class _Outputs:
    """File descriptors for standard output and error on their way into the forked process."""

    def __init__(self, fds: list[int]) -> None:
        self.fds = fds

    def __reduce__(self) -> tuple[Any, ...]:
        return _Outputs._received, tuple(DupFd(fd) for fd in self.fds)

    @staticmethod
    def _received(*sent: Any) -> _Outputs:
        return _Outputs([one.detach() for one in sent])


def _run(
    outputs: _Outputs, module: str, arguments: list[str], cwd: str, env: dict[str, str]
) -> None:
    """The forked process: become what `python -m module` would have been."""
    os.setsid()
    for standard_fd, fd in ((1, outputs.fds[0]), (2, outputs.fds[-1])):
        os.dup2(fd, standard_fd)
    for fd in outputs.fds:
        os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    assert gateway.__file__ is not None
    assert Path(gateway.__file__).is_relative_to(ROOT), "run the tests in the repository's root"
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
