"""The scheduler: the whole decision which job starts next on which account, in one pure object.

`handle(event, now)` changes the state and returns what to do. It owns no clock, loop, lock, log
or metric; the shell feeds one event at a time, does the actions at once and arms one timer for
`next_wake`. The same object runs on a virtual clock in tests and simulations. The rules:

1. Every change ends in the drain (drain.py), which goes on until nothing that waits `fits`: a job
   never waits while it could run.
2. One predicate decides whether a job may start (choice.py); its first no is the job's one
   `Reason`.
3. Among jobs that may start, the choice goes by class, tenant and key. Retries go before all:
   they hold their reserve already.
4. A reserve is taken at the first dispatch, corrected by forecasts, and given back at the end,
   once; an account's lease is taken and given back per attempt.
5. A job ends exactly once, by `Finished`, `Withdrawn` or a `Refuse` of ours. Events about
   unknown jobs change nothing.
6. A job is refused when its wait cannot end well: on arrival (admission.py), and when it waited
   `max_wait_s` or as long as its deadline allows, or no account will serve before that.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from gateway.schedule import arrivals, check, corrections, drain, ends, reload, scheduler_snapshot
from gateway.schedule.events import (
    Action,
    Adopted,
    Answered,
    AttemptFailed,
    DrainStarted,
    Event,
    Finished,
    Outgrown,
    Recalibrated,
    Reforecast,
    SettingsChanged,
    Submitted,
    Withdrawn,
    Woke,
)
from gateway.schedule.live_job import Stage
from gateway.schedule.scheduler_state import SchedulerState
from gateway.snapshots import SchedulerSnapshot
from gateway.types import Blocked, Fit


class Scheduler(SchedulerState):
    """Decides for all pools. `now` is seconds on one monotonic clock, that of `Job.arrived_s` and
    `deadline_s`."""

    def __repr__(self) -> str:
        waiting = sum(pool.waiting for pool in self.pools.values())
        return (
            f"<Scheduler pools={len(self.pools)} tenants={len(self.tenants)} jobs={len(self.jobs)}"
            f" waiting={waiting} submitted={self.submitted} dispatched={self.dispatched}"
            f" ended={sum(self.ended.values())}{' draining' if self.draining else ''}>"
        )

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in an event; the actions to do, in order."""
        out = self.out = []
        HANDLERS[type(event)](self, event, now)
        if self.timers.next_s() <= now:
            for name in self.timers.due(now):
                self.touch(name)
        if self.touched:
            drain.drain_touched(self, now)
        return out

    def next_wake(self, now: float) -> float | None:
        """The time at which to send `Woke`, for time alone will change something then; None where
        only an event will."""
        wake_s = self.timers.next_s()
        return None if wake_s == inf else max(wake_s, now)

    def fits(self, job_id: str, now: float) -> Fit | Blocked | None:
        """The predicate's answer to a job that waits; None for any other.

        For display and tests: nothing that waits fits once `handle` has returned.
        """
        live = self.jobs.get(job_id)
        if live is None or live.stage not in (Stage.WAITING, Stage.RETRYING):
            return None
        return self.chooser.fits(self.pools[live.pool], live, now)

    def snapshot(self, now: float) -> SchedulerSnapshot:
        """The state, for display and metrics."""
        return scheduler_snapshot.snapshot(self, now)

    def check(self, now: float | None = None) -> None:
        """Assert every invariant, at `now` also that nothing that waits fits; for tests, since it
        looks at every job."""
        check.check(self, now)


def _answered(state: SchedulerState, event: Answered, now: float) -> None:
    """Hand an answer's rate limits to its account, which may open to jobs that wait."""
    live = state.jobs.get(event.job_id)
    if live is not None and live.stage is Stage.RUNNING:
        opened = state.accounts.answered(live.lease, event.limits, now)
        name = state.route_table.pool_of.get(live.account, live.pool)  # its pool by now
        if opened:
            state.touch(name)
            state.pools[name].account_changed(live.account, None)
        else:  # nothing that waits may start for it
            state.pools[name].version += 1


def _recalibrated(state: SchedulerState, event: Recalibrated, now: float) -> None:
    """Set the trust in forecasts, which changes orders and windows."""
    state.trust = event.trust
    for name, pool in state.pools.items():
        pool.accounts_changed()
        state.touch(name)


def _woke(state: SchedulerState, event: Woke, now: float) -> None:
    """Do nothing but drain: time has passed."""


def _drain_started(state: SchedulerState, event: DrainStarted, now: float) -> None:
    """Let nothing new in from now on."""
    state.draining = True


HANDLERS: dict[type[Event], Callable[[SchedulerState, Any, float], None]] = {
    Submitted: arrivals.submitted,
    Adopted: arrivals.adopted,
    Reforecast: corrections.reforecast,
    Outgrown: corrections.outgrown,
    Answered: _answered,
    AttemptFailed: ends.attempt_failed,
    Finished: ends.finished,
    Withdrawn: ends.withdrawn,
    Woke: _woke,
    Recalibrated: _recalibrated,
    SettingsChanged: reload.settings_changed,
    DrainStarted: _drain_started,
}
