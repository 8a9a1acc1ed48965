"""Refits: when one is due, and the child process that makes it, one at a time.

A refit takes minutes of a core, so it runs in a process of its own, spawned by exec with one
thread at the lowest priority (refit.py sees to both), and reads the store through a connection of
its own. It is due when enough new answers came since the last and either its time has come or a
source was seen to change. What it makes lies in `folder/<n>/`; `folder/current` names the
version in force and is written last, so a refit killed at any moment changes nothing.

`Refits` belongs to the predictor's task on the event loop, which asks it every minute or so.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGKILL

from gateway.settings.schema import Predict

logger = logging.getLogger(__name__)

CURRENT = "current"
NEW_SHARE = 0.2  # of `refit_min_rows`: new answers that a refit is worth
DRIFT_PAUSE = 0.1  # of `refit_every_s` lies between a refit and one for a change
LONGEST_S = 3600.0
ACCEPTED, KEPT = 0, 3
"""Exit codes of the child: a new version is in force; the old models were no worse."""


class Refits:
    """Starts refits, and reports how they ended.

    Args:
        folder: where versions lie (`predict.models_path`).
        command: runs a refit, `sagesched refit --store PATH --out FOLDER` or the like; empty:
            versions are used, none is made.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        folder: Path,
        command: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = "waiting" if command else "off"
        self._folder = folder
        self._command = list(command)
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._began_s = clock()
        self._lessons = self._drifts = 0  # as they were when the last one began

    def current(self) -> Path | None:
        """Folder of the version in force; None: as shipped."""
        return current_version(self._folder)

    def tend(self, settings: Predict, lessons: int, drifts: int) -> bool:
        """Begin what is due; True when a new version has come into force.

        Args:
            lessons: answers learned from, since the gateway started.
            drifts: sources seen to change, likewise.
        """
        if self._child is not None:
            return self._look_at(self._child)
        if self._due(settings, lessons, drifts):
            self._begin(lessons, drifts)
        return False

    def forget(self) -> None:
        """Put no version in force from now on; their folders stay."""
        self.stop()
        (self._folder / CURRENT).unlink(missing_ok=True)

    def stop(self) -> None:
        """End a running refit, and wait for its process, some 0.1 s; nothing of it comes into
        force. May be called on a worker thread."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            self.state = "waiting"

    def _due(self, settings: Predict, lessons: int, drifts: int) -> bool:
        every_s = settings.refit_every_s
        if not self._command or every_s <= 0:
            return False
        passed_s, new = self._clock() - self._began_s, lessons - self._lessons
        if new < NEW_SHARE * settings.refit_min_rows:
            return False
        return passed_s >= every_s or (drifts > self._drifts and passed_s >= DRIFT_PAUSE * every_s)

    def _begin(self, lessons: int, drifts: int) -> None:
        self._began_s, self._lessons, self._drifts = self._clock(), lessons, drifts
        try:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C at the terminal is the gateway's to handle
            )
        except OSError as error:
            self.state = f"failed: {error.strerror}"
            logger.error("a refit could not begin: %s", error)
        else:
            self.state = "running"

    def _look_at(self, child: subprocess.Popen[bytes]) -> bool:
        code, late = child.poll(), self._clock() - self._began_s > LONGEST_S
        if code is None:
            if late:
                child.kill()  # its end is seen at the next look: this is the event loop
            return False
        self._child = None
        if code == ACCEPTED:
            self.state = "accepted"
        elif code == KEPT:
            self.state = "kept the old models"
        elif late and code == -SIGKILL:
            self.state = "failed: it took too long"
        else:
            self.state = f"failed: exit status {code}"
            logger.error("a refit failed with exit status %d", code)
        return code == ACCEPTED


def current_version(folder: Path) -> Path | None:
    """The version folder that the file `current` names; None where there is none."""
    try:
        name = (folder / CURRENT).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    path = folder / name
    return path if name.isdigit() and path.is_dir() else None
