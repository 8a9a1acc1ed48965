"""The beginning of refits, and the report of their end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway.predict.refit.due import CURRENT, LONGEST_S, Refits, current_version
from gateway.settings.schema import Predict

SETTINGS = Predict(refit_every_s=1000.0, refit_min_rows=100)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def refits(folder: Path, script: str, clock: Clock) -> Refits:
    return Refits(folder, [sys.executable, "-c", script], clock)


def ended(one: Refits) -> bool:
    """Wait for the child to end, then look."""
    assert one._child is not None
    one._child.wait(20)
    return one.tend(SETTINGS, 0, 0)


@pytest.mark.parametrize(
    ("passed_s", "lessons", "drifts", "begins"),
    [
        (1000, 20, 0, True),
        (999, 20, 0, False),  # its time has not come
        (1000, 19, 0, False),  # too little is new
        (100, 20, 1, True),  # a source has changed
        (99, 20, 1, False),  # … but one refit after another is too much
    ],
)
def test_refit_begins_when_it_is_due(
    tmp_path: Path, passed_s: float, lessons: int, drifts: int, begins: bool
) -> None:
    """On schedule or on drift, and only for enough new answers."""
    clock = Clock()
    one = refits(tmp_path, "pass", clock)
    clock.now_s = passed_s
    assert not one.tend(SETTINGS, lessons, drifts)
    assert (one.state == "running") is begins
    one.stop()


def test_refit_does_not_begin_when_it_is_off(tmp_path: Path) -> None:
    """refit_every_s = 0, or no command: never."""
    clock = Clock()
    with_command, without = refits(tmp_path, "pass", clock), Refits(tmp_path, (), clock)
    clock.now_s = 1e6
    assert not with_command.tend(Predict(refit_every_s=0.0), 10**6, 9)
    assert not without.tend(SETTINGS, 10**6, 9)
    assert (with_command.state, without.state) == ("waiting", "off")


@pytest.mark.parametrize(
    ("code", "news", "state"),
    [(0, True, "accepted"), (3, False, "kept the old models"), (1, False, "failed: exit status 1")],
)
def test_refit_s_exit_status_is_its_news(tmp_path: Path, code: int, news: bool, state: str) -> None:
    """0 is a new version, 3 none, anything else a failure; the next waits its time."""
    clock = Clock()
    one = refits(tmp_path, f"raise SystemExit({code})", clock)
    clock.now_s = 1000
    one.tend(SETTINGS, 20, 0)
    assert ended(one) is news
    assert one.state == state
    assert not one.tend(SETTINGS, 40, 0)
    assert one.state == state


def test_refit_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """After LONGEST_S the child is killed; the next looks see its end, without waiting for it."""
    clock = Clock()
    one = refits(tmp_path, "import time; time.sleep(600)", clock)
    clock.now_s = 1000
    one.tend(SETTINGS, 20, 0)
    child = one._child
    assert child is not None
    assert not one.tend(SETTINGS, 20, 0)
    assert child.poll() is None
    clock.now_s += LONGEST_S + 1
    assert not one.tend(SETTINGS, 20, 0)
    assert not ended(one)
    assert child.returncode == -9
    assert one.state == "failed: it took too long"


def test_refit_that_cannot_begin_is_said(tmp_path: Path) -> None:
    """A command that is not there costs nothing but the refit."""
    clock = Clock()
    one = Refits(tmp_path, [str(tmp_path / "nothing")], clock)
    clock.now_s = 1000
    assert not one.tend(SETTINGS, 20, 0)
    assert one.state.startswith("failed: ")


@pytest.mark.parametrize("content", ["", "../1", "x", "7", "\xff"])
def test_current_version_is_a_folder_that_is_there(tmp_path: Path, content: str) -> None:
    """Anything else in `current` is no version; a good one, and then forgotten, is."""
    assert current_version(tmp_path) is None
    (tmp_path / "1").mkdir()
    (tmp_path / CURRENT).write_text(content)
    assert current_version(tmp_path) is None
    (tmp_path / CURRENT).write_text("1\n")
    assert current_version(tmp_path) == tmp_path / "1"
    Refits(tmp_path).forget()
    assert current_version(tmp_path) is None
