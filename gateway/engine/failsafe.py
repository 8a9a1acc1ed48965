"""The scheduler in a wrapper that never raises: a bug in it fails no request.

A scheduler ("core") that raised is thrown away, and a fresh one is built from the engine's own
ledger of permits:

1. Jobs that run are adopted where they run. Jobs that wait are submitted again, in order of
   arrival, to a core that orders first come, first served, the simplest code. The accounts' learned
   state is kept if it can still be read.
2. The event that raised is in the ledger already (the engine writes it before it feeds the
   core), so it is not repeated. A failed attempt is not: its job waits for another account,
   `SECOND_CHANCES` times at most, then it gets its error.
3. A job that makes the fresh core raise as well goes around it: straight to the first of its
   accounts, and only this file knows of it.
4. A core that is rebuilt `STORM` times within `STORM_S` is left out for that long: every job
   goes around. Then it gets another chance.
5. `HEAL_S` after the last fault the configured ordering comes back.

Each rebuild is an alarm: a log line with its traceback, the last events in the log
(fault_story.py), a journal entry, a metric. A rebuild visits every job.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Protocol

from msgspec.structs import replace

from gateway.engine.fault_story import FaultStory
from gateway.schedule import overload
from gateway.schedule.admission import queue_position
from gateway.schedule.ends import outcome_of
from gateway.schedule.events import (
    Action,
    Adopted,
    AttemptFailed,
    Dispatch,
    DrainStarted,
    Event,
    Finished,
    Refuse,
    SettingsChanged,
    Submitted,
    Withdrawn,
)
from gateway.schedule.scheduler import Scheduler
from gateway.settings.schema import Settings
from gateway.snapshots import QueuePosition, SchedulerSnapshot
from gateway.types import Job, Outcome, Workload

logger = logging.getLogger("gateway.engine")
STORM, STORM_S = 10, 60.0
HEAL_S = 300.0
LOOK_AGAIN_S = 1.0
SECOND_CHANCES = 2
_REMEMBERED = frozenset({SettingsChanged, DrainStarted})  # events that outlive a core


class LedgerEntry(Protocol):
    """A permit in force, as far as a core is built from it."""

    job: Job
    workload: Workload  # the latest forecast
    account: str | None  # None: it waits
    attempts: int
    body_bytes: int


Build = Callable[[Settings, Scheduler | None], Scheduler]
"""Makes a core for these settings; of the old one, if there is one, it keeps what it can."""


class Failsafe:
    """A scheduler that does not raise.

    Args:
        core: the first one.
        build: makes another. It may raise; then every job goes around.
        ledger: the engine's permits by job, in order of arrival.
        alarm: called with the reason of each rebuild.
    """

    def __init__(
        self,
        core: Scheduler,
        build: Build,
        ledger: Mapping[str, LedgerEntry],
        alarm: Callable[[str], None],
    ) -> None:
        self.core = core
        self.rebuilds = 0
        self.around: dict[str, Job] = {}  # jobs the core knows nothing of
        self._settings = core.settings
        self._build = build
        self._ledger = ledger
        self._alarm = alarm
        self._draining = False
        self._used_chances: dict[str, int] = {}  # job → failed attempts that raised
        self._rebuilt_s: deque[float] = deque(maxlen=STORM)
        self._story = FaultStory()
        self._heal_s = inf  # time of the next step back to the configured ordering
        self._left_out = False  # every job goes around, until `_heal_s`

    def __repr__(self) -> str:
        state = "left out" if self._left_out else "degraded" if self.degraded else "sound"
        return f"<Failsafe {state}, {self.rebuilds} rebuilds, {len(self.around)} jobs around>"

    @property
    def degraded(self) -> bool:
        """True while jobs go first come, first served, or around the core, after a fault."""
        return self._heal_s != inf

    def handle(self, event: Event, now: float) -> list[Action]:
        """As `Scheduler.handle`; never raises."""
        if self.around or self._used_chances or type(event) in _REMEMBERED:
            actions = self._note(event)
            if actions is not None:
                return actions
        try:
            if self._heal_s == inf:
                return self._feed(self.core, event, now)
            if now >= self._heal_s:
                return self._healed(event, now)
            if self._left_out:
                return self._without_core(event, now)
            return self._feed(self.core, self._adapted(event), now)
        except Exception as error:
            return self._rebuild(error, event, now)

    def next_wake(self, now: float) -> float | None:
        """As `Scheduler.next_wake`; never raises."""
        wake_s = None
        if not self._left_out:
            try:
                wake_s = self.core.next_wake(now)
            except Exception as error:
                logger.error("the scheduler raised on being asked for a deadline: %s", error)
                wake_s = now + LOOK_AGAIN_S
        if self._heal_s == inf:
            return wake_s
        return self._heal_s if wake_s is None else min(wake_s, self._heal_s)

    def snapshot(self, now: float) -> SchedulerSnapshot:
        """As `Scheduler.snapshot`, with the faults. May raise."""
        shot = self.core.snapshot(now)
        return replace(
            shot, rebuilds=self.rebuilds, degraded=self.degraded, around=len(self.around)
        )

    def queue_position(self, job_id: str, now: float) -> QueuePosition | None:
        """A job's position in its queue; None unless it waits."""
        return None if self._left_out else queue_position(self.core, job_id, now)

    def check(self) -> None:
        """Assert every invariant of the core."""
        self.core.check()

    def _note(self, event: Event) -> list[Action] | None:
        """Remember what a fresh core will need; the whole answer to an event about a job around
        the core, None for any other."""
        match event:
            case SettingsChanged():
                self._settings = event.settings
            case DrainStarted():
                self._draining = True
            case Finished() | Withdrawn():
                self._used_chances.pop(event.job_id, None)
                if self.around.pop(event.job_id, None) is not None:
                    return []
            case AttemptFailed() if event.job_id in self.around:
                return [self._give_up(event)]
        return None

    # -- a fault -------------------------------------------------------------------------------

    def _feed(self, core: Scheduler, event: Event, now: float) -> list[Action]:
        """Hand an event to a core, and note it for the log of a fault. May raise."""
        self._story.note(event, now)
        return core.handle(event, now)

    def _rebuild(self, error: Exception, event: Event, now: float) -> list[Action]:
        self.rebuilds += 1
        reason = f"{type(error).__name__}: {error}"[:200]
        logger.error("the scheduler raised on %s; it is rebuilt", type(event).__name__,
                     exc_info=error)  # fmt: skip
        self._story.log()
        self._alarm(reason)
        self._heal_s = now + HEAL_S
        storm = len(self._rebuilt_s) == STORM and now - self._rebuilt_s[0] < STORM_S
        self._rebuilt_s.append(now)
        actions: list[Action] = []
        if isinstance(event, AttemptFailed) and not self._another_chance(event):
            actions.append(self._give_up(event))
        gone = {action.job_id for action in actions}
        if storm:
            return actions + self._leave_out(now, "it was rebuilt too often", gone)
        return actions + self._refill(gone, event, now)

    def _refill(self, gone: set[str], event: Event, now: float) -> list[Action]:
        """A fresh core that holds every live job, but for those that make it raise."""
        poison: set[str] = set()
        while True:
            try:
                fresh = self._fresh()
                started, bad = self._fill(fresh, gone | poison, now)
            except Exception as error:
                logger.error("no new scheduler could be built", exc_info=error)
                return self._leave_out(now, "none could be built", gone)
            if bad is None:
                break
            poison.add(bad)
            if len(poison) > STORM:
                return self._leave_out(now, "too many jobs make it raise", gone)
        _carry_counts(self.core, fresh, event)
        self.core = fresh
        return [*started, *self._go_around(poison)]

    def _fill(
        self, fresh: Scheduler, without: set[str], now: float
    ) -> tuple[list[Action], str | None]:
        """Feed every live job to the fresh core; its actions, and the job that made it raise.

        Raises where the core cannot drain.
        """
        actions: list[Action] = []
        # What waits is started where there seems to be room: what runs is counted before.
        running_first = sorted(self._ledger.items(), key=lambda one: one[1].account is None)
        for job_id, live in running_first:
            if job_id in without or job_id in self.around:
                continue
            try:
                actions += self._feed(fresh, _entrance(live), now)
            except Exception as error:
                logger.error("job %s makes a fresh scheduler raise", job_id, exc_info=error)
                return [], job_id
        if self._draining:
            actions += self._feed(fresh, DrainStarted(), now)
        return actions, None

    def _another_chance(self, event: AttemptFailed) -> bool:
        used = self._used_chances.get(event.job_id, 0)
        self._used_chances[event.job_id] = used + 1
        return event.retryable and used < SECOND_CHANCES

    def _give_up(self, event: AttemptFailed) -> Refuse:
        self.around.pop(event.job_id, None)
        self._used_chances.pop(event.job_id, None)
        return Refuse(event.job_id, event.error, outcome_of(event))

    # -- without a core ------------------------------------------------------------------------

    def _leave_out(self, now: float, why: str, gone: set[str]) -> list[Action]:
        logger.error("no scheduling for %g s: %s", STORM_S, why)
        self._left_out = True
        self._heal_s = now + STORM_S
        return self._go_around(job_id for job_id in self._ledger if job_id not in gone)

    def _go_around(self, job_ids: Iterable[str]) -> list[Action]:
        actions: list[Action] = []
        for job_id in job_ids:
            live = self._ledger[job_id]
            self.around[job_id] = live.job
            if live.account is None:
                actions.append(_straight(live.job, live.attempts + 1))
        return actions

    def _without_core(self, event: Event, now: float) -> list[Action]:
        if not isinstance(event, Submitted):
            return []  # every job goes around, and `_note` has answered what is about one
        if self._draining:
            return [Refuse(event.job.id, overload.draining(LOOK_AGAIN_S), Outcome.REJECTED)]
        return self._go_around([event.job.id])

    # -- and back ------------------------------------------------------------------------------

    def _healed(self, event: Event, now: float) -> list[Action]:
        """Take one step back to normal: from no core to first come, first served, from that to
        the configured ordering."""
        if self._left_out:
            logger.warning("scheduling goes on, first come, first served")
            self._heal_s = now + HEAL_S
            fresh = self._fresh()
            _carry_counts(self.core, fresh, event)
            self.core, self._left_out = fresh, False
            if self._draining:
                self._feed(fresh, DrainStarted(), now)
            return self._feed(fresh, self._adapted(event), now)
        logger.warning("scheduling goes on as configured")
        self._heal_s = inf
        actions = self._feed(self.core, event, now)  # first: its job may be gone already
        return actions + self._feed(self.core, SettingsChanged(self._settings), now)

    def _adapted(self, event: Event) -> Event:
        if isinstance(event, SettingsChanged) and self.degraded:
            return SettingsChanged(self._fcfs_settings())
        return event

    def _fresh(self) -> Scheduler:
        """Another core, first come, first served; the list of its events begins. May raise."""
        fresh = self._build(self._fcfs_settings(), self.core)
        self._story.clear()
        return fresh

    def _fcfs_settings(self) -> Settings:
        schedule = replace(self._settings.schedule, ordering="fcfs")
        return replace(self._settings, schedule=schedule)


def _entrance(live: LedgerEntry) -> Event:
    if live.account is None:
        return Submitted(replace(live.job, workload=live.workload), live.body_bytes)
    return Adopted(live.job, live.workload, live.account, live.attempts, live.body_bytes)


def _straight(job: Job, attempt: int) -> Action:
    """A dispatch around the core, to the job's accounts in turn; a refusal where it has none."""
    if not job.accounts:
        return Refuse(job.id, overload.no_account(inf), Outcome.UPSTREAM_ERROR)
    return Dispatch(job.id, job.accounts[(attempt - 1) % len(job.accounts)], attempt, 0)


def _carry_counts(old: Scheduler, fresh: Scheduler, event: Event) -> None:
    """Carry the old core's counters over, since a counter in a metric must not fall."""
    fresh.dispatched += old.dispatched
    for outcome, count in old.ended.items():
        fresh.ended[outcome] += count
    if isinstance(event, Finished | Withdrawn) and event.job_id in old.jobs:
        fresh.ended[event.outcome] += 1
    fresh.submitted = len(fresh.jobs) + sum(fresh.ended.values())
