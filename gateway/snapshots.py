"""Frozen copies of live state, for display and metrics. No decision reads them.

Each room makes its own (`snapshot()`); the admin routes and the metrics read them. Units are
those of `gateway.types`.
"""

from __future__ import annotations

from msgspec import Struct

from gateway.types import JobClass, Mode, Outcome, Reason, Rung, Verdict

USABLE_STATES = frozenset({"open", "backoff", "half_open"})
"""States of an account that keep the gateway ready."""


class QueuePosition(Struct, frozen=True):
    """Place of a waiting job in its class and pool."""

    position: int  # 1: the next
    waiting: int  # jobs of the pool, all classes
    waited_s: float
    expected_wait_s: float  # from now, by what is ahead and the recent rate


class ClassSnapshot(Struct, frozen=True):
    """One class of jobs in one pool."""

    budget_tokens: int
    inflight_tokens: float
    borrowed_tokens: float
    running: int
    waiting: int
    waiting_tokens: float
    oldest_wait_s: float
    blocked: dict[Reason, int]  # waiting jobs by reason


class PoolSnapshot(Struct, frozen=True):
    """One pool: the models that share accounts, and their queues."""

    name: str
    models: tuple[str, ...]
    mode: Mode
    saturation: float
    classes: dict[JobClass, ClassSnapshot]
    retrying: int
    waiting_bytes: int
    severity: float = 0.0  # of overload: from defer_above on expensive jobs are deferred
    clear_s: float = 0.0  # predicted time to serve what waits; 0 where it is not known


class WindowSnapshot(Struct, frozen=True):
    """One (account, model): its window of requests in flight, and the curve fitted to it."""

    model: str  # the provider's name
    window: float
    inflight: int
    regime: str  # "unknown", "linear", "saturating", "peaked"
    knee: float  # requests in flight at the fitted knee or peak, 0 where there is none
    base_s: float  # fitted: seconds of an empty request when unloaded
    prompt_token_s: float
    output_token_s: float
    curve: dict[str, float]  # the fitted parameters of latency over in flight
    slowdown: float  # recent latency / unloaded latency of requests of that size
    rpm: int = 0  # limits a minute of this model in the provider's headers; 0: none
    tpm: int = 0


class LimitSnapshot(Struct, frozen=True):
    """A rate limit of one (account, model) from the provider's headers, as far as it holds."""

    model: str  # the provider's name
    kind: str  # "requests", "tokens"
    limit: int  # a minute; 0: no header gave one
    remaining: float | None  # by the last header, less what was sent since; None: no header
    reset_s: float  # until all of it is there again
    wait_s: float  # until it lets another request start
    believed: bool  # False: the header says "nothing left", and requests are served all the same


class AccountSnapshot(Struct, frozen=True):
    """One account: its limit, its state, the results of its attempts."""

    name: str
    limit: float
    inflight: int
    state: str  # open, backoff, ejected, half_open, dead_key, draining
    state_until_s: float  # seconds from now, 0 where the state is open
    successes: int
    drops: dict[Verdict, int]
    cuts: int
    rpm: int
    tpm: int
    windows: tuple[WindowSnapshot, ...] = ()
    limits: tuple[LimitSnapshot, ...] = ()


class SchedulerSnapshot(Struct, frozen=True):
    """The scheduler's pools and accounts, and its counts since the start."""

    pools: tuple[PoolSnapshot, ...]
    accounts: tuple[AccountSnapshot, ...]
    submitted: int
    dispatched: int
    ended: dict[Outcome, int]
    draining: bool
    rebuilds: int = 0  # of the core, after it raised
    degraded: bool = False  # first come, first served, since such a fault
    around: int = 0  # jobs under way past the scheduler


class PredictorSnapshot(Struct, frozen=True):
    """The predictor and its process, with counts since the start."""

    ready: bool  # the process lives and its artefacts are loaded
    state: str  # "ready", "starting", "degraded: …", "off"
    encoder: str
    index_rows: int
    forecast_queue: int
    learn_queue: int
    forecasts: dict[Rung, int]
    skipped_late: int
    dropped_full: int
    learn_lost: int
    cache_hits: int
    seconds: float  # of CPU time in the predictor's process
    drifts: int = 0  # sources whose lengths changed
    version: int = 0  # of the refitted models in use; 0: as shipped
    refit: str = ""  # "off", "waiting", "running", or the end of the last one
    learned: int = 0  # lessons
    sampled_out: int = 0  # lessons of which the counts alone were learned, for want of time
    restarts: int = 0  # of the predictor's process, after it ended or hung
    priority: str = ""  # of that process: "idle" or "nice 7"; "" before it works


class StoreSnapshot(Struct, frozen=True):
    """The store: its last commit, its queue, its losses."""

    ok: bool
    queue: int
    committed: int
    lost: int
    last_commit_s: float  # duration of the last group commit
    rows: int
    errors: int = 0  # group commits that failed
    reason: str = ""  # why `ok` is False


class ProcessSnapshot(Struct, frozen=True):
    """The gateway's process: settings, memory held, and losses since its start."""

    config_generation: int = 1
    config_reload_ok: bool = True
    config_reload_wall_s: float = 0.0  # the last reload that succeeded, the start included
    body_bytes: int = 0  # request bodies held
    buffer_bytes: int = 0  # written to clients, not yet taken
    open_streams: int = 0
    connections: int = 0
    journal_dropped: int = 0
    log_lines_lost: int = 0
    listener_faults: int = 0


class Snapshots(Struct, frozen=True):
    """Everything at one moment, for a scrape or a health check. None: that part is off."""

    scheduler: SchedulerSnapshot
    process: ProcessSnapshot = ProcessSnapshot()
    predictor: PredictorSnapshot | None = None
    store: StoreSnapshot | None = None

    @property
    def usable_accounts(self) -> int:
        """Accounts that serve now, or will by themselves within seconds."""
        return sum(a.state in USABLE_STATES for a in self.scheduler.accounts)

    @property
    def ready(self) -> bool:
        """True where requests are taken: some account is usable and no drain has begun."""
        return self.usable_accounts > 0 and not self.scheduler.draining
