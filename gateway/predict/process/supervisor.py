"""Life of the predictor's child, and the state that outlives it.

A child may hang, be killed or be switched off, and the next one begins with the state held here:
the calibration, the version of the models it belongs to, and the counts that people see. The
index is not; the history fills it anew.

What a child has learned reaches stage 0 only from here: its calibration after each question,
and trees and calibration together when the models change. So no forecast is made by one model
with the residuals of another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic

from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import Calibration, Mirror
from gateway.predict.lengths import LengthModel
from gateway.predict.prices import Price
from gateway.predict.process.child_client import ChildLink, Connect
from gateway.predict.process.wire import (
    ChangeSettings,
    ChildAnswer,
    ChildError,
    ChildGone,
    ChildSetup,
    ChildStatus,
    FillIndex,
    ForgetLearned,
    OpenModels,
    Question,
    TellMore,
    UseVersion,
)
from gateway.predict.refit.due import Refits
from gateway.predict.stage0 import Stage0
from gateway.settings.schema import Predict
from gateway.types import HistoryRow

logger = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 120.0  # a cold disk, a busy machine
TIMEOUT_S = 30.0  # a forecast takes some 6 ms

HistoryPages = Callable[[str], Iterable[Sequence[HistoryRow]]]
"""The rows of an encoder, oldest first, in pages of some hundred; read on a worker thread."""


class FaultLog:
    """Counts exceptions that were survived, and logs ever fewer of them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, what: str) -> None:
        """Count the exception being handled; log the first, second, fourth, eighth … with its
        traceback, which holds no prompt."""
        self.count += 1
        if self.count & (self.count - 1) == 0:
            logger.exception("predictor: %s (%d so far)", what, self.count)


class CalibrationStore:
    """The calibration as bytes: for the next child, and for the next start.

    Args:
        state: the bytes stored last; None: none were.
        store: called with the bytes; must not block.
    """

    def __init__(
        self, state: bytes | None, store: Callable[[bytes], object] | None, faults: FaultLog
    ) -> None:
        self.state = state
        self._store = store
        self._faults = faults

    def put(self, state: bytes) -> None:
        """Keep the bytes, and store them."""
        self.state = state
        try:
            if self._store is not None:
                self._store(state)
        except Exception:
            self._faults("the calibration was not stored")


