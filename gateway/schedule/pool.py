"""One pool's live state: its queue, its budget, its pace, its mode. Decisions are others'."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from gateway.schedule.budget import Budget
from gateway.schedule.entry import Entry, Tenant
from gateway.schedule.ordering import Order
from gateway.schedule.overload import Grade
from gateway.schedule.pace import Pace
from gateway.schedule.queue import Line
from gateway.schedule.rounds import TURN_OF, Rounds, Turn
from gateway.schedule.shares import Share, Shares
from gateway.settings.schema import Schedule
from gateway.types import JobClass, Mode


class Pool:
    """`version` changes with every change to the accounts: where they take a job, that is good
    for one version and one moment. Where they take none, it is until they have `news`."""

    __slots__ = (
        "accounts",
        "armed_s",
        "budget",
        "clear_s",
        "closed_s",
        "deferred",
        "drains",
        "due",
        "lines",
        "lines_on",
        "mode",
        "models",
        "name",
        "order",
        "pace",
        "queued",
        "rejected",
        "retried",
        "retrying",
        "rounds",
        "saturation",
        "served_s",
        "severity",
        "shares",
        "stale",
        "upstream",
        "version",
        "waiting_bytes",
        "waiting_of",
        "waiting_tokens",
        "waiting_tokens_of",
        "wake_s",
    )

    def __init__(self, name: str, settings: Schedule) -> None:
        self.name = name
        self.models: tuple[str, ...] = ()
        self.accounts: tuple[str, ...] = ()
        self.upstream: dict[str, dict[str, str]] = {}  # model → account → its name there
        self.lines_on: dict[str, list[Line]] = {}  # by account
        self.lines: dict[tuple[str, tuple[str, ...], frozenset[str]], Line] = {}
        self.budget = Budget(settings)
        self.pace = Pace()
        self.rounds = Rounds(settings)
        self.served_s = dict.fromkeys(Turn, 0.0)  # last start, or when it began to wait
        self.shares = {cls: Shares() for cls in JobClass}
        self.order = Order(settings.ordering)
        self.mode = Mode.FREE
        self.saturation = 0.0
        self.severity = 0.0
        self.clear_s = 0.0  # predicted: until what waits has been served
        self.deferred = Grade.NONE  # from this grade on jobs are deferred
        self.rejected = Grade.NONE  # from this grade on jobs that would wait are turned away
        self.version = 0
        self.closed_s = -inf  # until then none of the accounts takes anything
        self.drains = 0
        self.due = True  # someone's wait may have become vain: to be looked for
        self.wake_s = inf  # time alone changes something then; set by wakes.py
        self.armed_s = inf
        self.queued: dict[str, Entry] = {}  # what waits, by job, oldest submission first
        self.stale: list[Entry] = []  # of these, those whose key is of an earlier order
        self.waiting_tokens = 0
        self.waiting_of = dict.fromkeys(JobClass, 0)
        self.waiting_tokens_of = dict.fromkeys(JobClass, 0)
        self.waiting_bytes = 0
        self.retrying = 0  # jobs between two attempts
        self.retried = 0  # jobs in flight that hold a retry of the budget

    @property
    def waiting(self) -> int:
        return len(self.queued)

    @property
    def pressing_tokens(self) -> int:
        """Waiting work that somebody waits for: a heap of background jobs is no overload."""
        return self.waiting_tokens - self.waiting_tokens_of[JobClass.BACKGROUND]

    def inherit(self, old: Pool) -> None:
        """What a pool of that name had learned, after a reload."""
        self.mode, self.pace = old.mode, old.pace
        self.deferred, self.rejected = old.deferred, old.rejected
        self.served_s = dict(old.served_s)
        self.rounds.credit = dict(old.rounds.credit)
        for cls, shares in self.shares.items():
            shares.inherit(old.shares[cls])

    def line(
        self, model: str, accounts: tuple[str, ...], avoid: frozenset[str] = frozenset()
    ) -> Line:
        line = self.lines.get((model, accounts, avoid))
        if line is None:
            line = Line(self.name, model, accounts, avoid)
            self.lines[model, accounts, avoid] = line
            for account in accounts:
                self.lines_on.setdefault(account, []).append(line)
        return line

    def news(self, account: str, model: str | None) -> None:
        """`account` may take jobs again: of this model alone, whatever clients call it, or of
        all (None)."""
        self.version += 1
        if model is None:
            self.closed_s = -inf
        lines = self.lines_on.get(account)
        if not lines:
            return
        upstream = None if model is None else self._named(model, account)
        for line in lines:
            if upstream is None or self._named(line.model, account) == upstream:
                line.forget()

    def reopened(self) -> None:
        """All accounts may take something again."""
        self.version += 1
        self.closed_s = -inf
        for line in self.lines.values():
            line.forget()

    def _named(self, model: str, account: str) -> str | None:
        names = self.upstream.get(model)
        return None if names is None else names.get(account)

    def share(self, entry: Entry) -> Share:
        share = entry.share
        if share is None:
            tenant = entry.tenant
            share = entry.share = self.shares[entry.cls].of(tenant.name, tenant.weight)
        return share

    def shares_of(self, tenant: Tenant) -> list[Share]:
        """In every class."""
        return [shares.of(tenant.name, tenant.weight) for shares in self.shares.values()]

    def add_waiting(self, entry: Entry) -> None:
        cls, tenant, reserve = entry.cls, entry.tenant, entry.reserve
        entry.share = None  # its class may be another than before
        share = self.share(entry)
        self.shares[cls].joined(share)
        self.line(entry.job.model, entry.accounts).add_waiting(entry, share)
        self.queued[entry.job.id] = entry
        if not self.waiting_of[cls]:
            self.served_s[TURN_OF[cls]] = entry.since_s
        self.waiting_of[cls] += 1
        self.waiting_tokens += reserve
        self.waiting_tokens_of[cls] += reserve
        self.waiting_bytes += entry.body_bytes
        tenant.waiting += 1
        tenant.waiting_tokens += reserve

    def remove_waiting(self, entry: Entry) -> None:
        cls, tenant, reserve = entry.cls, entry.tenant, entry.reserve
        line, share = entry.line, entry.share
        assert line is not None
        assert share is not None
        line.remove(entry)
        self.shares[cls].left(share)
        del self.queued[entry.job.id]
        self.waiting_of[cls] -= 1
        if not self.waiting_of[cls]:
            self.rounds.reset(TURN_OF[cls])
        self.waiting_tokens -= reserve
        self.waiting_tokens_of[cls] -= reserve
        self.waiting_bytes -= entry.body_bytes
        tenant.waiting -= 1
        tenant.waiting_tokens -= reserve
        assert self.waiting_tokens >= 0
        assert tenant.waiting >= 0

    def add_retrying(self, entry: Entry) -> None:
        self.line(entry.job.model, entry.accounts, entry.failed).add_retrying(entry)
        self.retrying += 1

    def remove_retrying(self, entry: Entry) -> None:
        line = entry.line
        assert line is not None
        line.remove(entry)
        self.retrying -= 1
        if line.avoid and line.size == 0:  # there are many possible sets, few at a time
            del self.lines[line.model, line.accounts, line.avoid]
            for account in line.accounts:
                self.lines_on[account].remove(line)

    # ---- work that is shared out: charged by forecast, corrected at the end

    def charge(self, entry: Entry, turn: Turn, now: float) -> None:
        """The turn and the tenant pay for a start. Before it leaves the queue."""
        entry.turn, entry.charged = turn, entry.charge
        self.served_s[turn] = now
        shares, share = self.shares[entry.cls], self.share(entry)
        if entry.lane is None:
            shares.joined(share)
            shares.left(share)
        if self.waiting_of[entry.cls]:  # one whose class waits for nothing owes nothing
            self.rounds.charge(turn, entry.charge)
        shares.charge(share, entry.charge)

    def correct(self, entry: Entry, used: float) -> None:
        """What it really used, in the unit of `charge`. A turn whose queue is empty has begun
        anew: it owes nothing and is owed nothing."""
        more = used - entry.charged
        self.shares[entry.cls].correct(self.share(entry), more)
        if entry.turn is not None and self.waiting_of[entry.cls]:
            self.rounds.charge(entry.turn, more)

    # ---- order

    def reorder(self, order: Order) -> None:
        """Everything that waits gets a new key, a few at a time (`rekey`)."""
        self.order = order
        self.stale = list(self.queued.values())
        self.stale.reverse()  # the oldest are the next

    def rekey(self, count: int) -> None:
        """New keys for the next `count` that have an old one."""
        stale = self.stale
        for _ in range(min(count, len(stale))):
            entry = stale.pop()
            if entry.lane is not None:
                key = self.order.key(entry.job, entry.workload, entry.reserve, entry.deadline_s)
                entry.lane.rekey(entry, key)

    def overfull(self, settings: Schedule, entry: Entry) -> bool:
        """More waits than may, in the pool or of this job's tenant. Half of the room is not
        for background jobs, which may come in thousands and stay for hours."""
        items, tokens = len(self.queued), self.waiting_tokens
        if entry.cls is JobClass.BACKGROUND:
            items = max(items, 2 * self.waiting_of[entry.cls])
            tokens = max(tokens, 2 * self.waiting_tokens_of[entry.cls])
        return (
            items > settings.max_queue_items
            or self.waiting_bytes > settings.max_queue_bytes
            or 0 < settings.max_queue_tokens < tokens
            or entry.tenant.overfull
        )

    def occupied(self) -> Iterator[Line]:
        for line in self.lines.values():
            if line.size:
                yield line
