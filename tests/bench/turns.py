"""Targets under load, in turns: what one turn costs, and all turns of a cell together.

Targets take turns of a few seconds, forwards and backwards, so that whatever the machine does
meanwhile hits all alike. Who has no turn is stopped (SIGSTOP), its predictor's process with it,
after it has learned what the turn left it: its work would count against whoever comes next.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import httpx

from tests.bench.cores import (
    Spent,
    Unfit,
    busy_s,
    children,
    load_and_gateway,
    on_core,
    process_s,
    spent,
    stay_on,
)
from tests.bench.gateways import HERE, MeasuredGateway, Revision
from tests.bench.load import quantiles
from tests.kit.gateway import TENANT_KEY

FOLDER = Path(__file__).resolve().parent
SETTLE_S = 20.0
IDLE_SHARE = 0.05  # of a core: the child works no more
LOOK_S = 0.25
AWAKE_S = 0.3  # after SIGCONT: what was due meanwhile is done
DIRECT, OFF, ON = "direct", "off", "on"
Cores = tuple[int | None, int | None]  # of load and mock; of the gateway; None: not pinned


@dataclass(frozen=True)
class Cell:
    """A load, and who is asked.

    Args:
        load: arguments of load.py.
        kinds: of DIRECT, OFF, ON; all take turns.
        least_s: a turn is at least as long.
        learned: what a turn leaves to be learned belongs to its CPU time.
    """

    name: str
    load: tuple[str, ...]
    kinds: tuple[str, ...] = (DIRECT, OFF, ON)
    least_s: float = 0.0
    learned: bool = False

    @property
    def timing(self) -> str:
        """Name of the cell's time: the first byte's for streams, the whole's for others."""
        return "first_ms" if "--stream" in self.load else "total_ms"


@dataclass
class Target:
    """The mock itself or a gateway in front of it."""

    kind: str
    port: int
    pid: int  # whose CPU time and memory count
    process: MeasuredGateway | None = None
    of: Revision = HERE
    unsettled: int = 0  # turns after which it had not learned all in time

    @property
    def name(self) -> str:
        return self.kind if self.process is None else f"{self.of.name}, {self.kind}"

    def settle(self) -> None:
        """Wait until its child has nothing to do."""
        if not children(self.pid):
            return
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            before_s = spent(self.pid).children_s
            time.sleep(LOOK_S)
            if spent(self.pid).children_s - before_s < IDLE_SHARE * LOOK_S:
                return
        self.unsettled += 1

    def restarts(self) -> int:
        """Times that its child was begun again: it was stopped for too long."""
        assert self.process is not None
        stats = httpx.get(self.process.url("/stats"), headers=self.process.admin_headers)
        return int(stats.json()["predictor"]["restarts"])

    def pause(self) -> None:
        """Stop it; the mock goes on, since it waits for its clients."""
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on: the child first, or it would be found hung."""
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)
        if self.process is not None:
            time.sleep(AWAKE_S)

    def _pids(self) -> list[int]:
        return [] if self.process is None else [*children(self.pid), self.pid]

    def rss_mb(self) -> tuple[float, ...]:
        """Of its process and of its child."""
        return tuple(rss_mb(pid) for pid in (self.pid, *children(self.pid)))


def rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def pinned() -> Cores:
    """This process on the load's core from now on; (None, None) and a warning where there is but
    one."""
    try:
        cores = load_and_gateway()
    except Unfit:
        sys.stderr.write("one core: load and gateway share it, and disturb each other\n")
        return (None, None)
    stay_on(cores[0])
    return cores


@contextmanager
def mock(core: int | None) -> Iterator[Target]:
    """The provider of all gateways, in a process of its own."""
    command = [sys.executable, str(FOLDER / "mock_upstream.py")]
    with on_core(core):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Target(DIRECT, int(process.stdout.readline()), process.pid)
    finally:
        process.terminate()
        process.communicate()


def target(gateway: MeasuredGateway, kind: str) -> Target:
    """A gateway that runs."""
    assert gateway.process is not None
    return Target(kind, gateway.port, gateway.process.pid, gateway, gateway.of)


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


@dataclass
class Turn:
    """One target's few seconds."""

    report: dict[str, Any]
    spent: Spent
    rss_mb: tuple[float, ...]
    strangers: tuple[float, float]  # share of the load's core, and of the gateway's, not ours
    mock_s: float  # CPU seconds of the mock

    @property
    def answered(self) -> int:
        return max(1, int(self.report["answered"]))

    def us(self, seconds: float) -> float:
        """Microseconds a request of so many seconds of the turn."""
        return 1e6 * seconds / self.answered


