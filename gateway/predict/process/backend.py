"""Whoever makes the better forecasts and learns: the seam between the predictor and its child.

`Backend` is what the predictor's thread talks to, one call at a time. `Local` does the work
where it is called: in the child process (worker.py), in commands that only learn, in tests.
`Remote` (remote.py) hands each call to such a child.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import Calibration, Changes
from gateway.predict.encoders import exported_in
from gateway.predict.foresight import Foresight
from gateway.predict.lesson import Lesson
from gateway.predict.prices import Price
from gateway.predict.view import PromptView
from gateway.settings.schema import Predict
from gateway.types import HistoryRow, Workload


class Setup(Struct, frozen=True):
    """All that a backend begins with; history comes after."""

    settings: Predict
    folder: str  # models/
    key: bytes  # of the prompt hash
    prices: dict[str, Price]
    private: frozenset[str]  # tenants with `share_history = false`
    version: str = ""  # folder of the refit in force; "": as shipped
    calibration: bytes | None = None  # as `Calibration.dump` gave it


class About(Struct, frozen=True):
    """What can be said of a backend: changes with each call."""

    encoder: str = ""
    rows: int = 0  # of the index
    drifts: int = 0  # sources whose lengths were seen to change
    problems: tuple[str, ...] = ()
    restored: bool = True  # False: the calibration it was given is not usable


class BackendError(Exception):
    """A call failed; the backend goes on. The message has the traceback and no prompt."""


class BackendGone(Exception):
    """The backend has ended, or does not answer: it knows nothing any more."""


class Backend(Protocol):
    """Not thread-safe; every call may raise BackendGone."""

    @property
    def about(self) -> About: ...

    @property
    def calibration(self) -> Calibration:
        """For stage 0. Readable from any thread, whatever the backend does."""
        ...

    def forecast(self, view: PromptView) -> Workload: ...

    def learn(self, lessons: Sequence[Lesson]) -> list[HistoryRow | Exception]:
        """One after the other; what came of each."""
        ...

    def draft(self, lessons: Sequence[Lesson]) -> list[HistoryRow | Exception]:
        """What history would keep of each; nothing is learned."""
        ...

    def remember(self, rows: Sequence[HistoryRow]) -> int:
        """Put stored rows into the index; how many could not be read."""
        ...

    def configure(self, settings: Predict, private: Collection[str]) -> None: ...

    def adopt(self, version: str) -> None:
        """Take the models of a refit's folder; "": as shipped."""
        ...

    def forget(self) -> None:
        """Empty index and calibration."""
        ...

    def close(self) -> None:
        """End it; does not raise."""
        ...


class Local:
    """The work itself, on the caller's thread. Raises whatever it raises."""

    def __init__(self, setup: Setup) -> None:
        settings = setup.settings
        shipped = Artefacts(
            *(Path(setup.folder), settings.embedding_model_name, settings.max_encoder_tokens),
            exported=exported_in(settings.models_path),
        )
        self._artefacts = shipped.refitted(Path(setup.version) if setup.version else None)
        self._foresight = Foresight(
            settings, self._artefacts, setup.key, setup.prices, setup.private
        )
        self._restored = setup.calibration is None or self._foresight.restore(setup.calibration)

    @property
    def about(self) -> About:
        return About(
            self._artefacts.encoder_name,
            self._foresight.rows,
            self._foresight.drifts,
            tuple(self._artefacts.problems),
            self._restored,
        )

    @property
    def calibration(self) -> Calibration:
        return self._foresight.calibration

    def forecast(self, view: PromptView) -> Workload:
        return self._foresight.forecast(view)

    def learn(self, lessons: Sequence[Lesson]) -> list[HistoryRow | Exception]:
        return [_tried(self._foresight.learn, lesson) for lesson in lessons]

    def draft(self, lessons: Sequence[Lesson]) -> list[HistoryRow | Exception]:
        return [_tried(self._foresight.draft, lesson) for lesson in lessons]

    def remember(self, rows: Sequence[HistoryRow]) -> int:
        bad = 0
        for row in rows:
            try:
                self._foresight.remember(row)
            except Exception:  # one row that cannot be read is no reason to forget the rest
                bad += 1
        return bad

    def configure(self, settings: Predict, private: Collection[str]) -> None:
        self._foresight.configure(settings, private)

    def adopt(self, version: str) -> None:
        self._artefacts = self._artefacts.refitted(Path(version) if version else None)
        self._foresight.adopt(self._artefacts)

    def forget(self) -> None:
        self._foresight.forget()

    def changes(self) -> Changes:
        """What moved in the calibration since the last call."""
        return self._foresight.changes()

    def close(self) -> None:
        """Nothing to end."""


def _tried(call: Callable[[Lesson], HistoryRow], lesson: Lesson) -> HistoryRow | Exception:
    try:
        return call(lesson)
    except Exception as error:
        return error
