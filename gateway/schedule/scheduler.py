"""Which job starts next, on which account: the whole decision in one pure object.

`handle(event, now)` changes the state and returns what to do. It owns no clock, loop, lock, log
or metric; the shell feeds one event at a time, does the actions at once and arms one timer for
`next_wake`. The same object runs on a virtual clock in tests and simulations.

The rules:

1. Every change ends in `_drain`, which goes on until nothing that waits `fits`: a job never
   waits while it could run. Only pools that the event touched are drained, so a full pool costs
   the others nothing.
2. One predicate decides, in this order: overload ladder, tenant cap, class budget, tier cap,
   accounts (window, ceiling, pacer, backoff, health). The first no is the job's one `Reason`.
3. Among jobs that fit, the choice is allocation.py's: class, tenant, key; those on borrowed room
   last. Retries go before all: they hold their reserve already.
4. A reserve is taken at the first dispatch, corrected by forecasts, and given back at the end,
   once; an account's lease is taken and given back per attempt.
5. A job ends exactly once, by `Finished`, `Withdrawn` or a `Refuse` of ours. Events about
   unknown jobs change nothing.
6. A job is refused when its wait cannot end well: at the door (admission.py), and when it
   waited `max_wait_s` or as long as its deadline allows, or no account will serve before that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.schedule import adopt, arrivals, check, corrections, ends, reload, view
from gateway.schedule.accounts import AccountPool
from gateway.schedule.allocation import Allocation
from gateway.schedule.assess import assess
from gateway.schedule.entry import Entry, Stage, Tenant
from gateway.schedule.events import (
    Action,
    Adopted,
    Answered,
    AttemptFailed,
    Dispatch,
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
from gateway.schedule.ordering import ln_short
from gateway.schedule.overload import Chance
from gateway.schedule.pool import Pool
from gateway.schedule.rounds import TURN_OF, Turn
from gateway.schedule.routes import Directory
from gateway.schedule.wakes import Wakes
from gateway.settings.schema import Settings
from gateway.snapshots import SchedulerSnapshot
from gateway.types import Blocked, Fit, Outcome

INF = float("inf")


class Scheduler:
    """All pools. `accounts` must have been built from the same settings.

    `now` is seconds on one monotonic clock, the one of `Job.arrived_s` and `deadline_s`.
    `chance` jitters what those are told who are sent away, and decides nothing.
    """

    def __init__(
        self, settings: Settings, accounts: AccountPool, chance: Chance | None = None
    ) -> None:
        self.accounts = accounts
        self.chance = chance
        self._trust = 1.0
        self.pools: dict[str, Pool] = {}
        self.tenants: dict[str, Tenant] = {}
        self.jobs: dict[str, Entry] = {}
        self.submitted = 0
        self.dispatched = 0
        self.ended = dict.fromkeys(Outcome, 0)
        self.draining = False
        self._dirty: dict[str, float] = {}  # pools to drain → best key that may start there
        self.out: list[Action] = []  # the answer to the event at hand
        self.configure(settings)

    # ---- the outside

    def handle(self, event: Event, now: float) -> list[Action]:
        """Tells the scheduler what happened; returns what to do, in order."""
        out = self.out = []
        HANDLERS[type(event)](self, event, now)
        if self.wakes.next_s() <= now:
            for name in self.wakes.due(now):
                self.touch(name)
        self.drain_touched(now)
        return out

    def next_wake(self, now: float) -> float | None:
        """When time alone will change something: send `Woke` then. None: only an event will."""
        wake_s = self.wakes.next_s()
        return None if wake_s == INF else max(wake_s, now)

    def fits(self, job_id: str, now: float) -> Fit | Blocked | None:
        """May this job start now, and if not, why; None where it does not wait.

        For people and tests: nothing that waits fits once `handle` has returned.
        """
        entry = self.jobs.get(job_id)
        if entry is None or entry.line is None:
            return None
        pool = self.pools[entry.pool]
        return self.allocation.fits(pool, entry, now)

    @property
    def trust(self) -> float:
        """In forecasts, 0 to 1: the less, the nearer orders are to first come, first served,
        and the wider the accounts' windows."""
        return self._trust

    @trust.setter
    def trust(self, trust: float) -> None:
        self._trust = min(1.0, max(0.0, trust))
        self.accounts.trust(self._trust)

    def snapshot(self, now: float) -> SchedulerSnapshot:
        return view.snapshot(self, now)

    def configure(self, settings: Settings) -> None:
        """Settings into the parts; a tenant's caps, the routes, an empty pool for each new one."""
        self.settings = settings
        self.directory = Directory(settings.accounts)
        self.allocation = Allocation(settings.schedule, self.accounts)
        for tenant in self.tenants.values():
            tenant.configure(0, 0, 0, 0.0, 1.0)
        for given in settings.tenants:
            self.tenant(given.name).configure(
                given.max_inflight,
                given.max_queued,
                given.max_queued_tokens,
                given.deadline_s,
                given.weight,
            )
        self.pools = {}
        self.wakes = Wakes()
        for name in self.directory.pools:
            pool = self.pool(name)
            pool.models = self.directory.models(name)
            pool.accounts = self.directory.accounts(name)
            pool.upstream = {m: self.directory.routes[m].upstream for m in pool.models}

    def check(self, now: float | None = None) -> None:
        """Asserts every invariant, at `now` also that nothing that waits could start; for
        tests: it looks at every job."""
        check.check(self, now)

    # ---- events

    def _recalibrated(self, event: Recalibrated, now: float) -> None:
        self.trust = event.trust
        for name, pool in self.pools.items():
            pool.reopened()
            self.touch(name)

    def _drain_started(self, event: DrainStarted, now: float) -> None:
        self.draining = True

    def _answered(self, event: Answered, now: float) -> None:
        entry = self.jobs.get(event.job_id)
        if entry is not None and entry.stage is Stage.RUNNING:
            opened = self.accounts.answered(entry.lease, event.limits, now)
            home = self.directory.pool_of.get(entry.account, entry.pool)
            for name in dict.fromkeys((entry.pool, home)):
                if opened:
                    self.touch(name)
                    self.pools[name].news(entry.account, None)
                else:  # nothing that waits may start for it
                    self.pools[name].version += 1

    # ---- the drain

    def drain_touched(self, now: float) -> None:
        """Until no pool is touched: ending a job in one may free its tenant's cap in another.
        Where a freed cap is wanted in several pools, the best key decides."""
        dirty = self._dirty
        while dirty:
            name = next(iter(dirty)) if len(dirty) == 1 else min(dirty, key=dirty.__getitem__)
            del dirty[name]
            self._drain(self.pools[name], now)

    def _drain(self, pool: Pool, now: float) -> None:
        if pool.due or pool.wake_s <= now:
            pool.due = False
            ends.expire(self, pool, now)
        assess(pool, self.accounts, self.settings.schedule, self.trust, now)
        while found := self.allocation.next(pool, now):
            self.dispatch(pool, *found, now)
        busy = pool.queued or pool.retrying
        self.wakes.set(pool, self.allocation.openings.wake_s(pool, now) if busy else INF)

    def dispatch(
        self, pool: Pool, entry: Entry, account: str, turn: Turn | None, now: float
    ) -> None:
        self.start(pool, entry, account, now, turn)
        self.dispatched += 1
        self.out.append(Dispatch(entry.job.id, account, entry.attempts, entry.reserve))

    def start(
        self, pool: Pool, entry: Entry, account: str, now: float, turn: Turn | None = None
    ) -> None:
        """From waiting (or between attempts) to running on `account`, in every count. `turn`
        pays, its class's where none is given."""
        if entry.stage is Stage.WAITING:
            pool.charge(entry, turn or TURN_OF[entry.cls], now)
            if entry.lane is not None:  # else it starts without having waited
                pool.remove_waiting(entry)
            pool.pace.started(entry.reserve, ln_short(entry.workload))
            pool.budget.take(entry.cls, entry.bucket, entry.reserve)
            entry.tenant.running += 1
        else:
            pool.remove_retrying(entry)
        entry.stage = Stage.RUNNING
        entry.waited_s += now - entry.since_s
        entry.since_s = now
        entry.account = account
        entry.attempts += 1
        tokens = entry.workload.prompt_tokens + entry.reserve
        entry.lease = self.accounts.take(account, entry.job.model, tokens, now)
        pool.version += 1

    # ---- small things

    def touch(self, pool: str, key: float = INF) -> None:
        dirty = self._dirty
        if key < INF or pool not in dirty:
            dirty[pool] = min(key, dirty.get(pool, INF))

    def pool(self, name: str) -> Pool:
        if name not in self.pools:
            self.pools[name] = Pool(name, self.settings.schedule)
        return self.pools[name]

    def tenant(self, name: str) -> Tenant:
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self.tenants[name] = Tenant(name)
        return tenant


def _nothing(scheduler: Scheduler, event: Event, now: float) -> None:
    """Time passed: the drain looks at what is due."""


HANDLERS: dict[type[Event], Callable[[Scheduler, Any, float], None]] = {
    Submitted: arrivals.submitted,
    Reforecast: corrections.reforecast,
    Outgrown: corrections.outgrown,
    Answered: Scheduler._answered,
    Finished: ends.finished,
    Withdrawn: ends.withdrawn,
    AttemptFailed: ends.attempt_failed,
    Woke: _nothing,
    Adopted: adopt.adopt,
    Recalibrated: Scheduler._recalibrated,
    SettingsChanged: reload.settings_changed,
    DrainStarted: Scheduler._drain_started,
}
