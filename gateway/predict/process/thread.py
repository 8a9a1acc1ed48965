"""The predictor thread: one item after another, for as long as there is a backend to ask.

It takes orders, questions and results out of the inbox, in that order. Questions it has the
backend answer itself, results it hands to the `Learner`, orders are methods of its own that the
event loop puts in. A backend that ends or hangs is replaced, after a pause that grows while that
keeps happening. Switched off, the thread ends the backend and waits; only an error that is no
`Exception` ends it, and stage 0 goes on without.

Who owns what. `start`, `join`, `reconfigure` and `forget` are the loop's, which alone replaces
`settings` and the private tenants; the thread reads them anew each time. Any thread may ask
whether it works, and how it stands. All else is written by the thread, its counts are read by
anybody, for people.
"""

from __future__ import annotations

import logging
import threading
import time

from msgspec import structs

from gateway.predict.process.backend import BackendGone
from gateway.predict.process.backends import Backends
from gateway.predict.process.faults import Faults
from gateway.predict.process.inbox import Inbox, Question
from gateway.predict.process.learner import Learner
from gateway.predict.stage0 import Stage0
from gateway.settings.schema import Predict
from gateway.types import Rung

logger = logging.getLogger(__name__)

STUCK_S = 5.0
PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0  # before a backend that has gone is opened again
LAST_WORDS_S = 2.0  # to end the child, after the time for learning is over
WELL_S = 60.0  # lived so long, the next pause is the first again


class PredictorThread:
    """Runs from `start` until the inbox is closed.

    Args:
        settings: [predict].
        private: tenants with `share_history = false`.
        inbox: what it takes from.
        stage0: is told the forecasts that were made.
        backends, learner: its own from `start` on.
    """

    def __init__(
        self,
        settings: Predict,
        private: frozenset[str],
        *,
        inbox: Inbox,
        stage0: Stage0,
        backends: Backends,
        learner: Learner,
        faults: Faults,
    ) -> None:
        # shared: replaced whole by the loop
        self.settings = settings
        self._private = private
        # safe in itself
        self._inbox = inbox
        self._faults = faults
        # the loop's
        self._thread: threading.Thread | None = None
        self._stage0 = stage0  # takes news from the thread
        # the thread's
        self._backends = backends
        self._learner = learner
        self._death = ""
        self._busy_since_s: float | None = None  # of the item in work
        self.seconds = 0.0  # at work, so far
        self.refined = dict.fromkeys(Rung, 0)
        self.skipped_late = 0

    # --- from outside -------------------------------------------------------------------

    def start(self) -> None:
        """Does nothing when not enabled, or for the second time."""
        if self.settings.enabled and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="predictor", daemon=True)
            self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for its end, which a closed inbox brings about in some `timeout_s`."""
        if self._thread is not None:
            self._thread.join(timeout_s + LAST_WORDS_S)

    def reconfigure(self, settings: Predict, private: frozenset[str] | None) -> None:
        """Take new settings. Another encoder, or another folder of models, needs a restart.

        Args:
            private: None: as before.
        """
        if private is not None:
            self._private = private
        if self._thread is None:
            self.settings = settings
            self.start()
            return
        self.settings = structs.replace(
            settings,
            embedding_model_name=self.settings.embedding_model_name,
            models_path=self.settings.models_path,
        )
        self._inbox.order(self._configure)

    def forget(self) -> None:
        """Have index, calibration and refits forgotten."""
        if self.alive:
            self._inbox.order(self._forget)
        else:  # nobody is there to follow an order
            self._backends.forget_kept()

    def tend(self) -> None:
        """Have refits looked after."""
        if self.works:
            self._inbox.order(self._tend)

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def works(self) -> bool:
        """Whether what is put in will be seen to."""
        return self.settings.enabled and self.alive

    def describe(self) -> str:
        """How it stands, in words."""
        if not self.settings.enabled:
            return "off"
        alive, state = self.alive, self._death or self._backends.state
        if self._thread is not None and not alive and not state.startswith("degraded"):
            return "degraded: the predictor thread has ended"
        since = self._busy_since_s
        if alive and since is not None and time.monotonic() - since > STUCK_S:
            return f"degraded: no progress for {time.monotonic() - since:.0f} s"
        return state

    # --- the thread's side --------------------------------------------------------------

    def _run(self) -> None:
        pause_s = PAUSE_S
        try:
            self._backends.begin(self.settings)
            while not self._inbox.closing:
                opened_s = float("inf")
                try:
                    self._follow_orders()
                    if not self.settings.enabled:
                        self._rest()
                        continue
                    self._backends.open(self.settings, self._private, self._closing)
                    opened_s = time.monotonic()
                    self._work()
                    if not self._inbox.closing:
                        self._backends.switch_off()
                    continue
                except Exception as error:
                    self._backends.lose(error)
                pause_s = PAUSE_S if time.monotonic() - opened_s > WELL_S else pause_s
                self._inbox.rest(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        except BaseException as error:  # the thread ends; the loop goes on with stage 0
            self._death = f"degraded: the predictor thread died: {type(error).__name__}"
            logger.exception("the predictor thread died")
        finally:
            self._backends.close()
            self._follow_orders()
            self._backends.stop_refit()

    def _work(self) -> None:
        """Until it is closing; or switched off, and what was let in before is done."""
        while self.settings.enabled or not self._inbox.empty:
            if (item := self._inbox.take()) is None:
                return
            began_s = self._busy_since_s = time.monotonic()
            try:
                if isinstance(item, Question):
                    self._answer(item)
                elif isinstance(item, list):
                    self._learner.take_in(item)
                else:
                    item()
            finally:
                self._busy_since_s = None
                self.seconds += time.monotonic() - began_s

    def _rest(self) -> None:
        """Switched off: nothing but orders, until it is on or closing."""
        while not self.settings.enabled and (item := self._inbox.take()) is not None:
            if isinstance(item, list):  # whose rows were stored meanwhile
                self._learner.give_up(item, BackendGone("it is switched off"))
            elif not isinstance(item, Question):
                item()
        self._backends.switch_on()

    def _follow_orders(self) -> None:
        """Those that wait while there is no backend: what they ask of it, the next one begins
        with."""
        for order in self._inbox.orders():
            order()

    def _closing(self) -> bool:
        return self._inbox.closing

    def _answer(self, question: Question) -> None:
        generation = self._stage0.generation
        try:
            if not question.wanted():
                self.skipped_late += 1
                return
            view = self._stage0.cut(question.view)
            workload = self._backends.current.forecast(view)
            self.refined[workload.rung] += 1
            self._stage0.tell(generation, view, workload)
            question.done(workload)
        except BackendGone:
            raise
        except Exception:
            self._faults("a refinement failed")

    # orders

    def _configure(self) -> None:
        self._backends.configure(self.settings, self._private)

    def _forget(self) -> None:
        self._learner.forget()
        self._backends.forget()

    def _tend(self) -> None:
        self._backends.tend(self.settings, self._learner.lessons)