class ChildSupervisor:
    """Opens, replaces and ends the child; at most one is open.

    The coroutines are the predictor's task's, which awaits one after the other. For the
    arguments see `Predictor`.
    """

    def __init__(
        self,
        folder: Path,
        key: bytes,
        prices: Mapping[str, Price],
        *,
        stage0: Stage0,
        calibrations: CalibrationStore,
        history: HistoryPages,
        refits: Refits | None,
        store: Path | None,
        connect: Connect,
        on_gone: Callable[[], object],
        faults: FaultLog,
    ) -> None:
        self._folder = folder
        self._key = key
        self._prices = prices
        self._stage0 = stage0
        self._calibrations = calibrations
        self._history = history
        self._refits = refits
        self._store = store
        self._connect = connect
        self._on_gone = on_gone
        self._faults = faults
        self._child: ChildLink | None = None
        self._why_gone = ""
        self._status = ChildStatus()
        self._mirror = Mirror()  # of the child's calibration
        self._artefacts: Artefacts | None = None  # what stage 0 needs of them
        self._version: Path | None = None  # of the models that the calibration belongs to
        self._drifts_before = 0  # of children that have gone
        self.opened = False
        self.state = "starting"
        self.encoder = ""
        self.rows = 0  # of the index
        self.drifts = 0  # in all
        self.restarts = 0
        self.life = 0  # children opened
        self._cpu_s = 0.0  # used by children that have gone
        self._question_s: float | None = None  # when the question under way was asked

    def __repr__(self) -> str:
        return f"<ChildSupervisor {self.state!r} child={self._child!r} life={self.life}>"

    @property
    def version(self) -> int:
        """Number of the refitted models in use; 0: as shipped."""
        artefacts = self._artefacts
        return 0 if artefacts is None else artefacts.version

    @property
    def refit(self) -> str:
        """State of the refits."""
        return "off" if self._refits is None else self._refits.state

    @property
    def busy_s(self) -> float:
        """Seconds that the question under way has taken; 0 where there is none, or while a
        child is being opened."""
        since_s = self._question_s
        return 0.0 if since_s is None or not self.opened else monotonic() - since_s

    @property
    def priority(self) -> str:
        """Priority of the child's work: "idle" or "nice 7"; "" before it begins."""
        return self._status.priority

    @property
    def seconds(self) -> float:
        """CPU time used by all children so far, as of the last answers."""
        return self._cpu_s + self._status.cpu_s

    # --- opening and ending ---------------------------------------------------------------

    async def begin(self, settings: Predict) -> None:
        """Load what stage 0 needs. Once, before all else; may raise what reading files does."""
        version = self._current()

        def load() -> tuple[Artefacts, LengthModel | None]:
            names = settings.embedding_model_name, settings.max_encoder_tokens
            return _refitted(Artefacts(self._folder, *names, only_stage0=True), version)

        self._take(version, *await asyncio.to_thread(load), Calibration())

    async def open(self, settings: Predict, private: frozenset[str]) -> None:
        """Open a child with the models of the last one, to which the calibration belongs; then
        let it take the newest models.

        Raises:
            Exception: whatever starting it or reading history raises; then none is open.
        """
        if self.restarts == 0:
            self.state = "starting"
        version = self._version
        setup = ChildSetup(
            settings=settings,
            folder=str(self._folder),
            key=self._key,
            prices=dict(self._prices),
            private=private,
            version="" if version is None else str(version),
            calibration=self._calibrations.state,
            store="" if self._store is None else str(self._store),
        )
        self._mirror = Mirror()
        self._why_gone = ""
        self._child = await self._connect()
        self._child.watch(self._gone)
        try:
            await self._exchange(OpenModels(setup), OPEN_TIMEOUT_S)
            await self._refill()
        except BaseException:
            await self._end()
            raise
        self.opened = True
        self.life += 1
        self._publish()
        if not self._status.restored:
            logger.warning("predictor: the stored calibration is not usable: begun anew")
        self.encoder = self._status.encoder
        self._report()
        if (newest := self._current()) != version:
            await self._adopt(newest)

    def check(self) -> None:
        """Raise ChildGone where the open child has ended by itself."""
        if self._why_gone and self.opened:
            raise ChildGone(self._why_gone)

    async def close(self) -> None:
        """End the child, and keep its calibration; nothing where none is open."""
        opened, self.opened = self.opened, False
        try:
            if opened:
                await self.keep_calibration()
        finally:
            await self._end()

    async def lose(self, error: Exception) -> None:
        """Give up a child that is gone or of no use, and its index with it."""
        await self.close()
        self.restarts += 1
        self._count_gone()
        why = str(error) if isinstance(error, ChildGone) else type(error).__name__
        self.state = f"degraded: the predictor's process: {why}"
        logger.error(
            "the predictor's process: %s; it is begun again",
            why,
            exc_info=None if isinstance(error, ChildGone) else error,
        )

    async def switch_off(self) -> None:
        """End the child and a refit; what was learned is in history and in the calibration."""
        self._count_gone()
        self.encoder = ""
        self.state = "starting"  # as the next one will be; before this one has ended
        await self.close()
        await self.stop_refit()
        logger.info("the predictor is switched off")

    async def stop_refit(self) -> None:
        """End the process that refits, where there is one. It may take 0.1 s to give its memory
        back: waited for on a worker thread."""
        if self._refits is not None:
            await asyncio.to_thread(self._refits.stop)

    # --- questions ------------------------------------------------------------------------

    async def ask(self, question: Question) -> ChildAnswer:
        """Ask the open child, and give stage 0 what it has learned. Raises ChildGone and
        ChildError."""
        answer = await self._exchange(question)
        self._publish()
        return answer

    async def configure(self, settings: Predict, private: Collection[str]) -> None:
        """Give the open child other settings; the next one is opened with them."""
        if self.opened:
            await self.ask(ChangeSettings(settings, frozenset(private)))

    async def forget(self) -> None:
        """Empty index and calibration, and return to the shipped models."""
        await self.stop_refit()
        self.forget_stored()
        if not self.opened:
            await self._adopt(None)
            return
        self.opened = False  # should it be lost from here on, its calibration is not kept
        await self._exchange(ForgetLearned())
        await self._adopt(None)
        self.opened = True

    def forget_stored(self) -> None:
        """Drop the stored state that would restore the learned at the next start."""
        self._calibrations.put(Calibration().dump())
        if self._refits is not None:
            self._refits.forget()

    async def tend(self, settings: Predict, lessons: int) -> None:
        """Take a refit that is done; begin one that is due.

        Args:
            lessons: learned so far.
        """
        if self._refits is None or not self.opened:
            return
        try:
            if self._refits.tend(settings, lessons, self.drifts):
                await self._adopt(self._current())
                await self.keep_calibration()
        except ChildGone:
            raise
        except Exception:
            self._faults("looking after refits failed")

    async def keep_calibration(self) -> None:
        """Store the child's calibration. Encoding it may take some ms: on a worker thread."""
        self._calibrations.put(await asyncio.to_thread(self._mirror.table.dump))

    # --- inside ---------------------------------------------------------------------------

    async def _exchange(self, question: Question, timeout_s: float = TIMEOUT_S) -> ChildAnswer:
        assert self._child is not None
        self._question_s = monotonic()
        try:
            answer = await self._child.ask(question, timeout_s)
            await self._take_changes(answer, timeout_s)
        finally:
            self._question_s = None
        if answer.status.priority != self._status.priority:
            logger.info("the predictor's process works", extra={"priority": answer.status.priority})
        self._status = answer.status
        if answer.error is not None:
            raise ChildError(answer.error)
        return answer

    async def _take_changes(self, answer: ChildAnswer, timeout_s: float) -> None:
        """Take over the changes of the calibration, which may come in several answers."""
        assert self._child is not None
        while answer.changes is not None:
            self._mirror.apply(answer.changes)
            if not answer.more:
                return
            answer = await self._child.ask(TellMore(), timeout_s)

    def _count_gone(self) -> None:
        """Keep the counts of a child that is given up."""
        self.rows, self._drifts_before, self._cpu_s = 0, self.drifts, self.seconds
        self._status = ChildStatus()

    def _publish(self) -> None:
        self._stage0.calibrate(self._mirror.table)
        self.rows, self.drifts = self._status.rows, self._drifts_before + self._status.drifts

    def _gone(self, why: str) -> None:
        self._why_gone = why
        self._on_gone()

    async def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.close()

    async def _refill(self) -> None:
        encoder, bad = self._status.encoder, 0
        pages = iter(self._history(encoder) if encoder else ())
        while (page := await asyncio.to_thread(next, pages, None)) is not None:
            bad += await self._fill(page)
            self.rows = self._status.rows
        if bad:
            logger.warning("predictor: %d history rows cannot be used", bad)

    async def _fill(self, rows: Sequence[HistoryRow]) -> int:
        """Put rows into the child's index; the number that could not be read. One that cannot
        be encoded makes all rows of its message count."""
        try:
            return (await self._exchange(FillIndex(list(rows)))).bad
        except ChildError:
            if len(rows) == 1:
                return 1
        return sum([await self._fill([row]) for row in rows])

    def _current(self) -> Path | None:
        return None if self._refits is None else self._refits.current()

    async def _adopt(self, version: Path | None) -> None:
        """Have the child and stage 0 take a version's models, stage 0 last and all at once."""
        assert self._artefacts is not None
        loaded = await asyncio.to_thread(_refitted, self._artefacts, version)
        if self._child is None:
            self._take(version, *loaded, Calibration())
            return
        await self._exchange(UseVersion("" if version is None else str(version)))
        self._take(version, *loaded, self._mirror.table)
        self._publish()
        self._report()

    def _take(
        self,
        version: Path | None,
        artefacts: Artefacts,
        model: LengthModel | None,
        calibration: Calibration,
    ) -> None:
        self._version, self._artefacts = version, artefacts
        self._stage0.take(model, artefacts.tables, calibration)

    def _report(self) -> None:
        problems = self._status.problems
        self.state = f"degraded: {'; '.join(problems)}" if problems else "ready"
        for problem in problems:
            logger.error("predictor: %s", problem)


def _refitted(artefacts: Artefacts, version: Path | None) -> tuple[Artefacts, LengthModel | None]:
    """The artefacts with a refit's corrections, and their model for stage 0. Reads files."""
    refitted = artefacts.refitted(version)
    return refitted, refitted.stage0()