@dataclass
class Row:
    """All turns of one target at one cell; `direct`: of the mock at the same cell, if asked."""

    cell: Cell
    target: Target
    turns: list[Turn] = field(default_factory=list)
    direct: Row | None = None

    def quantile(self, q: str) -> float:
        """p50 or p99 in ms, of the requests of all turns together: a median of each turn's p99
        would leave the worst turns out."""
        pooled = [ms / 1000 for turn in self.turns for ms in turn.report["all_ms"][self._timing]]
        return quantiles(pooled)[q]

    def added_ms(self, q: str) -> float:
        """The quantile minus the direct one."""
        assert self.direct is not None
        return self.quantile(q) - self.direct.quantile(q)

    def added_each_ms(self, q: str) -> list[float]:
        """The same of each turn and the direct turn beside it."""
        assert self.direct is not None
        both = zip(self.turns, self.direct.turns, strict=True)
        return [a.report[self._timing][q] - b.report[self._timing][q] for a, b in both]

    @property
    def _timing(self) -> str:
        return self.cell.timing

    def each(self, of: Callable[[Turn], float]) -> list[float]:
        return [of(turn) for turn in self.turns]

    @property
    def per_s(self) -> float:
        return mean(float(turn.report["per_s"]) for turn in self.turns)

    @property
    def failed(self) -> int:
        return sum(int(turn.report["failed"] + turn.report["unsent"]) for turn in self.turns)

    @property
    def load_share(self) -> float:
        """Share of their core that generator and mock had, in the mean."""
        return mean(
            float(turn.report["cpu_share"] + turn.us(turn.mock_s) * turn.report["per_s"] / 1e6)
            for turn in self.turns
        )


def measure(
    cell: Cell, target: Target, direct: Target, seconds: float, seed: int, on: Cores
) -> Turn:
    """One turn of a target that runs."""
    load_core, core = on
    began_s, busy = time.monotonic(), (busy_s(load_core), busy_s(core))
    own_s, mock_s, before = _own_s(), process_s(direct.pid), spent(target.pid)
    report = load(target.port, cell.load, max(seconds, cell.least_s), seed, load_core)
    if cell.learned:
        target.settle()
    used, mocked_s = spent(target.pid) - before, process_s(direct.pid) - mock_s
    took_s = time.monotonic() - began_s
    ours = (_own_s() - own_s + mocked_s, 0.0 if target is direct else used.total_s)
    others = [(busy_s(c) - b) for c, b in zip(on, busy, strict=True)]
    if core is None:  # not pinned: all of the machine, twice the same
        ours = (sum(ours), sum(ours))
    shares = [max(0.0, other - our) / took_s for other, our in zip(others, ours, strict=True)]
    return Turn(report, used, target.rss_mb(), (shares[0], shares[1]), mocked_s)


def _own_s() -> float:
    """CPU seconds of this process and of the load generators it has had."""
    had = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + had.ru_utime + had.ru_stime


def warm_up(targets: Sequence[Target], on: Cores, seconds: float = 2.0) -> None:
    """Load each once, and stop it."""
    for number, one in enumerate(targets):
        for how in (("--concurrency", "16"), ("--concurrency", "16", "--stream")):
            load(one.port, how, seconds / 2, 100_000 + number, on[0])
        one.settle()
        one.pause()


def in_turns(
    cells: Sequence[Cell], targets: Sequence[Target], seconds: float, repeat: int, on: Cores
) -> list[Row]:
    """Every cell through every target of its kinds; all targets are stopped before and after.

    Args:
        targets: the first is the mock.
    """
    rows: list[Row] = []
    for number, cell in enumerate(cells):
        asked = [Row(cell, one) for one in targets if one.kind in cell.kinds]
        for turn in range(repeat):
            for row in asked if turn % 2 == 0 else asked[::-1]:
                row.target.resume()
                # One seed a turn: the same prompts and arrivals for each, new to it.
                seed = number + 100 * turn
                row.turns.append(measure(cell, row.target, targets[0], seconds, seed, on))
                row.target.settle()
                row.target.pause()
        for row in asked:
            row.direct = next((one for one in asked if one.target.kind == DIRECT), None)
            _note(row)
        rows += asked
    return rows


def _note(row: Row) -> None:
    """Progress, so that a long run is seen to run."""
    loop_us = median(row.each(lambda turn: turn.us(turn.spent.loop_s)))
    sys.stderr.write(f"{row.cell.name}, {row.target.name}: {row.per_s:.0f}/s, {loop_us:.0f} µs\n")
