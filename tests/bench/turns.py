"""One turn of a bench: the load generator in a process of its own, and its report."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.cores import on_core
from tests.kit.gateway import TENANT_KEY

FOLDER = Path(__file__).resolve().parent


@contextmanager
def mock(core: int | None) -> Iterator[tuple[int, int]]:
    """The provider's port and process id."""
    command = [sys.executable, str(FOLDER / "mock_upstream.py")]
    with on_core(core):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.terminate()
        process.communicate()


def load(
    port: int, how: Sequence[str], seconds: float, seed: int, core: int | None = None
) -> dict[str, Any]:
    """One run of the load generator, on `core`; its report, every single time in it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        out = Path(folder) / "report"
        command = [sys.executable, str(FOLDER / "load.py"), "--port", str(port), *how, "--all"]
        command += ["--key", TENANT_KEY, "--seconds", str(seconds), "--seed", str(seed)]
        with on_core(core):
            process = subprocess.Popen([*command, "--out", str(out)])
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)
        report: dict[str, Any] = json.loads(out.read_bytes())
        return report
