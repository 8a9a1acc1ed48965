"""Gateways under measurement: of this checkout or of another revision, pinned to a core.

A revision is checked out in a temporary folder; where its lock is not this one's, its packages are
installed in an environment that stays in the system's temporary folder for the next run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.cores import on_core
from tests.kit.gateway import ROOT, GatewayProcess, account

WIDE = 1_000_000_000  # of a budget: nothing has to wait
MODEL = "mock-model"
SLOW_MODEL, PACED_MODEL = "mock-slow-model", "mock-paced-model"


class Revision(NamedTuple):
    """Code, and an interpreter that has its packages."""

    name: str
    root: Path
    python: str


HERE = Revision("this", ROOT, sys.executable)


def interpreter(python: str) -> Revision:
    """This checkout on another interpreter, named after its version; it has the packages."""
    ask = [python, "-c", "import platform; print(platform.python_version())"]
    done = subprocess.run(ask, stdout=subprocess.PIPE, text=True, check=True)
    return Revision(f"Python {done.stdout.strip()}", ROOT, python)


@contextmanager
def revision(name: str) -> Iterator[Revision]:
    """Any name that git knows, checked out for the time of the block.

    Raises:
        subprocess.CalledProcessError: git does not know it, or its packages cannot be had.
    """
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder) / "checkout"
        subprocess.run([*git, "add", "--quiet", "--detach", str(root), name], check=True)
        try:
            yield Revision(name, root, _python(root))
        finally:
            subprocess.run([*git, "remove", "--force", str(root)], check=True)


def _python(root: Path) -> str:
    lock = (root / "requirements.lock").read_bytes()
    if lock == (ROOT / "requirements.lock").read_bytes():
        return sys.executable
    key = hashlib.sha256(lock + sys.version.encode() + sys.prefix.encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"sagesched-bench-{key}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        sys.stderr.write(f"installing the packages of {root.name} into {folder}\n")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-qq", "install"]
        lock_file = str(root / "requirements.lock")
        subprocess.run([*pip, "--require-hashes", "-r", lock_file], check=True)
        (folder / "ready").touch()
    return str(python)


class MeasuredGateway(GatewayProcess):
    """A gateway of a revision. Its log is read and thrown away once it listens.

    Args:
        script: what is run in the place of `-m gateway`.
    """

    def __init__(
        self,
        directory: Path,
        of: Revision = HERE,
        *,
        script: Path | None = None,
        **more: Any,
    ) -> None:
        super().__init__(directory, **more)
        self.of = of
        self._run = [str(script)] if script else ["-m", "gateway"]
        self.start_s = 0.0  # from the process's start to "listening"

    def start(self) -> None:
        began_s = time.perf_counter()
        super().start()
        self.start_s = time.perf_counter() - began_s

    def _started(self, arguments: Sequence[str], env: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.of.python, *self._run, *arguments],
            cwd=self.directory,
            env={**env, "PYTHONPATH": str(self.of.root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that `kill` reaches its child, too
        )

    def _listen(self) -> None:
        """As the kit does until it listens, then in blocks: a line each would cost the load's
        core as much as the load."""
        assert self.process is not None
        assert self.process.stdout is not None
        stdout = self.process.stdout
        for line in stdout:
            with self._heard:
                self.output.append(line.rstrip("\n"))
                self._heard.notify_all()
            if '"listening"' in line:
                break
        while block := os.read(stdout.fileno(), 1 << 16):
            self.output[1:] = [block.decode(errors="replace")]
        with self._heard:
            self._deaf = True
            self._heard.notify_all()


@contextmanager
def measured_gateway(
    upstream_port: int,
    core: int | None,
    *,
    predict: bool,
    of: Revision = HERE,
    history: Path | None = None,
    window: str = "auto",
    **more: Any,
) -> Iterator[MeasuredGateway]:
    """A gateway in front of the mock, budgets and limits wide open.

    Args:
        core: it and its child stay there; None: anywhere.
        history: a store to begin with, copied.
        window: of the account, as in the settings; "off": all are let through at once.
    """
    with ExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        here = account(
            f"http://127.0.0.1:{upstream_port}/v1",
            models=[MODEL, SLOW_MODEL, PACED_MODEL],
            initial_concurrency=10_000,
            max_concurrency=10_000,
        )
        gateway = MeasuredGateway(
            directory,
            of,
            accounts=[here],
            schedule={"interactive_inflight_tokens": WIDE, "heavy_inflight_tokens": WIDE},
            predict={"enabled": predict},
            balance={"window": window},
            start_timeout_s=60.0,
            **more,
        )
        if history is not None:
            shutil.copy(history, directory / "sagesched.db")
        with on_core(core):
            running.enter_context(gateway)
        yield gateway
