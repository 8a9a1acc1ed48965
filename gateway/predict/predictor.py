"""The predictor: stage 0 on the caller's thread, everything slow on one thread of its own.

Who owns what. The event loop owns stage 0's booster and the cache
of repeats. The predictor thread owns a `Foresight` (encoder, index, boosters, residuals).
Between them go immutable values only: views and lessons through two bounded queues,
forecasts before learning; workloads and the calibration table come back by replacing a
reference or through `_news`, a deque the loop empties into its cache.

Fail open: `forecast` never raises; a full queue, a late item, a bad artefact or a dead
thread costs quality, never an answer. The thread runs at nice 10 where the system allows
it for a thread, so that on one core the loop goes first.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from math import expm1
from pathlib import Path

from msgspec import structs

from gateway.predict.artefacts import Artefacts, LengthModel, Tables
from gateway.predict.calibrate import Calibration
from gateway.predict.features import PromptView, cut, prompt_key
from gateway.predict.foresight import (
    Foresight,
    Lesson,
    Money,
    heuristic_grid,
    stage0_grid,
    workload_of,
)
from gateway.predict.inbox import Done, Inbox, Learned, Question, Result
from gateway.predict.prices import Price
from gateway.settings.schema import Predict
from gateway.types import HistoryRow, PredictorSnapshot, Rung, Workload

logger = logging.getLogger(__name__)

CACHE_ITEMS = 4096  # repeats remembered, about 1 kB each
NEWS_ITEMS = 1024  # forecasts on their way to the cache
NEWS_PER_CALL = 64  # taken over by one `forecast`: some 10 µs
SLICE_ROWS = 32  # of history put into the index before the core is offered to others
NICE = 19
STUCK_S = 5.0
# While the event loop is late, this thread rests three times as long as it worked: what it
# would learn meanwhile is worth less than the requests that wait for the interpreter.
BRAKE_LAG_S = 0.003
BRAKE_RATIO = 3.0
BRAKE_MOST_S = 0.1
LAG_MEMORY = 0.7

CacheKey = tuple[str, str, int | None, int, bytes]


class Predictor:
    """Forecasts of output length, with a thread that refines them and learns.

    `forecast` and `reconfigure` are the loop's; `refine`, `learn`, `snapshot` may be called
    from any thread.

    Args:
        settings: [predict].
        folder: models/.
        history: rows to fill the index with at start, oldest first.
        prices: by model, for `cost_usd_p50`.
        key: of the prompt hash, at most 64 bytes; random when empty.
    """

    def __init__(
        self,
        settings: Predict,
        folder: Path,
        *,
        history: Sequence[HistoryRow] = (),
        prices: Mapping[str, Price] | None = None,
        key: bytes = b"",
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._prices: Mapping[str, Price] = prices or {}
        self._key = key or os.urandom(16)
        # the loop's
        self._stage0: LengthModel | None = None
        self._tables: Tables | None = None
        self._cache: OrderedDict[CacheKey, Workload] = OrderedDict()
        self._forecasts = dict.fromkeys(Rung, 0)
        self._cache_hits = 0
        # shared: replaced whole, or safe in itself
        self._calibration = Calibration()
        self._news: deque[tuple[int, CacheKey, Workload]] = deque(maxlen=NEWS_ITEMS)
        self._generation = 0  # news of an older one is not taken over
        self._inbox = Inbox()
        self._dropped_full = self._learn_lost = 0
        # the thread's
        self._history: Sequence[HistoryRow] = history
        self._foresight: Foresight | None = None
        self._thread: threading.Thread | None = None
        self._state = "starting"
        self._encoder = ""
        self._rows = 0
        self._refined = dict.fromkeys(Rung, 0)
        self._skipped_late = 0
        self._seconds = 0.0
        self._busy_since_s: float | None = None  # of the item in work
        self._lag_s = 0.0  # of the loop, smoothed
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
            thread.join(timeout_s)
        self._learn_lost += self._inbox.abandon()

    def reconfigure(self, settings: Predict) -> None:
        """Take new settings; what they change on the thread is done there."""
        old, self._settings = self._settings, settings
        self._cache.clear()
        self._generation += 1
        if self._thread is None:
            self.start()
        else:  # another encoder needs a restart: its vectors are the store's to load
            self._settings = structs.replace(
                settings, embedding_model_name=old.embedding_model_name
            )
            self._inbox.order(self._configure)

    def relieve(self, lag_s: float) -> None:
        """Told by the loop, now and then, how late it runs; the thread gives way."""
        self._lag_s = LAG_MEMORY * self._lag_s + (1 - LAG_MEMORY) * max(lag_s, 0.0)

    def reset_learned(self) -> None:
        """Empty the index, the calibration and the cache of repeats."""
        self._generation += 1
        self._cache.clear()
        self._calibration = Calibration()
        self._inbox.order(self._forget)

    # --- the loop's side ----------------------------------------------------------------

    def forecast(self, view: PromptView) -> Workload:
        """Stage 0: ≤ 0.2 ms, never raises. A lately refined or learned repeat is answered
        from the cache, with the rung it was given then."""
        try:
            if not self._settings.enabled:
                return self._counted(
                    workload_of(view, heuristic_grid(view), Rung.HEURISTIC, self._money)
                )
            self._take_news()
            view = self._cut(view)
            key = self._cache_key(view)
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
                self._cache_hits += 1
                return self._counted(found)
            bias = self._calibration.stage0(view.tenant, view.model)
            grid, rung = stage0_grid(view, self._stage0, self._tables, bias)
            return self._counted(workload_of(view, grid, rung, self._money))
        except Exception:
            self._fault("a forecast failed")
            plain = structs.replace(view, max_tokens=None, n=1)
            return self._counted(
                workload_of(plain, heuristic_grid(plain), Rung.HEURISTIC, self._money)
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
        done: Learned | None = None,
    ) -> bool:
        """Learn from a finished request; forecasts go first.

        Args:
            output_tokens: per choice.
            prompt_tokens: as the provider counted; None takes the estimate.
            censored: the answer was cut: its natural length is longer.
            success: the provider answered; a failed, uncensored length is not learned from.
            wall_s: when it ended, Unix time.
            done: gets the history row, on the predictor thread, once it is learned; or the
                error that kept it from being.

        Returns:
            False when the queue is full or nobody works on it: the result is lost.
        """
        lesson = Lesson(view, output_tokens, prompt_tokens, censored, success, wall_s)
        taken = self._works and self._inbox.tell(Result(lesson, done), self._settings.learn_items)
        self._learn_lost += not taken and self._settings.enabled
        return taken

    def profile(self, model: str) -> dict[str, float | None]:
        """What is known of a model, for people: typical length and price."""
        tables, price = self._tables, self._prices.get(model)
        mean = None if tables is None else tables.models.get(model, tables.mean)
        return {
            "typical_output_tokens": None if mean is None else round(expm1(mean), 1),
            "usd_per_million_prompt_tokens": None if price is None else price.prompt,
            "usd_per_million_output_tokens": None if price is None else price.output,
        }

    def snapshot(self) -> PredictorSnapshot:
        alive = self._alive
        return PredictorSnapshot(
            ready=alive and self._foresight is not None and self._settings.enabled,
            state=self._describe(alive),
            encoder=self._encoder,
            index_rows=self._rows,
            forecast_queue=self._inbox.questions,
            learn_queue=self._inbox.results,
            forecasts={rung: self._forecasts[rung] + self._refined[rung] for rung in Rung},
            skipped_late=self._skipped_late,
            dropped_full=self._dropped_full,
            learn_lost=self._learn_lost,
            cache_hits=self._cache_hits,
            seconds=self._seconds,
        )

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

    @property
    def _money(self) -> Money:
        return Money(self._settings.cost_output_ratio, self._prices)

    def _cut(self, view: PromptView) -> PromptView:
        limit = self._settings.max_chars
        if len(view.text) <= limit:
            return view
        return structs.replace(view, text=cut(view.text, limit))

    def _cache_key(self, view: PromptView) -> CacheKey:
        return view.tenant, view.model, view.max_tokens, view.n, prompt_key(view, self._key)

    def _counted(self, workload: Workload) -> Workload:
        self._forecasts[workload.rung] += 1
        return workload

    def _take_news(self) -> None:
        for _ in range(min(len(self._news), NEWS_PER_CALL)):
            generation, key, workload = self._news.popleft()
            if generation != self._generation:
                continue
            self._cache[key] = workload
            self._cache.move_to_end(key)
            if len(self._cache) > CACHE_ITEMS:
                self._cache.popitem(last=False)

    # --- the thread's side --------------------------------------------------------------

    def _run(self) -> None:
        _give_way()
        try:
            self._load()
            while (item := self._inbox.take()) is not None:
                began_s = self._busy_since_s = time.monotonic()
                if isinstance(item, Question):
                    self._answer(item)
                elif isinstance(item, Result):
                    self._take_in(item)
                else:
                    item()
                self._busy_since_s = None
                worked_s = time.monotonic() - began_s
                self._seconds += worked_s
                if self._lag_s > BRAKE_LAG_S and not self._inbox.closing:
                    time.sleep(min(BRAKE_RATIO * worked_s, BRAKE_MOST_S))
        except BaseException as error:  # the thread ends; the loop goes on with stage 0
            self._state = f"degraded: the predictor thread died: {type(error).__name__}"
            logger.exception("the predictor thread died")

    def _load(self) -> None:
        self._state = "starting"
        settings = self._settings
        artefacts = Artefacts(
            self._folder, settings.embedding_model_name, settings.max_encoder_tokens
        )
        # Stage 0 first: it is the loop's from here on.
        self._tables, self._stage0 = artefacts.tables, artefacts.stage0()
        foresight = Foresight(settings, artefacts, self._key, self._prices)
        self._encoder = artefacts.encoder_name
        self._refill(foresight, self._history)
        self._history = ()
        self._foresight = foresight
        self._publish()
        problems = artefacts.problems
        self._state = f"degraded: {'; '.join(problems)}" if problems else "ready"
        for problem in problems:
            logger.error("predictor: %s", problem)

    def _refill(self, foresight: Foresight, rows: Sequence[HistoryRow]) -> None:
        for i, row in enumerate(rows):
            try:
                foresight.remember(row)
            except Exception:  # one row that cannot be read is no reason to forget the rest
                self._fault("a history row cannot be used")
            if i % SLICE_ROWS == SLICE_ROWS - 1:
                time.sleep(0)
                self._rows = foresight.rows
                if self._inbox.closing:
                    return

    def _configure(self) -> None:
        if self._foresight is not None:
            self._foresight.configure(self._settings)
            self._publish()

    def _forget(self) -> None:
        if self._foresight is not None:
            self._foresight.forget()
            self._publish()

    def _answer(self, question: Question) -> None:
        generation = self._generation
        try:
            if not question.wanted():
                self._skipped_late += 1
                return
            assert self._foresight is not None
            view = self._cut(question.view)
            workload = self._foresight.forecast(view)
            self._refined[workload.rung] += 1
            self._news.append((generation, self._cache_key(view), workload))
            question.done(workload)
        except Exception:
            self._fault("a refinement failed")

    def _take_in(self, result: Result) -> None:
        generation = self._generation
        try:
            assert self._foresight is not None
            view = self._cut(result.lesson.view)
            row = self._foresight.learn(structs.replace(result.lesson, view=view))
            self._publish()
            self._remember_repeat(generation, view)
        except Exception as error:
            self._learn_lost += 1
            self._fault("learning failed")
            if result.done is not None:
                result.done(error)
            return
        if result.done is not None:
            result.done(row)

    def _remember_repeat(self, generation: int, view: PromptView) -> None:
        """A prompt learned for the second time comes again: have its forecast ready on the loop.
        For one that came once this would be the dearest part of learning it."""
        key = self._cache_key(view)
        assert self._foresight is not None
        if key in self._seen:
            self._news.append((generation, key, self._foresight.forecast(view)))
        self._seen[key] = None
        if len(self._seen) > CACHE_ITEMS:
            self._seen.pop(next(iter(self._seen)))

    def _publish(self) -> None:
        assert self._foresight is not None
        self._calibration = self._foresight.calibration
        self._rows = self._foresight.rows

    def _fault(self, what: str) -> None:
        """Once in a while with its traceback, which holds no prompt; always counted."""
        self._faults += 1
        if self._faults & (self._faults - 1) == 0:
            logger.exception("predictor: %s (%d so far)", what, self._faults)


def _give_way() -> None:
    """Lower this thread's priority; on Linux a native thread id names one thread."""
    if sys.platform == "linux":
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        except OSError:
            pass
