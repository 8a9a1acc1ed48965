"""The cores of the processes of a bench, and a check that the load does not measure itself.

Gateway and predictor share one core, load generator, provider and whoever reads the gateway's
log another: so "on one core" means what it says, and what the load costs is not the gateway's.
A load that fills its own core measures itself; then the run is given up instead of printed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

MOST = 0.7  # of a core, for generator and provider together


class Unfit(Exception):
    """This machine, or this moment, cannot measure what was asked for."""


def load_and_gateway() -> tuple[int, int]:
    """The two cores. Raises Unfit where there is one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Unfit("two cores are needed: one for the gateway, one for load and provider")
    return cores[0], cores[1]


def stay_on(core: int) -> None:
    """This process, and what it starts from now on, runs there."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Processes started inside run there, for good; None: anywhere. Threads that this process
    itself started inside come back with it."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        for thread in Path("/proc/self/task").iterdir() if core is not None else ():
            os.sched_setaffinity(int(thread.name), before)


def check_load(share: float, when: str) -> None:
    """Raises Unfit where generator and provider took too much of their core to be believed."""
    if share > MOST:
        raise Unfit(
            f"{when}: load generator and provider used {share:.0%} of their core (at most"
            f" {MOST:.0%}): the figures would be theirs; run it on a faster or idler machine"
        )


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and all its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_s(core: int | None) -> float:
    """Seconds that a core has worked or was taken away so far; None: all of them together."""
    wanted = "cpu" if core is None else f"cpu{core}"
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == wanted:  # user, nice, system, idle, iowait, irq, softirq, steal (proc(5))
            idle = int(ticks[3]) + int(ticks[4])
            return (sum(map(int, ticks[:8])) - idle) / os.sysconf("SC_CLK_TCK")
    return 0.0


class Spent(NamedTuple):
    """CPU seconds of a gateway: its loop's thread, its other threads, its child processes."""

    loop_s: float
    threads_s: float
    children_s: float

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(a - b for a, b in zip(self, other, strict=True)))

    @property
    def total_s(self) -> float:
        return sum(self)


def spent(pid: int) -> Spent:
    """So far. A thread or child that has ended takes its time with it."""
    loop_s = _thread_s(pid, pid)
    return Spent(loop_s, process_s(pid) - loop_s, sum(process_s(child) for child in children(pid)))


def process_s(pid: int) -> float:
    """CPU seconds of a process's threads so far, to the nanosecond; 0.0 where it has ended."""
    with suppress(OSError):
        return sum(_thread_s(pid, int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir())
    return 0.0


def _thread_s(pid: int, thread: int) -> float:
    with suppress(OSError):  # it has ended
        return int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0]) / 1e9
    return 0.0


def children(pid: int) -> list[int]:
    """Ids of a process's children now, whichever thread began them: a gateway has its predictor."""
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # it has ended since
                found += map(int, (thread / "children").read_text().split())
    return sorted(found)
