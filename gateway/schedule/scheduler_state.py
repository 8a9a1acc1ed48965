"""What the scheduler holds: pools, tenants, live jobs, counts, and the answer to the event at hand.

The floor under the handlers of events: arrivals, ends, corrections, reload and the drain change
it, scheduler_snapshot and check read it, and none of them sees another's caller. It decides
nothing; `start` is the one transition that several of them make.
"""

from __future__ import annotations

from math import inf

from gateway.schedule.accounts import AccountPool
from gateway.schedule.allocation import Allocation
from gateway.schedule.entry import Entry, Stage, Tenant
from gateway.schedule.events import Action, Dispatch
from gateway.schedule.ordering import ln_short
from gateway.schedule.overload import Chance
from gateway.schedule.pool import Pool
from gateway.schedule.rounds import TURN_OF, Turn
from gateway.schedule.routes import Directory
from gateway.schedule.wakes import Wakes
from gateway.settings.schema import Settings
from gateway.types import Outcome


class SchedulerState:
    """All pools. `accounts` must have been built from the same settings."""

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
        self.touched: dict[str, float] = {}  # pools to drain → best key that may start there
        self.out: list[Action] = []  # the answer to the event at hand
        self.configure(settings)

    # ---- parts

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

    def pool(self, name: str) -> Pool:
        if name not in self.pools:
            self.pools[name] = Pool(name, self.settings.schedule)
        return self.pools[name]

    def tenant(self, name: str) -> Tenant:
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self.tenants[name] = Tenant(name)
        return tenant

    @property
    def trust(self) -> float:
        """In forecasts, 0 to 1: the less, the nearer orders are to first come, first served,
        and the wider the accounts' windows."""
        return self._trust

    @trust.setter
    def trust(self, trust: float) -> None:
        self._trust = min(1.0, max(0.0, trust))
        self.accounts.trust(self._trust)

    # ---- transitions

    def touch(self, pool: str, key: float = inf) -> None:
        """The pool is to be drained. `key`: of a job that may start there now."""
        touched = self.touched
        if key < inf or pool not in touched:
            touched[pool] = min(key, touched.get(pool, inf))

    def dispatch(
        self, pool: Pool, entry: Entry, account: str, turn: Turn | None, now: float
    ) -> None:
        """Starts a job and tells the shell to send it."""
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
