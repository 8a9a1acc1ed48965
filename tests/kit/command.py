"""One command of the program run to its end: its exit code, its output, its errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gateway.settings.load import ENVIRONMENT, IGNORED_ENVIRONMENT
from tests.kit.forked import FORKS, ROOT, run_forked


def sagesched(
    *arguments: str, cwd: Path = ROOT, forked: bool = True, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `sagesched ARGUMENTS` without the gateway's own variables but those given.

    Args:
        forked: without the imports of a start (tests/kit/forked.py).
    """
    own = {*ENVIRONMENT, *IGNORED_ENVIRONMENT}
    clean = {k: v for k, v in os.environ.items() if k not in own}
    environ = {**clean, "PYTHONPATH": str(ROOT), **env}
    if forked and FORKS:
        return run_forked("gateway", arguments, cwd, environ)
    command = [sys.executable, "-m", "gateway", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
