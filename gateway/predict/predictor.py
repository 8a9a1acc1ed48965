"""The predictor: stage 0 on the caller's thread, everything slow in a process of its own.

Who owns what. The event loop owns `Stage0`: its booster and the cache of repeats. A
`Backend` (encoder, index, boosters, residual sums) lives in a child process (worker.py says
why); one thread here, the predictor thread, talks to it and owns the refits. Views and
lessons come to that thread through two bounded queues, forecasts before learning; whether a
forecast is still wanted is asked just before the work. Workloads, trees and the calibration
go back by replacing a reference, or as news for the cache.

Fail open: `forecast` never raises; a full queue, a late item, a bad artefact or a dead
thread costs quality, never an answer. A child that ends or hangs is replaced, after a pause
that grows while that keeps happening, and filled from history again. `enabled = false` ends the
child; the thread waits.

Two ways to learn. A relayed request is learned at once and its row stored when it may be: best
effort, so after a crash, or while the disk is full, index and calibration know of answers that
history does not, until the next start, when the index is what history is. A row that somebody
is promised (`keep`) is drafted, stored, and only then learned: refused, it was never known.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from math import expm1, isnan
from pathlib import Path

from msgspec import structs

from gateway.errors import Unavailable
from gateway.predict.artefacts import Artefacts
from gateway.predict.backend import Backend, BackendError, BackendGone, Local, Setup
from gateway.predict.calibrate import Calibration
from gateway.predict.features import PromptView
from gateway.predict.inbox import BATCH, Done, Inbox, Keep, Learned, Question, Result
from gateway.predict.lesson import Lesson
from gateway.predict.prices import Price
from gateway.predict.refits import Refits
from gateway.predict.stage0 import CacheKey, Stage0, Trees
from gateway.settings.schema import Predict
from gateway.types import HistoryRow, PredictorSnapshot, Rung, Workload

logger = logging.getLogger(__name__)

KEEP_EVERY = 200  # lessons after which the calibration is stored anew
STUCK_S = 5.0
REPEATS = 4096  # prompts learned lately, to know one that comes again
PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0  # before a backend that has gone is opened again
LAST_WORDS_S = 2.0  # to end the child, after the time for learning is over
WELL_S = 60.0  # lived so long, the next pause is the first again
_FULL = "The history takes no more rows now."

History = Callable[[str], Iterable[Sequence[HistoryRow]]]


def _no_history(encoder: str) -> Iterable[Sequence[HistoryRow]]:
    return ()


class Predictor:
    """Forecasts of output length, with a thread that has them refined and learned from.

    `forecast` and `reconfigure` are the loop's; `refine`, `learn`, `observe`, `tick`,
    `snapshot` may be called from any thread.

    Args:
        settings: [predict].
        folder: models/.
        history: the rows of an encoder to fill the index with, oldest first, in pages of some
            hundred; read on the thread, at the start and whenever a backend is opened again.
        prices: by model, for `cost_usd_p50`.
        key: of the prompt hash, at most 64 bytes; random when empty.
        private: tenants with `share_history = false`.
        state: the calibration as `keep` was last given it.
        keep: stores the calibration; called on the predictor thread, must not block.
        refits: where refitted models are and who makes them; None: shipped models only.
        open_backend: begins a backend; by default one that works on the predictor thread.
    """

    def __init__(
        self,
        settings: Predict,
        folder: Path,
        *,
        history: History = _no_history,
        prices: Mapping[str, Price] | None = None,
        key: bytes = b"",
        private: Collection[str] = (),
        state: bytes | None = None,
        keep: Callable[[bytes], object] | None = None,
        refits: Refits | None = None,
        open_backend: Callable[[Setup], Backend] = Local,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._prices: Mapping[str, Price] = prices or {}
        self._key = key or os.urandom(16)
        # the loop's
        self._stage0 = Stage0(settings, self._prices, self._key)
        self._forecasts = dict.fromkeys(Rung, 0)
        # shared: replaced whole, or safe in itself
        self._private = frozenset(private)
        self._inbox = Inbox()
        self._dropped_full = self._learn_lost = 0
        # the thread's
        self._history = history
        self._kept = state
        self._keep = keep
        self._refits = refits
        self._open_backend = open_backend
        self._artefacts: Artefacts | None = None  # what stage 0 needs of them
        self._backend: Backend | None = None
        self._thread: threading.Thread | None = None
        self._state = "starting"
        self._encoder = ""
        self._rows = 0
        self._drifts = self._drifts_before = 0  # in all; by backends that have gone
        self._version: Path | None = None  # of the models that `_kept` is of
        self._refined = dict.fromkeys(Rung, 0)
        self._skipped_late = 0
        self._lessons = self._lessons_brief = 0
        self._restarts = 0
        self._life = 0  # backends opened
        self._seconds = 0.0
        self._busy_since_s: float | None = None  # of the item in work
        self._seen: dict[CacheKey, None] = {}  # prompts learned lately, oldest first
        self._faults = 0

    # --- life ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; artefacts are loaded there. Does nothing when not enabled."""
        if self._settings.enabled and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="predictor", daemon=True)
            self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread: forecasts are dropped, results learned from while time allows."""
        thread = self._thread
        self._inbox.close(timeout_s)
        if thread is not None:
            thread.join(timeout_s + LAST_WORDS_S)
        self._learn_lost += self._inbox.abandon()

    def reconfigure(self, settings: Predict, private: Collection[str] | None = None) -> None:
        """Take new settings; what they change on the thread is done there.

        Args:
            private: tenants with `share_history = false`; None: as before.
        """
        old, self._settings = self._settings, settings
        if private is not None:
            self._private = frozenset(private)
        self._stage0.settings = settings
        self._stage0.forget()
        if self._thread is None:
            self.start()
        else:  # another encoder, or another folder of models, needs a restart
            self._settings = structs.replace(
                settings,
                embedding_model_name=old.embedding_model_name,
                models_path=old.models_path,
            )
            self._inbox.order(self._configure)

    def reset_learned(self) -> None:
        """Empty the index, the calibration and the cache of repeats, and leave refits aside."""
        self._stage0.forget()
        self._stage0.calibrate(Calibration())
        if self._alive:
            self._inbox.order(self._forget)
            return
        self._keep_calibration(Calibration().dump())  # nobody is there to follow an order
        if self._refits is not None:
            self._refits.forget()

    def tick(self) -> None:
        """Look after refits: to be called every minute or so."""
        if self._refits is not None and self._works:
            self._inbox.order(self._tend)

    # --- the loop's side ----------------------------------------------------------------

    def forecast(self, view: PromptView) -> Workload:
        """Stage 0: ≤ 0.2 ms, never raises. A lately refined or learned repeat is answered
        from the cache, with the rung it was given then."""
        try:
            workload = self._stage0.forecast(view)
        except Exception:
            self._fault("a forecast failed")
            workload = self._stage0.plain(structs.replace(view, max_tokens=None, n=1))
        self._forecasts[workload.rung] += 1
        return workload

    def prompt_alone(self, like: Workload, model: str, prompt_tokens: int) -> Workload:
        """`like`, of a request that generates nothing and costs what its prompt does."""
        price = self._prices.get(model)
        usd = None if price is None else price.tier(prompt_tokens).usd(prompt_tokens, 0.0)
        cost = float(prompt_tokens)
        return structs.replace(
            like,
            prompt_tokens=prompt_tokens,
            cost_p50=cost,
            cost_p90=cost,
            cost_usd_p50=usd,
            cost_usd_p90=usd,
        )

    def refine(self, view: PromptView, done: Done, wanted: Callable[[], bool]) -> bool:
        """Ask for the best forecast.

        Args:
            done: gets it, on the predictor thread, at most once; never after False.
            wanted: asked on the predictor thread just before work; False skips the item.

        Returns:
            False when the queue is full or nobody works on it.
        """
        taken = self._works and self._inbox.ask(
            Question(view, done, wanted), self._settings.queue_items
        )
        self._dropped_full += not taken and self._settings.enabled
        return taken

    def learn(
        self,
        view: PromptView,
        *,
        output_tokens: int,
        prompt_tokens: int | None,
        censored: bool,
        success: bool,
        wall_s: float,
        cached_tokens: int = 0,
        reasoning_tokens: int = 0,
        done: Learned | None = None,
        urgent: bool = False,
        keep: Keep | None = None,
    ) -> bool:
        """Learn from a finished request; forecasts go first.

        Args:
            output_tokens: per choice.
            prompt_tokens: as the provider counted; None takes the estimate.
            censored: the answer was cut: its natural length is longer.
            success: the provider answered; a failed, uncensored length is not learned from.
            wall_s: when it ended, Unix time.
            cached_tokens: of the prompt, read from the provider's cache.
            reasoning_tokens: of the output, per choice.
            done: gets the history row, on the predictor thread, once it is learned; or the
                error that kept it from being. With `keep` it may be on the thread that stores.
            urgent: somebody waits for that: do not let it linger.
            keep: stores the row; called on the predictor thread, must not block. Nothing is
                learned of a row it refuses, or says is not stored.

        Returns:
            False when the queue is full or nobody works on it: the result is lost.
        """
        lesson = Lesson(
            view=view,
            output_tokens=output_tokens,
            prompt_tokens=prompt_tokens,
            censored=censored,
            success=success,
            wall_s=wall_s,
            cached_tokens=cached_tokens,
            reasoning_tokens=reasoning_tokens,
        )
        return self._tell(Result(lesson, done, urgent, keep))

    def observe(self, view: PromptView, output_tokens: int) -> bool:
        """An answer still running has so many tokens (per choice): a lower bound. Of use where
        that is past its p90. Nothing is stored; False as for `learn`."""
        lesson = Lesson(view, output_tokens, None, True, False, 0.0, running=True)
        return self._tell(Result(lesson, None))

    def profile(self, model: str) -> dict[str, float | None]:
        """What is known of a model, for people: typical length and prices."""
        tables, price = self._stage0.known.trees.tables, self._prices.get(model)
        mean = None
        if tables is not None:
            known = tables.model_mean(model)
            mean = tables.mean if isnan(known) else known
        return {
            "typical_output_tokens": None if mean is None else round(expm1(max(mean, 0.0)), 1),
            "usd_per_million_prompt_tokens": None if price is None else price.prompt,
            "usd_per_million_output_tokens": None if price is None else price.output,
            "usd_per_million_cached_tokens": None if price is None else price.cached,
        }

    def snapshot(self) -> PredictorSnapshot:
        alive, refits, artefacts = self._alive, self._refits, self._artefacts
        return PredictorSnapshot(
            ready=alive and self._backend is not None and self._settings.enabled,
            state=self._describe(alive),
            encoder=self._encoder,
            index_rows=self._rows,
            forecast_queue=self._inbox.questions,
            learn_queue=self._inbox.results,
            forecasts={rung: self._forecasts[rung] + self._refined[rung] for rung in Rung},
            skipped_late=self._skipped_late,
            dropped_full=self._dropped_full,
            learn_lost=self._learn_lost,
            cache_hits=self._stage0.hits,
            seconds=self._seconds,
            drifts=self._drifts,
            version=0 if artefacts is None else artefacts.version,
            refit="off" if refits is None else refits.state,
            restarts=self._restarts,
            learned_briefly=self._lessons_brief,
        )

    def _tell(self, result: Result) -> bool:
        taken = self._works and self._inbox.tell(result, self._settings.learn_items)
        self._learn_lost += not taken and self._settings.enabled
        return taken

    def _describe(self, alive: bool) -> str:
        if not self._settings.enabled:
            return "off"
        if self._thread is not None and not alive and not self._state.startswith("degraded"):
            return "degraded: the predictor thread has ended"
        since = self._busy_since_s
        if alive and since is not None and time.monotonic() - since > STUCK_S:
            return f"degraded: no progress for {time.monotonic() - since:.0f} s"
        return self._state

    @property
    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def _works(self) -> bool:
        return self._settings.enabled and self._alive

    # --- the thread's side --------------------------------------------------------------

    def _run(self) -> None:
        pause_s = PAUSE_S
        try:
            self._begin_stage0()
            while not self._inbox.closing:
                opened_s = float("inf")
                try:
                    self._follow_orders()
                    if not self._settings.enabled:
                        self._rest()
                        continue
                    self._open()
                    opened_s = time.monotonic()
                    self._work()
                    if not self._inbox.closing:
                        self._switch_off()
                    continue
                except Exception as error:
                    self._lose(error)
                pause_s = PAUSE_S if time.monotonic() - opened_s > WELL_S else pause_s
                self._inbox.rest(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        except BaseException as error:  # the thread ends; the loop goes on with stage 0
            self._state = f"degraded: the predictor thread died: {type(error).__name__}"
            logger.exception("the predictor thread died")
        finally:
            self._end_backend()
            self._follow_orders()
            if self._refits is not None:
                self._refits.stop()

    def _rest(self) -> None:
        """Switched off: nothing but orders, until it is on or closing."""
        while not self._settings.enabled and (item := self._inbox.take()) is not None:
            if isinstance(item, list):  # whose rows were stored meanwhile
                for result in item:
                    self._tell_learned(result, BackendGone("it is switched off"))
            elif not isinstance(item, Question):
                item()
        self._state = "starting"

    def _switch_off(self) -> None:
        """End what works. What it learned is in history and in the calibration."""
        self._rows, self._drifts_before, self._encoder = 0, self._drifts, ""
        self._end_backend()
        if self._refits is not None:
            self._refits.stop()
        logger.info("the predictor is switched off")

    def _end_backend(self) -> None:
        self._store_calibration()
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def _work(self) -> None:
        """Until it is closing; or switched off, and what was let in before is done."""
        while self._settings.enabled or not self._inbox.empty:
            if (item := self._inbox.take()) is None:
                return
            began_s = self._busy_since_s = time.monotonic()
            try:
                if isinstance(item, Question):
                    self._answer(item)
                elif isinstance(item, list):
                    self._take_in(item)
                else:
                    item()
            finally:
                self._busy_since_s = None
                self._seconds += time.monotonic() - began_s

    def _follow_orders(self) -> None:
        """Those that wait while there is no backend: what they ask of it, the next one begins
        with."""
        for order in self._inbox.orders():
            order()

    def _lose(self, error: Exception) -> None:
        """The backend is gone or of no use, and with it the index. Its calibration is here."""
        self._end_backend()
        self._restarts += 1
        self._rows, self._drifts_before = 0, self._drifts
        why = str(error) if isinstance(error, BackendGone) else type(error).__name__
        self._state = f"degraded: the predictor's process: {why}"
        logger.error(
            "the predictor's process: %s; it is begun again",
            why,
            exc_info=None if isinstance(error, BackendGone) else error,
        )

    def _begin_stage0(self) -> None:
        settings, refits = self._settings, self._refits
        shipped = Artefacts(
            *(self._folder, settings.embedding_model_name, settings.max_encoder_tokens),
            only_stage0=True,
        )
        self._version = None if refits is None else refits.current()
        self._give_trees(shipped.refitted(self._version), Calibration())

    def _open(self) -> None:
        """A backend as the last one was: the residuals are of its version. Then the newest."""
        if self._restarts == 0:
            self._state = "starting"
        version = self._version
        backend = self._open_backend(
            Setup(
                settings=self._settings,
                folder=str(self._folder),
                key=self._key,
                prices=dict(self._prices),
                private=self._private,
                version="" if version is None else str(version),
                calibration=self._kept,
            )
        )
        try:
            self._refill(backend)
        except BaseException:
            backend.close()
            raise
        self._backend = backend
        self._life += 1
        self._publish()
        if not backend.about.restored:
            logger.warning("predictor: the stored calibration is not usable: begun anew")
        self._encoder = backend.about.encoder
        self._say()
        newest = None if self._refits is None else self._refits.current()
        if newest != version:
            self._adopt(newest)

    def _give_trees(self, artefacts: Artefacts, calibration: Calibration) -> None:
        self._artefacts = artefacts
        self._stage0.take(Trees(artefacts.stage0(), artefacts.tables), calibration)

    def _say(self) -> None:
        problems = () if self._backend is None else self._backend.about.problems
        self._state = f"degraded: {'; '.join(problems)}" if problems else "ready"
        for problem in problems:
            logger.error("predictor: %s", problem)

    def _refill(self, backend: Backend) -> None:
        encoder, bad = backend.about.encoder, 0
        for page in self._history(encoder) if encoder else ():
            bad += _remember(backend, page)
            self._rows = backend.about.rows
            if self._inbox.closing:
                return
        if bad:
            logger.warning("predictor: %d history rows cannot be used", bad)

    def _configure(self) -> None:
        if self._backend is not None:
            self._backend.configure(self._settings, self._private)
            self._publish()

    def _forget(self) -> None:
        self._seen.clear()
        if self._refits is not None:
            self._refits.forget()
        self._keep_calibration(Calibration().dump())
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

    def _tend(self) -> None:
        """Take a refit that is done; begin one that is due."""
        refits = self._refits
        if refits is None or self._backend is None:
            return
        try:
            if refits.tend(self._settings, self._lessons, self._drifts):
                self._adopt(refits.current())
                self._store_calibration()
        except BackendGone:
            raise
        except Exception:
            self._fault("looking after refits failed")

    def _adopt(self, version: Path | None) -> None:
        assert self._backend is not None
        self._backend.adopt("" if version is None else str(version))
        self._take_version(version, self._backend.calibration)
        self._publish()
        self._say()

    def _take_version(self, version: Path | None, calibration: Calibration) -> None:
        assert self._artefacts is not None
        self._version = version
        self._give_trees(self._artefacts.refitted(version), calibration)
        self._stage0.generation = object()

    def _answer(self, question: Question) -> None:
        generation = self._stage0.generation
        try:
            if not question.wanted():
                self._skipped_late += 1
                return
            assert self._backend is not None
            view = self._stage0.cut(question.view)
            workload = self._backend.forecast(view)
            self._refined[workload.rung] += 1
            self._stage0.tell(generation, view, workload)
            question.done(workload)
        except BackendGone:
            raise
        except Exception:
            self._fault("a refinement failed")

    def _take_in(self, results: list[Result]) -> None:
        lessons, drafts = [], []
        for result in results:
            if result.keep is not None:
                drafts.append(result)
            elif result.stored is not None and result.life != self._life:
                # The backend opened since was filled from history, which had the row by then.
                self._hear(result, result.stored)
            else:
                lessons.append(result)
        brief = len(results) > BATCH
        drafted = self._draft(drafts)  # first: it does not raise, and somebody waits for it
        for row in drafted + self._learn(lessons, brief):
            if isinstance(row, BackendGone):
                raise row

    def _learn(self, results: list[Result], brief: bool) -> list[HistoryRow | Exception]:
        generation = self._stage0.generation
        lessons = [self._lesson(result, brief) for result in results]
        rows = self._rows_of(lessons)
        self._lessons_brief += brief * len(results)
        for result, row in zip(results, rows, strict=True):
            self._tell_learned(result, row)
        for lesson, row in zip(lessons, rows, strict=True):
            if isinstance(row, HistoryRow) and not lesson.running:
                self._count(None if brief else generation, lesson.view)
        return rows

    def _draft(self, results: list[Result]) -> list[HistoryRow | Exception]:
        """Have the rows stored; their lessons come again when they are."""
        rows = self._rows_of([self._lesson(result) for result in results], draft=True)
        for result, row in zip(results, rows, strict=True):
            if isinstance(row, Exception):
                self._tell_learned(result, row)
                continue
            keep, again = (
                result.keep,
                structs.replace(result, keep=None, stored=row, life=self._life),
            )
            assert keep is not None
            try:
                kept = keep(row, partial(self._settle, again))
            except Exception as error:
                self._tell_learned(result, error)
            else:
                if not kept:
                    self._hear(result, Unavailable(_FULL, code="busy", retry_after_s=1.0))
        return rows

    def _settle(self, result: Result, error: Exception | None) -> None:
        """A drafted row is stored, or not. Called by whoever stores."""
        if error is not None:
            self._hear(result, error)
        elif not self._inbox.settle(result):
            assert result.stored is not None
            self._hear(result, result.stored)  # closing: the next start reads it

    def _lesson(self, result: Result, brief: bool = False) -> Lesson:
        lesson = result.lesson
        return structs.replace(lesson, view=self._stage0.cut(lesson.view), brief=brief)

    def _rows_of(
        self, lessons: list[Lesson], *, draft: bool = False
    ) -> list[HistoryRow | Exception]:
        """Does not raise: what fails for all of them is the answer for each."""
        if not lessons:
            return []
        try:
            assert self._backend is not None
            backend = self._backend
            rows = backend.draft(lessons) if draft else backend.learn(lessons)
            self._publish()
        except Exception as error:
            return [error] * len(lessons)
        return rows

    def _tell_learned(self, result: Result, row: HistoryRow | Exception) -> None:
        """What came of it, to whoever asked for it; a fault is counted. What is stored is kept
        whatever came of the lesson: the next backend reads it."""
        try:
            if isinstance(row, Exception):
                self._learn_lost += 1
                if not isinstance(row, BackendGone):
                    raise row
        except Exception:
            self._fault("learning failed")
        self._hear(result, row if result.stored is None else result.stored)

    def _hear(self, result: Result, row: HistoryRow | Exception) -> None:
        try:
            if result.done is not None:
                result.done(row)
        except Exception:
            self._fault("whoever waited for a lesson failed")

    def _count(self, generation: object | None, view: PromptView) -> None:
        self._lessons += 1
        if self._lessons % KEEP_EVERY == 0:
            self._store_calibration()
        try:
            if generation is not None:
                self._remember_repeat(generation, view)
        except BackendGone:
            raise
        except Exception:
            self._fault("a repeat was not prepared")

    def _remember_repeat(self, generation: object, view: PromptView) -> None:
        """A prompt learned for the second time comes again: have its forecast ready on the loop.
        For one that came once this would be the dearest part of learning it."""
        assert self._backend is not None
        key = self._stage0.cache_key(view)
        if key in self._seen:
            self._stage0.tell(generation, view, self._backend.forecast(view))
        self._seen[key] = None
        if len(self._seen) > REPEATS:
            self._seen.pop(next(iter(self._seen)))

    def _publish(self) -> None:
        assert self._backend is not None
        self._stage0.calibrate(self._backend.calibration)
        about = self._backend.about
        self._rows, self._drifts = about.rows, self._drifts_before + about.drifts

    def _store_calibration(self) -> None:
        if self._backend is not None:
            self._keep_calibration(self._backend.calibration.dump())

    def _keep_calibration(self, kept: bytes) -> None:
        self._kept = kept
        try:
            if self._keep is not None:
                self._keep(kept)
        except Exception:
            self._fault("the calibration was not stored")

    def _fault(self, what: str) -> None:
        """Once in a while with its traceback, which holds no prompt; always counted."""
        self._faults += 1
        if self._faults & (self._faults - 1) == 0:
            logger.exception("predictor: %s (%d so far)", what, self._faults)


def _remember(backend: Backend, rows: Sequence[HistoryRow]) -> int:
    """How many could not be read: one that cannot even be sent spoils its neighbours' frame."""
    try:
        return backend.remember(rows)
    except BackendError:
        if len(rows) == 1:
            return 1
        return sum(_remember(backend, [row]) for row in rows)
