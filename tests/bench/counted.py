"""A gateway that counts its tasks and objects when asked; soak.py starts it.

    BENCH_COUNTS=FILE python tests/bench/counted.py serve --config gateway.toml

SIGUSR1 writes FILE: one JSON object with `tasks`, the tasks of the event loop, and `objects`, what
the collector tracks.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from types import FrameType


def count(number: int, frame: FrameType | None) -> None:
    """Written beside and moved there, so that a reader finds it whole."""
    file = Path(os.environ["BENCH_COUNTS"])
    gc.collect()
    found = {"tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects())}
    part = file.with_suffix(".part")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(file)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules are nobody's top-level ones
    signal.signal(signal.SIGUSR1, count)
    runpy.run_module("gateway", run_name="__main__", alter_sys=True)
