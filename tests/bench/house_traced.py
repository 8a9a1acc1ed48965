"""A gateway whose loop's thread can be traced: SIGUSR1 begins, SIGUSR2 writes what was called.

    TRACE_FILE=calls.json python -m tests.bench.house_traced serve --config gateway.toml

Written is a JSON list with one item a call into `gateway/`, in order: its file and its function.
The resumption of a coroutine counts as a call, the frame of a comprehension does not.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import gateway
from gateway.__main__ import main

ROOT = str(Path(gateway.__file__).parent) + os.sep
COMPREHENSIONS = frozenset({"<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>"})

calls: list[tuple[str, str]] = []


def _profile(frame: FrameType, event: str, argument: Any) -> None:
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(ROOT) and code.co_name not in COMPREHENSIONS:
        calls.append((code.co_filename[len(ROOT) :], code.co_qualname))


def _begin(number: int, frame: FrameType | None) -> None:
    calls.clear()
    sys.setprofile(_profile)


def _write(number: int, frame: FrameType | None) -> None:
    sys.setprofile(None)
    path = Path(os.environ["TRACE_FILE"])
    part = path.with_suffix(".part")
    part.write_text(json.dumps(calls))
    part.rename(path)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _begin)
    signal.signal(signal.SIGUSR2, _write)
    sys.exit(main())
