"""One pool's live state: its queues, budget, pace and mode. It decides nothing.

A pool is a set of models that share accounts (routes.py). Answers of the accounts are kept
per queue: a `Fit` is valid for one `version` of the pool and one moment, a `Blocked` until the
time it names or until an account changes (`account_changed`).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from gateway.schedule.budget import Budget
from gateway.schedule.live_job import LiveJob, Tenant
from gateway.schedule.ordering import Order
from gateway.schedule.overload import Grade
from gateway.schedule.pace import Pace
from gateway.schedule.queue import NEVER, AccountsQueue, TenantQueue
from gateway.schedule.rounds import TURN_OF, Rounds, Turn
from gateway.schedule.shares import Share, Shares
from gateway.settings.schema import Schedule
from gateway.types import JobClass, Mode


class Pool:
    """The models that share accounts: waiting jobs, work in flight, turns, and measured load."""

    __slots__ = (
        "accounts", "armed_s", "budget", "capped", "clear_s", "closed_s", "deferred", "drains",
        "due", "mode", "models", "name", "order", "pace", "queued", "queues", "queues_on",
        "rejected", "retried", "retrying", "rounds", "saturation", "served_s", "severity", "shares",
        "stale", "upstream", "version", "waiting_bytes", "waiting_of", "waiting_tokens",
        "waiting_tokens_of", "wake_s",
    )  # fmt: skip

    def __init__(self, name: str, settings: Schedule) -> None:
        self.name = name
        self.models: tuple[str, ...] = ()
        self.accounts: tuple[str, ...] = ()
        self.upstream: dict[str, dict[str, str]] = {}  # model → account → its name there
        # what waits
        self.queues: dict[tuple[str, tuple[str, ...], frozenset[str]], AccountsQueue] = {}
        self.queues_on: dict[str, list[AccountsQueue]] = {}  # by account
        self.queued: dict[LiveJob, TenantQueue] = {}  # waiting jobs, the last to join last
        self.waiting_of = dict.fromkeys(JobClass, 0)  # jobs
        self.waiting_tokens = 0
        self.waiting_tokens_of = dict.fromkeys(JobClass, 0)
        self.waiting_bytes = 0
        # what is in flight
        self.budget = Budget(settings)
        self.pace = Pace()
        self.retrying = 0  # jobs between two attempts
        self.retried = 0  # jobs in flight that count against the retry budget
        # how work is shared out
        self.rounds = Rounds(settings)
        self.served_s = dict.fromkeys(Turn, 0.0)  # last start, or when it began to wait
        self.shares: dict[JobClass, Shares[TenantQueue]] = {cls: Shares() for cls in JobClass}
        self.order = Order(settings.ordering)
        self.stale: list[LiveJob] = []  # waiting jobs whose key is of an earlier order
        # load, set by pressure.py
        caps = settings.tier_caps
        self.capped = bool(caps.short or caps.medium or caps.long)  # sizes, by the mode
        self.drains = 0
        self.mode = Mode.FREE
        self.saturation = 0.0
        self.severity = 0.0
        self.clear_s = 0.0  # predicted time until what waits has been served
        self.deferred = Grade.NONE  # from this grade on jobs are deferred
        self.rejected = Grade.NONE  # from this grade on jobs that would wait are turned away
        # the accounts' answers, and time
        self.version = 0
        self.closed_s = NEVER  # until then none of the accounts takes anything
        self.due = True  # a wait may have become vain: to be looked for
        self.wake_s = inf  # time alone changes something then; set by timers.py
        self.armed_s = inf

    def __repr__(self) -> str:
        return (
            f"<Pool {self.name!r} {self.mode} saturation={self.saturation:.2f}"
            f" waiting={self.waiting} retrying={self.retrying} running={self.budget.total_jobs}"
            f" tokens={self.budget.total_tokens}/{self.budget.total_limit:.0f}"
            f" accounts={','.join(self.accounts)}>"
        )

    @property
    def waiting(self) -> int:
        return len(self.queued)

    @property
    def pressing_tokens(self) -> int:
        """Tokens of waiting jobs without background ones, which never count as overload."""
        return self.waiting_tokens - self.waiting_tokens_of[JobClass.BACKGROUND]

    def inherit(self, old: Pool) -> None:
        """Take over what a pool of that name had learned before a reload."""
        self.mode, self.pace = old.mode, old.pace
        self.deferred, self.rejected = old.deferred, old.rejected
        self.served_s = dict(old.served_s)
        self.rounds.credit = dict(old.rounds.credit)
        for cls, shares in self.shares.items():
            shares.inherit(old.shares[cls])

    # ---- the queues

    def queue(
        self, model: str, accounts: tuple[str, ...], avoid: frozenset[str] = frozenset()
    ) -> AccountsQueue:
        """The queue of this model and these accounts, made where there is none."""
        queue = self.queues.get((model, accounts, avoid))
        if queue is None:
            queue = AccountsQueue(self.name, model, accounts, avoid)
            self.queues[model, accounts, avoid] = queue
            for account in accounts:
                self.queues_on.setdefault(account, []).append(queue)
        return queue

    def queue_of(self, live: LiveJob) -> AccountsQueue:
        """The queue that a waiting or retrying job stands in."""
        tenant_queue = self.queued.get(live)
        if tenant_queue is not None:
            return tenant_queue.class_queue.accounts_queue
        return self.queues[live.job.model, live.accounts, live.failed]

    def occupied(self) -> Iterator[AccountsQueue]:
        """The queues that hold jobs."""
        for queue in self.queues.values():
            if queue.jobs:
                yield queue

    def account_changed(self, account: str, model: str | None) -> None:
        """`account` may take jobs again: of this model alone, whatever clients call it, or of
        all (None)."""
        self.version += 1
        if model is None:
            self.closed_s = NEVER
        queues = self.queues_on.get(account)
        if not queues:
            return
        upstream = None if model is None else self._named(model, account)
        for queue in queues:
            if upstream is None or self._named(queue.model, account) == upstream:
                queue.forget_answers()

    def accounts_changed(self) -> None:
        """All accounts may take jobs again."""
        self.version += 1
        self.closed_s = NEVER
        for queue in self.queues.values():
            queue.forget_answers()

    def _named(self, model: str, account: str) -> str | None:
        """The account's own name of the model; None where it does not serve it."""
        names = self.upstream.get(model)
        return None if names is None else names.get(account)

    # ---- what waits

    def add_waiting(self, live: LiveJob) -> TenantQueue:
        """Queue a weighed job by its key, and count it; the queue that it joined."""
        cls, tenant, reserve = live.cls, live.tenant, live.reserve
        live.key = self._key(live)
        share = self.share(live)
        self.shares[cls].joined(share)
        queue = self.queue(live.job.model, live.accounts).add_waiting(live, share)
        self.queued[live] = queue
        if not self.waiting_of[cls]:
            self.served_s[TURN_OF[cls]] = live.since_s
        self.waiting_of[cls] += 1
        self.waiting_tokens += reserve
        self.waiting_tokens_of[cls] += reserve
        self.waiting_bytes += live.body_bytes
        tenant.waiting += 1
        tenant.waiting_tokens += reserve
        return queue

    def remove_waiting(self, live: LiveJob) -> None:
        cls, tenant, reserve = live.cls, live.tenant, live.reserve
        queue = self.queued.pop(live)
        queue.class_queue.accounts_queue.remove_waiting(live, queue)
        self.shares[cls].left(queue.share)
        self.waiting_of[cls] -= 1
        if not self.waiting_of[cls]:
            self.rounds.reset(TURN_OF[cls])
        self.waiting_tokens -= reserve
        self.waiting_tokens_of[cls] -= reserve
        self.waiting_bytes -= live.body_bytes
        tenant.waiting -= 1
        tenant.waiting_tokens -= reserve
        assert self.waiting_tokens >= 0
        assert tenant.waiting >= 0

    def add_retrying(self, live: LiveJob) -> None:
        self.queue(live.job.model, live.accounts, live.failed).add_retrying(live)
        self.retrying += 1

    def remove_retrying(self, live: LiveJob) -> None:
        queue = self.queue_of(live)
        queue.remove_retrying(live)
        self.retrying -= 1
        if queue.avoid and not queue.jobs:  # there are many possible sets, few at a time
            del self.queues[queue.model, queue.accounts, queue.avoid]
            for account in queue.accounts:
                self.queues_on[account].remove(queue)

    def overfull(self, settings: Schedule, live: LiveJob) -> bool:
        """True where more waits than is allowed, in the pool or of this job's tenant. Background
        jobs, which may come in thousands and wait for hours, get half of the room at most."""
        items, tokens = len(self.queued), self.waiting_tokens
        if live.cls is JobClass.BACKGROUND:
            items = max(items, 2 * self.waiting_of[live.cls])
            tokens = max(tokens, 2 * self.waiting_tokens_of[live.cls])
        return (
            items > settings.max_queue_items
            or self.waiting_bytes > settings.max_queue_bytes
            or 0 < settings.max_queue_tokens < tokens
            or live.tenant.overfull
        )

    # ---- work that is shared out: charged by forecast, corrected at the end

    def share(self, live: LiveJob) -> Share[TenantQueue]:
        """The fairness counter of the job's tenant in the job's class."""
        tenant = live.tenant
        return self.shares[live.cls].of(tenant.name, tenant.weight)

    def shares_of(self, tenant: Tenant) -> list[Share[TenantQueue]]:
        """The tenant's fairness counters in all classes."""
        return [shares.of(tenant.name, tenant.weight) for shares in self.shares.values()]

    def charge(self, live: LiveJob, turn: Turn, now: float) -> None:
        """Charge a start to the turn and the tenant. Before the job leaves the queue."""
        live.turn, live.charged = turn, live.charge
        self.served_s[turn] = now
        shares, queue = self.shares[live.cls], self.queued.get(live)
        if queue is not None:
            share = queue.share
        else:
            share = self.share(live)
            if not share.waiting:
                shares.lift(share)
        if self.waiting_of[live.cls]:  # a turn whose class waits for nothing owes nothing
            self.rounds.charge(turn, live.charge)
        shares.charge(share, live.charge)

    def correct(self, live: LiveJob, used: float) -> None:
        """Correct a charge by what the job really used, in the unit of `charge`. A turn whose
        queue is empty has begun anew: it owes nothing and is owed nothing."""
        more = used - live.charged
        self.shares[live.cls].correct(self.share(live), more)
        if live.turn is not None and self.waiting_of[live.cls]:
            self.rounds.charge(live.turn, more)

    # ---- order

    def reorder(self, order: Order) -> None:
        """Adopt a new order; all that waits gets a new key, a few at a time (`rekey`)."""
        self.order = order
        self.stale = list(self.queued)
        self.stale.reverse()  # the oldest are the next

    def rekey(self, count: int) -> None:
        """New keys for the next `count` jobs that have an old one."""
        stale = self.stale
        for _ in range(min(count, len(stale))):
            live = stale.pop()
            queue = self.queued.get(live)
            if queue is not None:
                queue.rekey(live, self._key(live))

    def _key(self, live: LiveJob) -> float:
        return self.order.key(live.job, live.workload, live.reserve, live.deadline_s)
