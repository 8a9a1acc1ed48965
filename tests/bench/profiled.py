"""A gateway whose event loop can be sampled; layers.py starts it, nobody else has a use for it.

    BENCH_PROFILE=FILE python tests/bench/profiled.py serve --config gateway.toml

SIGUSR1 begins to sample, the next one ends it and writes FILE: one JSON object, `stacks` being
`[count, entered, ["file|function", …]]`, innermost first. The clock is the CPU time of the loop's
thread, so neither waiting nor the store's thread is in it; the kernel looks at it at each tick,
which is some 250 samples a second of work. Python runs the handler between two instructions: what
a C function spent is its caller's, and what uvloop spent falls on the function it calls next, at
its first instruction. `entered` marks those.
"""

from __future__ import annotations

import ctypes
import dis
import json
import os
import runpy
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

PERIOD_NS = 1_000_000  # finer than a tick: every tick counts
RESUME = dis.opmap["RESUME"]


class _Interval(ctypes.Structure):
    """struct itimerspec."""

    _fields_ = tuple(
        (name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")
    )


class _Notice(ctypes.Structure):
    """struct sigevent: SIGEV_SIGNAL is 0."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("number", ctypes.c_int),
        ("how", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    )


class Sampler:
    """Counts of the stacks seen at the ticks of the main thread's CPU clock."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: Counter[tuple[bool, tuple[CodeType, ...]]] = Counter()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        notice = _Notice(number=signal.SIGPROF)
        clock = time.CLOCK_THREAD_CPUTIME_ID
        if self._libc.timer_create(clock, ctypes.byref(notice), ctypes.byref(self._timer)):
            raise OSError(ctypes.get_errno(), "timer_create")
        self._on = False
        signal.signal(signal.SIGPROF, self._sample)
        signal.signal(signal.SIGUSR1, self._turn)

    def _turn(self, number: int, frame: FrameType | None) -> None:
        self._on = not self._on
        period_ns = PERIOD_NS if self._on else 0
        setting = _Interval(0, period_ns, 0, period_ns)
        self._libc.timer_settime(self._timer, 0, ctypes.byref(setting), None)
        if self._on:
            self._seen.clear()
        else:
            self._write()

    def _sample(self, number: int, frame: FrameType | None) -> None:
        codes: list[CodeType] = []
        entered = (
            frame is not None
            and frame.f_code.co_code[frame.f_lasti] == RESUME
            and (frame.f_back is None or frame.f_back.f_code.co_name == "run")
        )
        while frame is not None:
            codes.append(frame.f_code)
            frame = frame.f_back
        self._seen[entered, tuple(codes)] += 1

    def _write(self) -> None:
        stacks = [
            (count, entered, [f"{code.co_filename}|{code.co_qualname}" for code in codes])
            for (entered, codes), count in self._seen.items()
        ]
        ready = self._file.with_suffix(".part")
        ready.write_text(json.dumps({"stacks": stacks}), encoding="utf-8")
        ready.replace(self._file)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules are nobody's top-level ones
    sampler = Sampler(Path(os.environ["BENCH_PROFILE"]))
    runpy.run_module("gateway", run_name="__main__", alter_sys=True)
