"""Work that the predictor's child is given, in order.

Forecasts first, each only if it is still wanted, those of one turn of the loop together; then
lessons whose storing somebody waits for, which a stream of forecasts may not pass for ever; and
once a tick all other lessons, which wait until then in a list that nobody is woken for.
"""

from __future__ import annotations

import asyncio
from random import Random

from gateway.predict.lesson import Lesson
from gateway.predict.process.learner import Learner
from gateway.predict.process.pending import FORECASTS, PendingForecast, PendingWork
from gateway.predict.process.supervisor import ChildSupervisor, FaultLog
from gateway.predict.process.wire import ChildError, ChildGone, MakeForecasts
from gateway.predict.stage0 import Stage0
from gateway.types import Rung

PASSES = 8  # batches of forecasts in a row, some 0.2 s, that promised lessons let pass
TICK_S = 0.1  # between two batches of lessons


class ChildWork:
    """Queues of what waits for the child, and the order in which it is done.

    The coroutine is the predictor's task's.

    Args:
        wake: set when there is something to do.
        tick_s: between two batches of lessons.
    """

    def __init__(
        self,
        child: ChildSupervisor,
        stage0: Stage0,
        learner: Learner,
        faults: FaultLog,
        wake: asyncio.Event,
        tick_s: float,
    ) -> None:
        self.pending = PendingWork(Random())
        self.forecasts = dict.fromkeys(Rung, 0)  # given out
        self.skipped_late = 0
        self._child = child
        self._stage0 = stage0
        self._learner = learner
        self._faults = faults
        self._wake = wake
        self._tick_s = tick_s
        self._timer: asyncio.TimerHandle | None = None  # of the next tick
        self._tick_due = False
        self._passed = 0  # batches of forecasts since promised lessons had their turn

    def __repr__(self) -> str:
        return f"<ChildWork {self.pending!r}>"

    def learn(self, lesson: Lesson, room: int) -> bool:
        """Put a lesson into the list; False where one was lost."""
        taken = self.pending.add_lesson(lesson, room)
        if self._timer is None and taken:
            self._arm()
        return taken

    async def turn(self, cpu_share: float, *, ending: bool) -> bool:
        """Have a batch of each kind done that is due; False where neither forecasts nor promises
        were.

        Args:
            cpu_share: `predict.cpu_share`.
            ending: lessons are due, too.

        Raises:
            ChildGone: the child is lost.
        """
        generation = self._stage0.generation
        worked = self._passed < PASSES and await self._answer()
        if worked:
            self._passed += 1
        else:
            worked = await self._keep_promises() or self._passed > 0
            self._passed = 0
        if self._stage0.generation is not generation:
            return worked  # orders came meanwhile: what is reported after them is of their result
        if self._tick_due or ending:
            await self._hand_over(cpu_share)
        return worked

    def give_up(self, why: str) -> None:
        """Drop what waits, and tell those who wait for it."""
        self._learner.give_up(*self.pending.abandon(), ChildGone(why))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- inside -------------------------------------------------------------------------

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._end_tick)

    def _end_tick(self) -> None:
        """Have the lessons of a tick handed over."""
        self._timer, self._tick_due = None, True
        self._wake.set()

    async def _keep_promises(self) -> bool:
        """Have promised lessons stored; False where there are none."""
        if not (promises := self.pending.take_promises()):
            return False
        try:
            await self._learner.store(promises)
        except ChildGone:
            raise
        except Exception:
            self._faults("storing failed")
        self._expect_report()
        return True

    async def _hand_over(self, cpu_share: float) -> None:
        """Hand the lessons of a tick over, and take the report of those handed over before."""
        self._tick_due = False
        try:
            await self._learner.hand_over(self.pending.take_lessons(), cpu_share)
        except ChildGone:
            raise
        except Exception:
            self._faults("learning failed")
        self._expect_report()

    def _expect_report(self) -> None:
        """Have the child asked again at the next tick where it owes a report."""
        if self._learner.owing and self._timer is None:
            self._arm()

    async def _answer(self) -> bool:
        """Answer forecasts that are still wanted, as many as one question has; False where none
        waits. Late ones are dropped before any work is done."""
        batch = self._wanted()
        if not batch:
            return False
        generation = self._stage0.generation
        views = [self._stage0.cut(pending.view) for pending in batch]
        try:
            workloads = (await self._child.ask(MakeForecasts(views))).workloads
        except ChildGone:
            raise
        except Exception:
            self._faults("a refinement failed")
            return True
        for pending, view, workload in zip(batch, views, workloads, strict=True):
            try:
                if isinstance(workload, str):
                    raise ChildError(workload)
                self.forecasts[workload.rung] += 1
                self._stage0.remember(generation, view, workload)
                pending.done(workload)
            except Exception:
                self._faults("a refinement failed")
        return True

    def _wanted(self) -> list[PendingForecast]:
        found: list[PendingForecast] = []
        while len(found) < FORECASTS and (pending := self.pending.take_forecast()) is not None:
            try:
                if pending.wanted():
                    found.append(pending)
                else:
                    self.skipped_late += 1
            except Exception:
                self._faults("a refinement failed")
        return found
