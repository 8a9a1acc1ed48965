"""Latency and memory that prediction adds, with a full window, and what a refit adds to that.

Gateways (prediction off, prediction on) and all their children share one core; load generator
and provider the other. Targets take turns, times of all turns are pooled (overhead.py); the
provider answers at once, so all that is added is the gateway's.

1. Added p99, prediction on minus off, at each rate.
2. Memory: the proportional set size of the gateway's process and of its predictor's, idle,
   under load (the largest seen) and idle again. Pages of the interpreter and of libraries are
   shared by every Python process on the machine, so the sum of resident sizes stands beside.
3. Added p99 while `sagesched refit` works on the gateway's own history, over the same without.
   Both phases of a round have equally many turns; a refit begins from the shipped models each
   time, at the priority it gives itself, on the gateway's core. Taking its result into use is
   not part of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from gateway.workbench.tables import table
from tests.bench.cores import Unfit, check_load, children, on_core
from tests.bench.load import quantiles
from tests.bench.turns import DIRECT, OFF, ON, Cell, Cores, Row, Target, Turn, load, measure
from tests.kit.gateway import ROOT

RATES = (50, 200, 500)
REFIT_RATE = 200
SAMPLE_S = 0.25
REST_S = 3.0
BEGUN_S = 2.0  # a refit has read its rows by then, on an idle core


def cell(rate: int) -> Cell:
    return Cell(f"open loop, {rate}/s", ("--rate", str(rate), "--concurrency", "64"))


def check_rows(rows: Sequence[Row]) -> None:
    """Raises Unfit where generator and provider were too busy."""
    for row in rows:
        if row.target.kind != DIRECT:
            check_load(row.load_share, f"{row.cell.name}, {row.target.name}")


# --- memory -----------------------------------------------------------------------------------


class Memory(Struct, frozen=True):
    """MB of the gateway's process and of its children."""

    pss: tuple[float, float]
    rss: tuple[float, float]

    @property
    def total(self) -> float:
        return sum(self.pss)


def memory(pid: int) -> Memory:
    """Now."""
    own, rest = _sizes(pid), [_sizes(child) for child in children(pid)]
    return Memory(
        pss=(own["Pss"], sum(one["Pss"] for one in rest)),
        rss=(own["Rss"], sum(one["Rss"] for one in rest)),
    )


def _sizes(pid: int) -> dict[str, float]:
    """MB by name (proc(5), smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {
        name: float(value.split()[0]) / 1024 for name, _, value in (s.partition(":") for s in lines)
    }


@contextmanager
def largest(pid: int) -> Iterator[list[Memory]]:
    """Samples inside the block; afterwards the list holds the largest value seen."""
    seen: list[Memory] = [memory(pid)]
    over = threading.Event()

    def look() -> None:
        while not over.wait(SAMPLE_S):
            seen[0] = max(seen[0], memory(pid), key=lambda one: one.total)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()


def memories(target: Target, seconds: float, on: Cores) -> dict[str, Memory]:
    """Idle, under load, idle again, of a gateway that has just filled its window."""
    time.sleep(REST_S)
    found = {"idle, as started": memory(target.pid)}
    for rate in RATES:
        with largest(target.pid) as seen:
            load(target.port, cell(rate).load, seconds, 200_000 + rate, on[0])
        target.settle()
        found[f"at {rate}/s, largest"] = seen[0]
    time.sleep(REST_S)
    found["idle again"] = memory(target.pid)
    return found


def memory_table(found: Mapping[str, Memory]) -> str:
    return table(
        ["MB", "gateway PSS", "predictor PSS", "sum", "sum of RSS"],
        (
            [name, *(f"{mb:.0f}" for mb in (*one.pss, one.total, sum(one.rss)))]
            for name, one in found.items()
        ),
    )


# --- a refit ----------------------------------------------------------------------------------


class Refit(Struct, frozen=True):
    """Added milliseconds, p50 and p99, without and during a refit."""

    without_ms: tuple[float, float]
    during_ms: tuple[float, float]
    turns: tuple[int, int]
    lasted_s: tuple[float, ...]  # each refit, to its end; cut short where it is not `whole`
    whole: bool

    @property
    def ratio(self) -> float:
        return self.during_ms[1] / self.without_ms[1]


class Fitting:
    """`sagesched refit` on a gateway's history, as the gateway would begin it."""

    def __init__(self, target: Target, core: int | None) -> None:
        process = target.process
        assert process is not None
        shutil.rmtree(process.directory / "var" / "models", ignore_errors=True)
        self._began_s = time.monotonic()
        self.lasted_s: float | None = None
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SAGESCHED_")}
        with on_core(core):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "refit", "--config", str(process.config)],
                cwd=process.directory,
                env={**environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                text=True,
            )
        time.sleep(BEGUN_S)

    @property
    def works(self) -> bool:
        """Raises AssertionError where it failed."""
        code = self._process.poll()
        if code is not None and self.lasted_s is None:
            self.lasted_s = time.monotonic() - self._began_s
            assert code in (0, 3), f"the refit ended with {code}"
        return code is None

    def end(self) -> float:
        """At once, where it still works; the seconds it had."""
        if self.works:
            self._process.kill()
        self._process.communicate()
        return self.lasted_s or time.monotonic() - self._began_s


