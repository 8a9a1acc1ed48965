"""Start of a command, the same for all entry points: threads, errors, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from gateway.errors import SettingsError

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def prepare_environment() -> None:
    """Set the numeric libraries' environment; to be called before any of them is imported.

    One thread each: several OpenMP and BLAS copies in one process fight over two cores, and
    every vector here is small.
    """
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # onnxruntime 1.32 reports every session to its maker unless this is set.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def exit_code(command: Callable[[], int]) -> int:
    """Run a command; its exit code, or 2 and one line on standard error for a SettingsError."""
    try:
        return command()
    except SettingsError as error:
        print(f"sagesched: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of `… | head` has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
