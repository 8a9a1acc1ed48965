"""One backend at a time, and what outlives it.

A `Backend` may hang, be killed or be switched off, and the next knows nothing of it. What that
one begins with is kept here: the calibration, the version of the models it is of, and the sums
that people are shown. The index is not kept; history fills it anew.

What a backend learned reaches stage 0 from here alone: its calibration after each call that may
have moved it, and trees and calibration together when models change, so that no forecast is of
one model with the residuals of another.

Who owns what. All of it is the predictor thread's, which makes the calls, one after the other.
Any thread may read what has no underscore, for people. `forget_kept` alone may be called by
another thread, where the predictor thread has ended or never began.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import Calibration
from gateway.predict.prices import Price
from gateway.predict.process.backend import Backend, BackendError, BackendGone, Setup
from gateway.predict.process.faults import Faults
from gateway.predict.process.kept import Kept
from gateway.predict.refit.due import Refits
from gateway.predict.stage0 import Stage0, Trees
from gateway.settings.schema import Predict
from gateway.types import HistoryRow

logger = logging.getLogger(__name__)

History = Callable[[str], Iterable[Sequence[HistoryRow]]]
"""The rows of an encoder, oldest first, in pages of some hundred."""


class Backends:
    """Opens, replaces and ends backends; at most one is open. For the arguments see `Predictor`."""

    def __init__(
        self,
        folder: Path,
        key: bytes,
        prices: Mapping[str, Price],
        *,
        stage0: Stage0,
        kept: Kept,
        history: History,
        refits: Refits | None,
        open_backend: Callable[[Setup], Backend],
        faults: Faults,
    ) -> None:
        self._folder = folder
        self._key = key
        self._prices = prices
        self._stage0 = stage0
        self._kept = kept
        self._history = history
        self._refits = refits
        self._open_backend = open_backend
        self._faults = faults
        self._backend: Backend | None = None
        self._artefacts: Artefacts | None = None  # what stage 0 needs of them
        self._version: Path | None = None  # of the models that the kept calibration is of
        self._drifts_before = 0  # by backends that have gone
        self.state = "starting"
        self.encoder = ""
        self.rows = 0  # of the index
        self.drifts = 0  # in all
        self.restarts = 0
        self.life = 0  # backends opened

    @property
    def opened(self) -> bool:
        return self._backend is not None

    @property
    def current(self) -> Backend:
        assert self._backend is not None
        return self._backend

    @property
    def version(self) -> int:
        """Of the refitted models in use; 0: as shipped."""
        artefacts = self._artefacts
        return 0 if artefacts is None else artefacts.version

    @property
    def refit(self) -> str:
        """How refits stand."""
        return "off" if self._refits is None else self._refits.state

    # --- opening and ending -------------------------------------------------------------

    def begin(self, settings: Predict) -> None:
        """Load what stage 0 needs. Once, before all else; may raise what reading does."""
        shipped = Artefacts(
            *(self._folder, settings.embedding_model_name, settings.max_encoder_tokens),
            only_stage0=True,
        )
        self._version = None if self._refits is None else self._refits.current()
        self._give_trees(shipped.refitted(self._version), Calibration())

    def open(self, settings: Predict, private: frozenset[str], closing: Callable[[], bool]) -> None:
        """A backend as the last one was: the residuals are of its version. Then the newest.

        Args:
            closing: asked between pages of history; True leaves the rest unread.

        Raises:
            Whatever opening one and reading history do: then none is open.
        """
        if self.restarts == 0:
            self.state = "starting"
        version = self._version
        backend = self._open_backend(
            Setup(
                settings=settings,
                folder=str(self._folder),
                key=self._key,
                prices=dict(self._prices),
                private=private,
                version="" if version is None else str(version),
                calibration=self._kept.state,
            )
        )
        try:
            self._refill(backend, closing)
        except BaseException:
            backend.close()
            raise
        self._backend = backend
        self.life += 1
        self.publish()
        if not backend.about.restored:
            logger.warning("predictor: the stored calibration is not usable: begun anew")
        self.encoder = backend.about.encoder
        self._say()
        newest = None if self._refits is None else self._refits.current()
        if newest != version:
            self._adopt(newest)

    def close(self) -> None:
        """End it, and keep its calibration. Does nothing where none is open."""
        self.keep_calibration()
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def lose(self, error: Exception) -> None:
        """It is gone or of no use, and with it the index. Its calibration is here."""
        self.close()
        self.restarts += 1
        self.rows, self._drifts_before = 0, self.drifts
        why = str(error) if isinstance(error, BackendGone) else type(error).__name__
        self.state = f"degraded: the predictor's process: {why}"
        logger.error(
            "the predictor's process: %s; it is begun again",
            why,
            exc_info=None if isinstance(error, BackendGone) else error,
        )

    def switch_off(self) -> None:
        """End what works. What it learned is in history and in the calibration."""
        self.rows, self._drifts_before, self.encoder = 0, self.drifts, ""
        self.close()
        self.stop_refit()
        logger.info("the predictor is switched off")

    def switch_on(self) -> None:
        """One will be opened, or would be."""
        self.state = "starting"

    def stop_refit(self) -> None:
        """End the child that refits, if there is one."""
        if self._refits is not None:
            self._refits.stop()

    # --- orders -------------------------------------------------------------------------

    def configure(self, settings: Predict, private: Collection[str]) -> None:
        """Other settings for the one that is open; the next is opened with them."""
        if self._backend is not None:
            self._backend.configure(settings, private)
            self.publish()

    def forget(self) -> None:
        """Empty index and calibration, and return to the shipped models."""
        self.forget_kept()
        backend, self._backend = self._backend, None  # lost from here on, it is forgotten, too
        if backend is None:
            self._take_version(None, Calibration())
            return
        try:
            backend.forget()
        except BaseException:
            backend.close()
            raise
        self._backend = backend
        self._adopt(None)

    def forget_kept(self) -> None:
        """What would bring it all back at the next start."""
        self._kept.put(Calibration())
        if self._refits is not None:
            self._refits.forget()

    def tend(self, settings: Predict, lessons: int) -> None:
        """Take a refit that is done; begin one that is due.

        Args:
            lessons: learned so far.
        """
        if self._refits is None or self._backend is None:
            return
        try:
            if self._refits.tend(settings, lessons, self.drifts):
                self._adopt(self._refits.current())
                self.keep_calibration()
        except BackendGone:
            raise
        except Exception:
            self._faults("looking after refits failed")

    # --- what becomes of its learning ---------------------------------------------------

    def publish(self) -> None:
        """Give stage 0 the calibration as it is now. To be called after a backend learned."""
        backend = self.current
        self._stage0.calibrate(backend.calibration)
        about = backend.about
        self.rows, self.drifts = about.rows, self._drifts_before + about.drifts

    def keep_calibration(self) -> None:
        """Store it, where one is open."""
        if self._backend is not None:
            self._kept.put(self._backend.calibration)

    def _refill(self, backend: Backend, closing: Callable[[], bool]) -> None:
        encoder, bad = backend.about.encoder, 0
        for page in self._history(encoder) if encoder else ():
            bad += _remember(backend, page)
            self.rows = backend.about.rows
            if closing():
                return
        if bad:
            logger.warning("predictor: %d history rows cannot be used", bad)

    def _adopt(self, version: Path | None) -> None:
        backend = self.current
        backend.adopt("" if version is None else str(version))
        self._take_version(version, backend.calibration)
        self.publish()
        self._say()

    def _take_version(self, version: Path | None, calibration: Calibration) -> None:
        assert self._artefacts is not None
        self._version = version
        self._give_trees(self._artefacts.refitted(version), calibration)
        self._stage0.generation = object()

    def _give_trees(self, artefacts: Artefacts, calibration: Calibration) -> None:
        self._artefacts = artefacts
        self._stage0.take(Trees(artefacts.stage0(), artefacts.tables), calibration)

    def _say(self) -> None:
        problems = self.current.about.problems
        self.state = f"degraded: {'; '.join(problems)}" if problems else "ready"
        for problem in problems:
            logger.error("predictor: %s", problem)


def _remember(backend: Backend, rows: Sequence[HistoryRow]) -> int:
    """How many could not be read: one that cannot even be sent spoils its neighbours' frame."""
    try:
        return backend.remember(rows)
    except BackendError:
        if len(rows) == 1:
            return 1
        return sum(_remember(backend, [row]) for row in rows)