def refits(
    direct: Target, on: Target, seconds: float, rounds: int, most_turns: int, cores: Cores
) -> Refit:
    """Rounds of a refit and as many turns without; `most_turns` of a phase at most.

    Raises:
        Unfit: the load was too busy, or the refit too short to be seen.
    """
    one = cell(REFIT_RATE)
    straight, without, during = [], [], []
    lasted, whole = [], True
    for number in range(rounds):
        seed = 300_000 + 1000 * number
        on.settle()
        fitting = Fitting(on, cores[1])
        turns = 0
        try:
            while turns < most_turns and fitting.works:
                turn = measure(one, on, direct, seconds, seed + turns, cores)
                if not fitting.works:
                    break  # it ended on the way: neither with nor without
                during.append(turn)
                turns += 1
        finally:
            whole = whole and not fitting.works
            lasted.append(fitting.end())
        on.settle()
        straight.append(measure(one, direct, direct, seconds, seed + 500, cores))
        # Other prompts: those of before it knows by now.
        without += [
            measure(one, on, direct, seconds, seed + 600 + turn, cores) for turn in range(turns)
        ]
        sys.stderr.write(f"refit {number + 1}: {lasted[-1]:.0f} s, {turns} turns\n")
    check_rows([Row(one, on, [*during, *without])])
    if not during:
        raise Unfit(f"a refit of {lasted[0]:.0f} s has no room for a turn of {seconds:g} s")
    base = _pooled(straight)
    return Refit(
        without_ms=_added(without, base),
        during_ms=_added(during, base),
        turns=(len(without), len(during)),
        lasted_s=tuple(lasted),
        whole=whole,
    )


def _pooled(turns: Sequence[Turn]) -> dict[str, float]:
    return quantiles([ms / 1000 for turn in turns for ms in turn.report["all_ms"]["total_ms"]])


def _added(turns: Sequence[Turn], base: Mapping[str, float]) -> tuple[float, float]:
    found = _pooled(turns)
    return found["p50"] - base["p50"], found["p99"] - base["p99"]


def refit_table(found: Refit) -> str:
    return table(
        [f"at {REFIT_RATE}/s", "turns", "added p50 ms", "added p99 ms"],
        [
            ["without", str(found.turns[0]), *(f"{ms:.2f}" for ms in found.without_ms)],
            ["during a refit", str(found.turns[1]), *(f"{ms:.2f}" for ms in found.during_ms)],
        ],
    )


def failed(rows: Sequence[Row]) -> int:
    """Requests of all turns that were not answered with 200."""
    return sum(row.failed for row in rows)


def apart_ms(rows: Sequence[Row], rate: int) -> dict[str, float]:
    """Prediction on minus off, p50 and p99."""
    by = {row.target.kind: row for row in rows if row.cell.name == cell(rate).name}
    return {q: by[ON].quantile(q) - by[OFF].quantile(q) for q in ("p50", "p99")}
