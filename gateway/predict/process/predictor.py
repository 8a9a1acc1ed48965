"""The predictor: stage 0 on the caller's thread, everything slow in a process of its own.

This is its face, for the event loop and whoever it serves; what stands behind it, file by file:

- `Stage0` (stage0.py): the forecast the loop makes itself, its booster, the cache of repeats;
- `PredictorThread` (thread.py): the one thread that talks to a backend. Views and lessons come
  to it through two bounded queues (inbox.py), forecasts before learning; whether a forecast is
  still wanted is asked just before the work;
- `Backends` (backends.py): opens, replaces and ends the `Backend`, which has encoder, index,
  boosters and residual sums and lives in a child process (worker.py says why);
- `Learner` (learner.py): how results become lessons and rows.

Who owns what. `Stage0` and the counts here are the loop's; thread, backends and learner are the
predictor thread's, of which this reads counts alone. Workloads, trees and the calibration come
back by replacing a reference, or as news for the cache.

Fail open: `forecast` never raises; a full queue, a late item, a bad artefact, a backend that has
gone or a dead thread costs quality, never an answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import expm1, isnan
from pathlib import Path

from msgspec import structs

from gateway.predict.calibrate import Calibration
from gateway.predict.lesson import Lesson
from gateway.predict.prices import Price
from gateway.predict.process.backend import Backend, Local, Setup
from gateway.predict.process.backends import Backends, History
from gateway.predict.process.faults import Faults
from gateway.predict.process.inbox import Done, Inbox, Keep, Learned, Question, Result
from gateway.predict.process.kept import Kept
from gateway.predict.process.learner import Learner
from gateway.predict.process.thread import PredictorThread
from gateway.predict.refit.due import Refits
from gateway.predict.stage0 import Stage0
from gateway.predict.view import PromptView
from gateway.settings.schema import Predict
from gateway.snapshots import PredictorSnapshot
from gateway.types import HistoryRow, Rung, Workload


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
        key = key or os.urandom(16)
        self._prices: Mapping[str, Price] = prices or {}
        self._faults = faults = Faults()
        # the loop's
        self._stage0 = Stage0(settings, self._prices, key)
        self._forecasts = dict.fromkeys(Rung, 0)
        # any thread's: safe in itself, or a count for people
        self._inbox = Inbox()
        self._dropped_full = self._lost = 0
        # the thread's
        self._backends = Backends(
            *(folder, key, self._prices),
            stage0=self._stage0,
            kept=Kept(state, keep, faults),
            history=history,
            refits=refits,
            open_backend=open_backend,
            faults=faults,
        )
        self._learner = Learner(self._backends, self._stage0, self._inbox.settle, faults)
        self._thread = PredictorThread(
            settings,
            frozenset(private),
            inbox=self._inbox,
            stage0=self._stage0,
            backends=self._backends,
            learner=self._learner,
            faults=faults,
        )

    # --- life ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; artefacts are loaded there. Does nothing when not enabled."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread: forecasts are dropped, results learned from while time allows."""
        self._inbox.close(timeout_s)
        self._thread.join(timeout_s)
        self._lost += self._inbox.abandon()

    def reconfigure(self, settings: Predict, private: Collection[str] | None = None) -> None:
        """Take new settings; what they change on the thread is done there.

        Args:
            private: tenants with `share_history = false`; None: as before.
        """
        self._stage0.settings = settings
        self._stage0.forget()
        self._thread.reconfigure(settings, None if private is None else frozenset(private))

    def reset_learned(self) -> None:
        """Empty the index, the calibration and the cache of repeats, and leave refits aside."""
        self._stage0.forget()
        self._stage0.calibrate(Calibration())
        self._thread.forget()

    def tick(self) -> None:
        """Look after refits: to be called every minute or so."""
        self._thread.tend()

    # --- forecasts ----------------------------------------------------------------------

    def forecast(self, view: PromptView) -> Workload:
        """Stage 0: ≤ 0.2 ms, never raises. A lately refined or learned repeat is answered
        from the cache, with the rung it was given then."""
        try:
            workload = self._stage0.forecast(view)
        except Exception:
            self._faults("a forecast failed")
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
        settings = self._thread.settings
        taken = self._thread.works and self._inbox.ask(
            Question(view, done, wanted), settings.queue_items
        )
        self._dropped_full += not taken and settings.enabled
        return taken

    # --- learning -----------------------------------------------------------------------

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

    def _tell(self, result: Result) -> bool:
        settings = self._thread.settings
        taken = self._thread.works and self._inbox.tell(result, settings.learn_items)
        self._lost += not taken and settings.enabled
        return taken

    # --- for people ---------------------------------------------------------------------

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
        thread, backends, learner = self._thread, self._backends, self._learner
        return PredictorSnapshot(
            ready=thread.works and backends.opened,
            state=thread.describe(),
            encoder=backends.encoder,
            index_rows=backends.rows,
            forecast_queue=self._inbox.questions,
            learn_queue=self._inbox.results,
            forecasts={rung: self._forecasts[rung] + thread.refined[rung] for rung in Rung},
            skipped_late=thread.skipped_late,
            dropped_full=self._dropped_full,
            learn_lost=self._lost + learner.lost,
            cache_hits=self._stage0.hits,
            seconds=thread.seconds,
            drifts=backends.drifts,
            version=backends.version,
            refit=backends.refit,
            restarts=backends.restarts,
            learned_briefly=learner.learned_briefly,
        )
