"""The predictor: stage 0 on the event loop, everything slow in a child process.

`Predictor` is all that other rooms see. Its task has what waits done by a child process
(`ChildWork`, `ChildSupervisor`) and replaces a child that ends or hangs after a pause, which grows
while that keeps happening. Everything runs on the event loop, without a thread between it and the
child.

Fail open: `forecast` never raises. A full queue, a late item, a bad artefact, a child that has
ended or a dead task makes forecasts worse, and fails no request.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from math import expm1, isnan
from pathlib import Path
from time import monotonic

from msgspec import structs

from gateway.errors import Unavailable
from gateway.predict.calibrate import Calibration
from gateway.predict.lesson import Lesson
from gateway.predict.prices import Price
from gateway.predict.process.child_client import Connect
from gateway.predict.process.child_work import TICK_S, ChildWork
from gateway.predict.process.learner import Learner, RowsWritten
from gateway.predict.process.pending import PendingForecast, PromisedLesson
from gateway.predict.process.supervisor import (
    CalibrationStore,
    ChildSupervisor,
    FaultLog,
    HistoryPages,
)
from gateway.predict.process.wire import ChildGone
from gateway.predict.prompt_view import PromptView
from gateway.predict.refit.due import Refits
from gateway.predict.stage0 import Stage0
from gateway.settings.schema import Predict
from gateway.snapshots import PredictorSnapshot
from gateway.types import HistoryRow, Workload

logger = logging.getLogger(__name__)

STUCK_S = 5.0  # with one question, after which the state says so
PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0  # before a child that has gone is replaced
WELL_S = 60.0  # of life, after which the next pause is the first again
_FULL = "The predictor takes no more results now."


def _no_history(encoder: str) -> Iterable[Sequence[HistoryRow]]:
    return ()


class Predictor:
    """Forecasts of output length, and a task that has them refined and learned from.

    Belongs to the event loop.

    Args:
        settings: [predict].
        folder: models/.
        connect: starts a child.
        history: the rows of an encoder to fill the index with, oldest first, in pages of some
            hundred; read on a worker thread whenever a child is opened.
        prices: by model, for `cost_usd_p50`.
        key: of the prompt hash, at most 64 bytes; random when empty.
        private: tenants with `share_history = false`.
        state: the calibration as `keep` was last given it.
        keep: stores the calibration; must not block.
        store: the file that the child writes history rows to; None: they are not kept.
        written: told of rows stored there.
        refits: where refitted models are and who makes them; None: shipped models only.
        pause_s: before a child that has gone is replaced; doubled at each one that soon follows.
        tick_s: between two batches of lessons.
    """

    def __init__(
        self,
        settings: Predict,
        folder: Path,
        *,
        connect: Connect,
        history: HistoryPages = _no_history,
        prices: Mapping[str, Price] | None = None,
        key: bytes = b"",
        private: Collection[str] = (),
        state: bytes | None = None,
        keep: Callable[[bytes], object] | None = None,
        store: Path | None = None,
        written: RowsWritten = lambda stored, lost, why: None,
        refits: Refits | None = None,
        pause_s: float = PAUSE_S,
        tick_s: float = TICK_S,
    ) -> None:
        key = key or os.urandom(16)
        self._settings = settings
        self._pause_s = pause_s
        self._private = frozenset(private)
        self._prices: Mapping[str, Price] = prices or {}
        self._faults = faults = FaultLog()
        self._stage0 = Stage0(settings, self._prices, key)
        self._wake = asyncio.Event()  # there may be something to do
        self._child = ChildSupervisor(
            *(folder, key, self._prices),
            stage0=self._stage0,
            calibrations=CalibrationStore(state, keep, faults),
            history=history,
            refits=refits,
            store=store,
            connect=connect,
            on_gone=self._wake.set,
            faults=faults,
        )
        self._learner = Learner(self._child, self._stage0, faults, written)
        self._work = ChildWork(self._child, self._stage0, self._learner, faults, self._wake, tick_s)
        self._pending = self._work.pending
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._configure_due = self._forget_due = self._tend_due = False
        self._death = ""
        self._dropped_full = self._lost = 0

    def __repr__(self) -> str:
        return f"<Predictor {self._describe()!r} {self._pending!r} {self._child!r}>"

    # --- life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the task; it loads the models. Nothing when not enabled, or the second time."""
        if self._settings.enabled and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="predictor")

    async def stop(self, timeout_s: float) -> None:
        """End task and child: forecasts are dropped, lessons learned while time allows."""
        self._pending.close()
        self._closing.set()
        self._wake.set()
        task = self._task
        if task is not None:
            learns = self._child.opened or not self._pending.empty
            await asyncio.wait({task}, timeout=timeout_s if learns else 0.0)
            task.cancel()
            await asyncio.wait({task})
        self._work.give_up("the predictor has stopped")

    def reconfigure(self, settings: Predict, private: Collection[str] | None = None) -> None:
        """Take new settings. Another encoder, or another folder of models, needs a restart.

        Args:
            private: tenants with `share_history = false`; None: as before.
        """
        if private is not None:
            self._private = frozenset(private)
        self._stage0.settings = settings
        self._stage0.forget()
        if self._task is None:
            self._settings = settings
            self.start()
            return
        self._settings = structs.replace(
            settings,
            embedding_model_name=self._settings.embedding_model_name,
            models_path=self._settings.models_path,
        )
        self._configure_due = True
        self._wake.set()

    def reset_learned(self) -> None:
        """Empty the index, the calibration and the cache of repeats, and leave refits aside."""
        self._stage0.forget()
        self._stage0.calibrate(Calibration())
        if self._alive:
            self._forget_due = True
            self._wake.set()
        else:
            self._child.forget_stored()

    def tick(self) -> None:
        """Look after refits: to be called every minute or so."""
        if self._works:
            self._tend_due = True
            self._wake.set()

    # --- forecasts ------------------------------------------------------------------------

    def forecast(self, view: PromptView) -> Workload:
        """Stage 0's forecast: ≤ 0.2 ms, never raises. A lately refined or learned repeat is
        answered from the cache, with the rung it was given then."""
        try:
            workload = self._stage0.forecast(view)
        except Exception:
            self._faults("a forecast failed")
            workload = self._stage0.plain(structs.replace(view, max_tokens=None, n=1))
        self._work.forecasts[workload.rung] += 1
        return workload

    def prompt_alone(self, like: Workload, model: str, prompt_tokens: int) -> Workload:
        """`like`, of a request that generates nothing and costs what its prompt does."""
        price = self._prices.get(model)
        usd = None if price is None else price.rates(prompt_tokens).usd(prompt_tokens, 0.0)
        cost = float(prompt_tokens)
        return structs.replace(
            like,
            prompt_tokens=prompt_tokens,
            cost_p50=cost,
            cost_p90=cost,
            cost_usd_p50=usd,
            cost_usd_p90=usd,
        )

    def refine(
        self, view: PromptView, done: Callable[[Workload], None], wanted: Callable[[], bool]
    ) -> bool:
        """Ask for the best forecast.

        Args:
            done: gets it, later and at most once; not where it comes too late, or newer ones
                leave no room for it; never after False.
            wanted: asked just before the work; False skips it.

        Returns:
            False when the task does not run.
        """
        settings = self._settings
        taken = self._works and self._pending.add_forecast(
            PendingForecast(view, done, wanted), settings.queue_items
        )
        self._dropped_full += not taken and settings.enabled
        if taken:
            self._wake.set()
        return taken

    # --- learning -------------------------------------------------------------------------

    def learn(self, lesson: Lesson) -> bool:
        """Learn from a finished request, some time later; forecasts go first. The child stores its
        row. Nobody is told: lessons are lost, at most a tick's and those that wait in the child,
        where the child or the gateway is killed.

        Args:
            lesson: a failed, uncensored length in it is not learned from.

        Returns:
            False when the list is full or the task does not run: a lesson is lost.
        """
        settings = self._settings
        taken = self._works and self._work.learn(lesson, settings.learn_items)
        self._lost += not taken and settings.enabled
        return taken

    def observe(self, view: PromptView, output_tokens: int) -> bool:
        """Learn that an answer still running has so many tokens (per choice): a lower bound. Of
        use where that is past its p90. Nothing is stored; False as for `learn`."""
        return self.learn(Lesson(view, output_tokens, None, True, False, 0.0, running=True))

    async def learn_stored(self, lesson: Lesson) -> None:
        """Store a lesson's row, and learn it; return once it is committed.

        A caller that is cancelled before the child is asked leaves nothing stored; after that, the
        row is stored and learned all the same.

        Raises:
            Unavailable: no room for the lesson.
            NotStored: the store does not take it; nothing is learned.
            ChildError: it could not be drafted; nothing is stored.
            ChildGone: the child has gone; whether the row is stored is not known.
        """
        settings, stored = self._settings, asyncio.get_running_loop().create_future()
        promise = PromisedLesson(lesson, stored)
        if not (self._works and self._pending.add_promise(promise, settings.learn_items)):
            self._lost += settings.enabled
            raise Unavailable(_FULL, code="busy", retry_after_s=1.0)
        self._wake.set()
        await stored

    # --- for people -----------------------------------------------------------------------

    def profile(self, model: str) -> dict[str, float | None]:
        """A model's typical length and prices; None where unknown."""
        tables, price = self._stage0.tables, self._prices.get(model)
        mean = None
        if tables is not None:
            own = tables.model_mean(model)
            mean = tables.mean if isnan(own) else own
        return {
            "typical_output_tokens": None if mean is None else round(expm1(max(mean, 0.0)), 1),
            "usd_per_million_prompt_tokens": None if price is None else price.prompt,
            "usd_per_million_output_tokens": None if price is None else price.output,
            "usd_per_million_cached_tokens": None if price is None else price.cached,
        }

    def snapshot(self) -> PredictorSnapshot:
        """State and counts, for display and metrics."""
        child, learner = self._child, self._learner
        return PredictorSnapshot(
            ready=self._works and child.opened,
            state=self._describe(),
            encoder=child.encoder,
            index_rows=child.rows,
            forecast_queue=self._pending.forecasts,
            learn_queue=self._pending.lessons + learner.waiting,
            forecasts=dict(self._work.forecasts),
            skipped_late=self._work.skipped_late,
            dropped_full=self._dropped_full + self._pending.dropped,
            learn_lost=self._lost + learner.lost,
            cache_hits=self._stage0.hits,
            seconds=child.seconds,
            drifts=child.drifts,
            version=child.version,
            refit=child.refit,
            restarts=child.restarts,
            priority=child.priority,
            learned=learner.learned,
            sampled_out=learner.sampled_out,
        )

    @property
    def _alive(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def _works(self) -> bool:
        """True where work that is queued now will be done."""
        return self._settings.enabled and self._alive

    def _describe(self) -> str:
        if not self._settings.enabled:
            return "off"
        state = self._death or self._child.state
        if self._task is not None and not self._alive and not state.startswith("degraded"):
            return "degraded: the predictor has ended"
        if (stuck_s := self._child.busy_s) > STUCK_S:
            return f"degraded: no progress for {stuck_s:.0f} s"
        return state

    # --- the task -------------------------------------------------------------------------

    async def _run(self) -> None:
        pause_s = self._pause_s
        try:
            await self._child.begin(self._settings)
            while not self._closing.is_set():
                opened_s = float("inf")
                try:
                    await self._follow_orders()
                    if not self._settings.enabled:
                        await self._idle()
                        continue
                    await self._child.open(self._settings, self._private)
                    opened_s = monotonic()
                    await self._serve()
                    if not self._closing.is_set():
                        self._learner.child_gone(ChildGone("it is switched off"))
                        await self._child.switch_off()
                    continue
                except Exception as error:
                    self._learner.child_gone(ChildGone(str(error)))
                    await self._child.lose(error)
                pause_s = self._pause_s if monotonic() - opened_s > WELL_S else pause_s
                await _within(pause_s, self._closing)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        except Exception as error:  # stage 0 goes on alone
            self._death = f"degraded: the predictor died: {type(error).__name__}"
            logger.exception("the predictor died")
        finally:
            try:
                await self._child.close()
            finally:  # `stop` cancels the close when its time is up
                if self._forget_due:
                    self._child.forget_stored()
                self._pending.close()
                self._learner.child_gone(ChildGone("the predictor has ended"))
                self._work.give_up("the predictor has ended")
                await self._child.stop_refit()

    async def _serve(self) -> None:
        """Work until closing or switched off, and until what was taken before that is done."""
        while True:
            self._wake.clear()
            self._child.check()
            await self._follow_orders()
            ending = self._closing.is_set() or not self._settings.enabled
            worked = await self._work.turn(self._settings.cpu_share, ending=ending)
            if worked or self._wake.is_set():
                continue
            if ending and self._pending.empty:
                await self._learner.finish()
                return
            await self._wake.wait()

    async def _idle(self) -> None:
        """Follow orders and drop work while switched off, until switched on or closing."""
        while not (self._settings.enabled or self._closing.is_set()):
            self._wake.clear()
            await self._follow_orders()
            self._work.give_up("it is switched off")
            await self._wake.wait()

    async def _follow_orders(self) -> None:
        """Carry out the orders given since the last call, and meanwhile: what is asked next is of
        the state they lead to. Where no child is open, the next one starts with their result."""
        while self._configure_due or self._forget_due or self._tend_due:
            if self._configure_due:
                self._configure_due = False
                await self._child.configure(self._settings, self._private)
            if self._forget_due:
                self._forget_due = False
                await self._child.forget()
            if self._tend_due:
                self._tend_due = False
                await self._child.tend(self._settings, self._learner.learned)


async def _within(timeout_s: float, event: asyncio.Event) -> None:
    """Wait for the event for at most so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
