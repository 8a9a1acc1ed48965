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

from gateway.errors import GatewayError
from gateway.schedule import (
    admission,
    adopt,
    check,
    corrections,
    overload,
    reload,
    retry,
    view,
)
from gateway.schedule.accounts import AccountPool
from gateway.schedule.allocation import Allocation
from gateway.schedule.assess import assess
from gateway.schedule.entry import PROMPT_RATIO, Entry, Stage, Tenant
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
    Refuse,
    SettingsChanged,
    Submitted,
    Withdrawn,
    Woke,
)
from gateway.schedule.overload import Chance
from gateway.schedule.pool import Pool
from gateway.schedule.queue import Line
from gateway.schedule.rounds import TURN_OF, Turn
from gateway.schedule.routes import Directory
from gateway.settings.schema import Settings
from gateway.types import (
    Blocked,
    Fit,
    JobClass,
    Outcome,
    SchedulerSnapshot,
    Verdict,
)

INF = float("inf")
LONGEST_TOKENS = 200_000  # of one answer without a max_tokens
SLACK_TOKENS = 1000
DROPPED = frozenset({Verdict.RATE_LIMITED, Verdict.OVERLOADED})


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
        self.trust = 1.0  # in forecasts
        self.pools: dict[str, Pool] = {}
        self.tenants: dict[str, Tenant] = {}
        self.jobs: dict[str, Entry] = {}
        self.submitted = 0
        self.dispatched = 0
        self.ended = dict.fromkeys(Outcome, 0)
        self.draining = False
        self._dirty: dict[str, float] = {}  # pools to drain → best key that may start there
        self._out: list[Action] = []
        self.configure(settings)

    # ---- the outside

    def handle(self, event: Event, now: float) -> list[Action]:
        """Tells the scheduler what happened; returns what to do, in order."""
        out = self._out = []
        self._apply(event, now)
        for pool in self.pools.values():
            if pool.wake_s <= now:
                self.touch(pool.name)
        self._drain_touched(now)
        return out

    def next_wake(self, now: float) -> float | None:
        """When time alone will change something: send `Woke` then. None: only an event will."""
        wake_s = min((pool.wake_s for pool in self.pools.values()), default=INF)
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

    def _apply(self, event: Event, now: float) -> None:
        match event:
            case Submitted():
                self._submit(event, now)
            case Finished():
                self._finish(event, now)
            case Reforecast():
                corrections.reforecast(self, event)
            case Outgrown():
                corrections.outgrown(self, event)
            case Recalibrated():
                self.trust = min(1.0, max(0.0, event.trust))
                for pool in self.pools:
                    self.touch(pool)
            case Adopted():
                adopt.adopt(self, event, now)
            case Answered():
                self._answered(event, now)
            case AttemptFailed():
                self._attempt_failed(event, now)
            case Withdrawn():
                self._finish(Finished(event.job_id, event.outcome, Verdict.IGNORED), now)
            case SettingsChanged():
                reload.reload(self, event.settings, now)
            case DrainStarted():
                self.draining = True
            case Woke():
                pass

    def _submit(self, event: Submitted, now: float) -> None:
        job = event.job
        if job.id in self.jobs:
            return
        self.submitted += 1
        entry = Entry(job, event.body_bytes, self.submitted, self.tenant(job.tenant))
        home = self.directory.home(job.model, job.accounts)
        if home is None:
            self._refuse_new(entry, overload.no_account(INF))
            return
        entry.pool, entry.accounts = home
        route = self.directory.routes.get(job.model)
        entry.routed = route is not None
        entry.bound = route is None or route.accounts != entry.accounts
        pool = self.pools[entry.pool]
        if self.draining:
            self._refuse_new(entry, overload.draining(admission.retry_s(pool, self.chance)))
            return
        settings = self.settings.schedule
        entry.weigh(settings, pool.order)
        entry.start_wait(settings, now, admission.service_s(pool, entry))
        line = pool.line(job.model, entry.accounts)
        if entry.expire_s <= self.allocation.horizon_s(pool, line, now):
            if entry.deadline_s is not None and now < entry.deadline_s:
                pool.pace.doubted()
            self._refuse_new(entry, self._expired(pool, entry, now))
            return
        self.jobs[job.id] = entry
        pool.last_arrival_s = now
        self._enter(pool, line, entry, now)  # what can start is never refused for what waits
        if entry.stage is Stage.WAITING:
            error = admission.refusal(pool, entry, settings, self.chance, now)
            if error is not None:
                self._refuse(entry, error, Outcome.REJECTED)

    def _enter(self, pool: Pool, line: Line, entry: Entry, now: float) -> None:
        """Starts a new job, or lets it wait. Nothing else that waits fits, or would have been
        started before: so if no time has run out since, the newcomer alone is to be asked."""
        if pool.wake_s <= now or pool.due or not pool.budget.steady:
            pool.add_waiting(entry)
            self.touch(pool.name)
            self._drain_touched(now)
            return
        answer = self.allocation.alone(pool, line, entry, now)
        if isinstance(answer, Fit):
            self._dispatch(pool, entry, answer.account, None, now)
        else:
            pool.add_waiting(entry)
            if entry.tenant.capped and entry.lane is not None and not entry.lane.parked:
                entry.lane.park()  # so that the cap's end, in whatever pool, finds it
            pool.wake_s = min(pool.wake_s, entry.expire_s)
            if answer.until_s is not None:
                pool.wake_s = min(pool.wake_s, answer.until_s)
        mode = pool.mode
        assess(pool, self.accounts, self.settings.schedule, self.trust, now)
        if pool.mode is not mode:  # and with it the tier caps
            self.touch(pool.name)

    def _finish(self, event: Finished, now: float) -> None:
        entry = self.jobs.get(event.job_id)
        if entry is None:
            return
        output = _believable(entry, event.output_tokens)
        pool = self.pools[entry.pool]
        if entry.job.generates and (output or event.outcome is Outcome.OK):
            tokens = entry.reserve if output is None else output
            waited_s = 0.0 if entry.cls is JobClass.BACKGROUND else entry.waited_s
            pool.pace.finished(tokens, now - entry.since_s, waited_s, pool.budget.total_jobs)
        if output is not None and entry.turn is not None:
            prompt = event.prompt_tokens or entry.workload.prompt_tokens
            pool.correct(entry, output + PROMPT_RATIO * prompt)
        if entry.stage is Stage.RUNNING:
            self._end_attempt(
                entry,
                event.verdict,
                None,
                now,
                output,
                event.prompt_tokens,
                unserved=event.outcome is Outcome.CLIENT_ERROR,
            )
        self._end(entry, event.outcome)

    def _answered(self, event: Answered, now: float) -> None:
        entry = self.jobs.get(event.job_id)
        if entry is not None and entry.stage is Stage.RUNNING:
            opened = self.accounts.answered(entry.lease, event.limits, now)
            home = self.directory.pool_of.get(entry.account, entry.pool)
            for name in dict.fromkeys((entry.pool, home)):
                self.touch(name)
                if opened:
                    self.pools[name].news(entry.account, None)
                else:
                    self.pools[name].version += 1

    def _attempt_failed(self, event: AttemptFailed, now: float) -> None:
        entry = self.jobs.get(event.job_id)
        if entry is None or entry.stage is not Stage.RUNNING:
            return
        account, verdict = entry.account, event.verdict
        self._end_attempt(entry, verdict, event.retry_after_s, now)
        entry.error, entry.outcome = event.error, retry.outcome_of(verdict)
        entry.spent += retry.attempt_cost(verdict)
        if verdict is Verdict.DEAD_KEY:
            entry.accounts = tuple(name for name in entry.accounts if name != account)
        else:
            entry.failed |= {account}
        pool = self.pools[entry.pool]
        if event.retryable and retry.grant(self.settings.retry, pool, entry, verdict):
            entry.stage = Stage.RETRYING
            entry.start_wait(self.settings.schedule, now)
            pool.add_retrying(entry)
        else:
            self._refuse(entry, event.error, entry.outcome)

    # ---- the drain

    def _drain_touched(self, now: float) -> None:
        """Until no pool is touched: ending a job in one may free its tenant's cap in another.
        Where a freed cap is wanted in several pools, the best key decides."""
        while self._dirty:
            name = min(self._dirty, key=self._dirty.__getitem__)
            del self._dirty[name]
            self._drain(self.pools[name], now)

    def _drain(self, pool: Pool, now: float) -> None:
        if pool.due or pool.wake_s <= now:
            pool.due = False
            self._expire(pool, now)
        assess(pool, self.accounts, self.settings.schedule, self.trust, now)
        while found := self.allocation.next(pool, now):
            self._dispatch(pool, *found, now)
        busy = pool.queued or pool.retrying
        pool.wake_s = self.allocation.wake_s(pool, now) if busy else INF

    def _dispatch(
        self, pool: Pool, entry: Entry, account: str, turn: Turn | None, now: float
    ) -> None:
        self.start(pool, entry, account, now, turn)
        self.dispatched += 1
        self._out.append(Dispatch(entry.job.id, account, entry.attempts, entry.reserve))

    def start(
        self, pool: Pool, entry: Entry, account: str, now: float, turn: Turn | None = None
    ) -> None:
        """From waiting (or between attempts) to running on `account`, in every count. `turn`
        pays, its class's where none is given."""
        if entry.stage is Stage.WAITING:
            pool.charge(entry, turn or TURN_OF[entry.cls], now)
            if entry.lane is not None:  # else it starts without having waited
                pool.remove_waiting(entry)
            pool.pace.started(entry.reserve)
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

    # ---- ends

    def _end_attempt(
        self,
        entry: Entry,
        verdict: Verdict,
        retry_after_s: float | None,
        now: float,
        output_tokens: float | None = None,
        prompt_tokens: float | None = None,
        *,
        unserved: bool = False,
    ) -> None:
        """The lease back. The account's pool is touched, which after a reload may be another.
        `unserved`: the provider turned the request down, and counts no tokens of it."""
        used = 0.0 if unserved else None
        if output_tokens is not None:
            used = output_tokens + (prompt_tokens or entry.workload.prompt_tokens)
        wide = self.accounts.give_back(
            entry.lease,
            verdict,
            retry_after_s=retry_after_s,
            tokens=used,
            output_tokens=output_tokens,
            now=now,
        )
        pool = self.pools[entry.pool]
        pool.pace.attempted(verdict in DROPPED)
        pool.due |= verdict is not Verdict.SUCCESS  # it may have taken an account out of service
        pool.news(entry.account, None if wide else entry.job.model)
        self.touch(entry.pool)
        home = self.directory.pool_of.get(entry.account, entry.pool)
        if home != entry.pool:
            self.touch(home)
            self.pools[home].news(entry.account, None)
            self.pools[home].due = True

    def _end(self, entry: Entry, outcome: Outcome) -> None:
        """Takes a job out of everything, once."""
        pool = self.pools[entry.pool]
        if entry.stage is Stage.WAITING:
            pool.remove_waiting(entry)
        else:
            if entry.stage is Stage.RETRYING and entry.line is not None:
                pool.remove_retrying(entry)
            pool.retried -= entry.holds_retry
            pool.budget.give_back(entry.cls, entry.bucket, entry.reserve)
            self._free_tenant(entry.tenant)
        entry.stage = Stage.ENDED
        del self.jobs[entry.job.id]
        self.ended[outcome] += 1
        self.touch(pool.name)

    def _free_tenant(self, tenant: Tenant) -> None:
        tenant.running -= 1
        assert tenant.running >= 0
        self._unpark(tenant)

    def _unpark(self, tenant: Tenant) -> None:
        parked, tenant.parked = tenant.parked, []
        for lane in parked:
            lane.unpark()
            if lane.first is not None:
                self.touch(lane.tier.line.pool, lane.first.key)

    def _refuse(self, entry: Entry, error: GatewayError, outcome: Outcome) -> None:
        self._end(entry, outcome)
        self._out.append(Refuse(entry.job.id, error, outcome))

    def _refuse_new(self, entry: Entry, error: GatewayError) -> None:
        """Refuses what never entered a queue."""
        self.ended[Outcome.REJECTED] += 1
        self._out.append(Refuse(entry.job.id, error, Outcome.REJECTED))

    def _expire(self, pool: Pool, now: float) -> None:
        """Refuses jobs whose time is over, or will be before an account can serve them."""
        for line in tuple(pool.lines.values()):
            if not line.size:
                continue
            horizon_s = self.allocation.horizon_s(pool, line, now)
            while (entry := line.expiry.top()) is not None and entry.expire_s <= horizon_s:
                if entry.error is not None:
                    self._refuse(entry, entry.error, entry.outcome)
                else:
                    self._refuse(entry, self._expired(pool, entry, now), Outcome.EVICTED)

    def _expired(self, pool: Pool, entry: Entry, now: float) -> GatewayError:
        if not entry.accounts:
            return overload.no_account(INF)
        if entry.expire_s <= now:
            return admission.too_late(pool, entry, self.chance, now)
        return overload.no_account(self.accounts.heals_s(entry.accounts, now) - now)

    # ---- small things

    def touch(self, pool: str, key: float = INF) -> None:
        self._dirty[pool] = min(key, self._dirty.get(pool, INF))

    def pool(self, name: str) -> Pool:
        if name not in self.pools:
            self.pools[name] = Pool(name, self.settings.schedule)
        return self.pools[name]

    def tenant(self, name: str) -> Tenant:
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self.tenants[name] = Tenant(name)
        return tenant


def _believable(entry: Entry, output_tokens: float | None) -> float | None:
    """What a job may have made: nothing that it did not generate (a stored answer that is read
    again tells its old usage), and no number that would hold an account for days."""
    if output_tokens is None or not entry.job.generates:
        return None
    most = entry.job.n * (entry.job.max_tokens or LONGEST_TOKENS) + SLACK_TOKENS
    return min(output_tokens, most)
