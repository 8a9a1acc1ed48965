"""Priority of the predictor's child: it works with what the gateway leaves of the processor.

Linux shares a core among groups of processes first (a cgroup, or else the autogroup of a session,
sched(7)), and inside a group among its processes. In the idle class the child gives way at once to
whatever else of its group can run. Where that is the gateway alone, this is wanted; beside
strangers that keep the processor busy it would never run. So the idle class is chosen where the
group is the gateway's own, and a mere nice value otherwise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

NICE = 7
"""On a core that both want, the loop keeps 83 % of it (weights 1024 : 215, sched(7)). At 19 it
would keep 98 %, and a forecast beside a busy neighbour take ten times as long (RESULTS.md)."""
IDLE = "idle"
INIT = 1  # the first process: of a container, the gateway itself or what started it


class GroupMember(Struct, frozen=True):
    """A process as /proc shows it."""

    pid: int
    parent: int
    session: int


def lower_priority(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> str:
    """Lower the calling thread's priority; "idle", or "nice 7" and the like."""
    with suppress(OSError, ValueError):
        if sys.platform == "linux" and _alone(proc, cgroups, os.getppid()):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            return IDLE
    nice = max(NICE, os.getpriority(os.PRIO_PROCESS, 0))
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    return f"nice {nice}"


def is_own_group(gateway: GroupMember, members: Iterable[GroupMember]) -> bool:
    """True where a scheduling group belongs to the gateway.

    It must lead its session, as under a service manager, or be in that of the first process, as in
    a container; a shell's session is its user's, who may start anything beside the gateway.

    Args:
        members: of the group, those of the gateway's session apart.
    """
    if gateway.session not in (gateway.pid, INIT):
        return False
    return all(
        each.session == gateway.session or each.pid == INIT or each.parent == gateway.pid
        for each in members
    )


def group_of(proc: Path, cgroups: Path) -> list[int] | None:
    """Processes that share this one's scheduling group: those of its cgroup; where sessions are the
    groups, none but the session's own. None where no group is known. Raises OSError, ValueError."""
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found = _cgroup_members(cgroups, path, "cpu.weight")
        elif "cpu" in controllers.split(","):
            found = None if path == "/" else _cgroup_members(cgroups / "cpu", path, "cpu.shares")
        else:
            continue
        if found is not None:
            return found
    enabled = (proc / "sys/kernel/sched_autogroup_enabled").read_text().strip() == "1"
    return [] if enabled and (proc / "self/autogroup").exists() else None


def _cgroup_members(base: Path, path: str, mark: str) -> list[int] | None:
    """Processes of the nearest cgroup at or above `path` that has the CPU controller, by the file
    `mark`, and of those below it; None where there is none."""
    folder = base / path.strip("/")
    while not (folder / mark).exists():
        if folder == base:
            return None
        folder = folder.parent
    files = [folder / "cgroup.procs", *folder.glob("**/*/cgroup.procs")]
    return [int(pid) for file in files for pid in file.read_text().split()]


def _alone(proc: Path, cgroups: Path, gateway: int) -> bool:
    members = group_of(proc, cgroups)
    if members is None:
        return False
    own = _member(proc, gateway)
    others = [_member(proc, pid) for pid in members]
    return own is not None and None not in others and is_own_group(own, filter(None, others))


def _member(proc: Path, pid: int) -> GroupMember | None:
    """The process; None where it is not visible: it belongs to somebody else."""
    try:
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return GroupMember(pid, int(fields[1]), int(fields[3]))
