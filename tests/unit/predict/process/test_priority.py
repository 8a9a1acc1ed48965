"""The predictor's child in the idle class where its group is the gateway's, nice elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.predict.process.priority import GroupMember, group_of, is_own_group


def member(pid: int, session: int, parent: int = 2) -> GroupMember:
    return GroupMember(pid, parent, session)


@pytest.mark.parametrize(
    ("gateway", "members", "own"),
    [
        (member(50, session=50), [], True),  # the leader of its session, as under systemd
        (member(50, session=40), [], False),  # of a shell's session
        (member(1, session=1), [], True),  # the first process of a container
        (member(7, session=1, parent=1), [member(1, 1, 0)], True),  # behind a container's init
        (member(7, session=0), [], False),  # of a session beyond the container
        (member(50, session=50), [member(50, 50), member(51, 50)], True),  # a cgroup of its own
        (member(50, session=50), [member(50, 50), member(90, 90)], False),  # beside a stranger
        (member(50, session=50), [member(50, 50), member(60, 60, parent=50)], True),  # its refit
    ],
)
def test_group_is_the_gateway_s_own(
    gateway: GroupMember, members: list[GroupMember], own: bool
) -> None:
    """Sessions of shells, and groups with strangers in them, are not."""
    assert is_own_group(gateway, members) is own


class Machine:
    """A /proc and a /sys/fs/cgroup of the test's."""

    def __init__(self, root: Path, cgroup: str, autogroup: str = "1") -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        self.put(self.proc / "self/cgroup", cgroup)
        self.put(self.proc / "self/autogroup", "/autogroup-6 nice 0\n")
        self.put(self.proc / "sys/kernel/sched_autogroup_enabled", f"{autogroup}\n")

    def cgroup(self, path: str, pids: str, mark: str = "") -> None:
        self.put(self.cgroups / path / "cgroup.procs", pids)
        if mark:
            self.put(self.cgroups / path / mark, "100\n")

    def put(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def group(self) -> list[int] | None:
        return group_of(self.proc, self.cgroups)


def test_group_without_cgroups_is_the_session(tmp_path: Path) -> None:
    """In the root cgroup the kernel groups by session, where that is switched on."""
    machine = Machine(tmp_path / "on", "0::/\n")
    machine.cgroup("", "1\n50\n")
    assert machine.group() == []
    off = Machine(tmp_path / "off", "0::/\n", autogroup="0")
    assert off.group() is None


def test_group_of_a_service_is_its_cgroup(tmp_path: Path) -> None:
    """The processes in the service's cgroup and below, if that has the controller."""
    machine = Machine(tmp_path, "0::/system.slice/gateway.service\n")
    machine.cgroup("system.slice/gateway.service", "50\n51\n", "cpu.weight")
    machine.cgroup("system.slice/gateway.service/below", "52\n")
    assert sorted(machine.group() or []) == [50, 51, 52]


def test_group_of_a_cgroup_without_the_controller_is_the_one_above(tmp_path: Path) -> None:
    """The share is that of the nearest cgroup with the controller: all below it take part."""
    machine = Machine(tmp_path, "0::/user.slice/session-3.scope\n")
    machine.cgroup("user.slice", "", "cpu.weight")
    machine.cgroup("user.slice/session-3.scope", "50\n")
    machine.cgroup("user.slice/session-4.scope", "90\n")
    assert sorted(machine.group() or []) == [50, 90]


def test_group_of_a_container_is_what_it_sees_as_the_root(tmp_path: Path) -> None:
    """A cgroup namespace shows "/", and the controller's file that the true root lacks."""
    machine = Machine(tmp_path, "0::/\n")
    machine.cgroup("", "1\n7\n", "cpu.weight")
    assert machine.group() == [1, 7]


def test_group_in_version_1(tmp_path: Path) -> None:
    """The hierarchy of the CPU controller counts, others do not; its root is no group."""
    machine = Machine(tmp_path / "a", "5:memory:/x\n4:cpu,cpuacct:/gateway\n0::/\n")
    machine.cgroup("cpu", "1\n", "cpu.shares")
    machine.cgroup("cpu/gateway", "50\n51\n", "cpu.shares")
    assert machine.group() == [50, 51]
    root = Machine(tmp_path / "b", "5:memory:/x\n4:cpu:/\n0::/\n")
    root.cgroup("cpu", "1\n", "cpu.shares")
    assert root.group() == []


PROBE = """
import os, sys, threading
from gateway.predict.process.priority import lower_priority
if os.fork():
    os.wait()
    sys.exit()
before = threading.Thread(target=lambda: go.wait() and print(os.sched_getscheduler(0)))
go = threading.Event()
before.start()
print(lower_priority())
print(os.sched_getscheduler(0))
sys.stdout.flush()
go.set()
before.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the idle class is Linux's")
@pytest.mark.parametrize("leads", [True, False])
def test_child_of_a_session_s_leader_is_idle(leads: bool) -> None:
    """Another's is nice; a thread begun before, as that which writes history, stays as it was."""
    if group_of(Path("/proc"), Path("/sys/fs/cgroup")) != []:
        pytest.skip("sessions are not groups here")
    found = subprocess.run(
        [sys.executable, "-c", PROBE], start_new_session=leads, capture_output=True, text=True
    ).stdout.split("\n")
    if leads:
        assert found[:3] == ["idle", str(os.SCHED_IDLE), str(os.SCHED_OTHER)]
    else:
        assert found[0].startswith("nice ")
