"""The scheduler's state: pools, tenants, live jobs, counts, and the answer to the event at hand.

The handlers of events (arrivals, ends, corrections, reload, the drain) change it;
scheduler_snapshot and check read it. It decides nothing; `start` is the one transition that
several handlers share.
"""

from __future__ import annotations

from math import inf

from gateway.schedule.accounts_protocol import AccountsProtocol
from gateway.schedule.choice import Chooser
from gateway.schedule.events import Action, Dispatch
from gateway.schedule.live_job import LiveJob, Stage, Tenant
from gateway.schedule.model_pool import Pool
from gateway.schedule.ordering import ln_short
from gateway.schedule.overload import Jitter
from gateway.schedule.rounds import TURN_OF, Turn
from gateway.schedule.routes import RouteTable
from gateway.schedule.timers import Timers
from gateway.settings.schema import Settings
from gateway.types import Outcome


class SchedulerState:
    """All pools, tenants and jobs. `accounts`: built from the same settings. `jitter`: spreads the
    times at which refused clients come back; decides nothing."""

    def __init__(
        self, settings: Settings, accounts: AccountsProtocol, jitter: Jitter | None = None
    ) -> None:
        self.accounts = accounts
        self.jitter = jitter
        self._trust = 1.0
        self.pools: dict[str, Pool] = {}
        self.tenants: dict[str, Tenant] = {}
        self.jobs: dict[str, LiveJob] = {}
        self.submitted = 0
        self.dispatched = 0
        self.ended = dict.fromkeys(Outcome, 0)
        self.draining = False
        self.touched: dict[str, float] = {}  # pools to drain → best key that may start there
        self.out: list[Action]  # the answer to the event at hand; `handle` begins it
        self.configure(settings)

    # ---- parts

    def configure(self, settings: Settings) -> None:
        """Put settings into the parts: routes, tenants' limits, empty pools."""
        self.settings = settings
        self.route_table = RouteTable(settings.accounts)
        self.chooser = Chooser(settings.schedule, self.accounts)
        for tenant in self.tenants.values():
            tenant.configure()
        for given in settings.tenants:
            self.tenant(given.name).configure(
                given.max_inflight,
                given.max_queued,
                given.max_queued_tokens,
                given.deadline_s,
                given.weight,
            )
        self.pools = {}
        self.timers = Timers()
        for name in self.route_table.pools:
            pool = self.pool(name)
            pool.models = self.route_table.models(name)
            pool.accounts = self.route_table.accounts(name)
            pool.upstream = {m: self.route_table.routes[m].upstream for m in pool.models}

    def pool(self, name: str) -> Pool:
        """The pool of that name, made where there is none."""
        if name not in self.pools:
            self.pools[name] = Pool(name, self.settings.schedule)
        return self.pools[name]

    def tenant(self, name: str) -> Tenant:
        """The tenant of that name, made where there is none."""
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self.tenants[name] = Tenant(name)
        return tenant

    @property
    def trust(self) -> float:
        """Trust in forecasts, 0 to 1: the less, the nearer orders are to first come, first served,
        and the wider the accounts' windows."""
        return self._trust

    @trust.setter
    def trust(self, trust: float) -> None:
        self._trust = min(1.0, max(0.0, trust))
        self.accounts.trust(self._trust)

    # ---- transitions

    def touch(self, pool: str, key: float = inf) -> None:
        """Mark a pool to be drained. `key`: that of a job which may start there now."""
        self.touched[pool] = min(key, self.touched.get(pool, inf))

    def dispatch(
        self, pool: Pool, live: LiveJob, account: str, turn: Turn | None, now: float
    ) -> None:
        """Start a job and add its `Dispatch`. `turn` is charged; None: its class's own."""
        self.start(pool, live, account, now, turn)
        self.dispatched += 1
        self.out.append(Dispatch(live.job.id, account, live.attempts, live.reserve))

    def start(
        self, pool: Pool, live: LiveJob, account: str, now: float, turn: Turn | None = None
    ) -> None:
        """Move a job from waiting, or from between attempts, to running on `account`, in every
        count. `turn` is charged; None: its class's own."""
        if live.stage is Stage.WAITING:
            pool.charge(live, turn or TURN_OF[live.cls], now)
            if live in pool.queued:  # else it starts without having waited
                pool.remove_waiting(live)
            pool.pace.started(live.reserve, ln_short(live.workload))
            pool.budget.take(live.cls, live.bucket, live.reserve)
            live.tenant.running += 1
        else:
            pool.remove_retrying(live)
        live.stage = Stage.RUNNING
        live.waited_s += now - live.since_s
        live.since_s = now
        live.account = account
        live.attempts += 1
        tokens = live.workload.prompt_tokens + live.reserve
        live.lease = self.accounts.take(account, live.job.model, tokens, now)
        pool.version += 1
