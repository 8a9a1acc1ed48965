"""One pool's live state: its queue, its budget, its mode. Decisions are the scheduler's."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.schedule.budget import Budget
from gateway.schedule.entry import Entry, Tenant
from gateway.schedule.overload import DrainRate
from gateway.schedule.queue import Line
from gateway.settings.schema import Schedule
from gateway.types import JobClass, Mode


class Pool:
    """`version` changes with every change to the accounts: answers of theirs are kept for one
    version and one moment."""

    __slots__ = (
        "accounts",
        "budget",
        "lines",
        "mode",
        "models",
        "name",
        "rate",
        "retried",
        "retrying",
        "saturation",
        "version",
        "waiting",
        "waiting_bytes",
        "waiting_tokens",
        "waiting_tokens_of",
        "wake_s",
    )

    def __init__(self, name: str, settings: Schedule) -> None:
        self.name = name
        self.models: tuple[str, ...] = ()
        self.accounts: tuple[str, ...] = ()
        self.lines: dict[tuple[str, tuple[str, ...], frozenset[str]], Line] = {}
        self.budget = Budget(settings)
        self.rate = DrainRate()
        self.mode = Mode.FREE
        self.saturation = 0.0
        self.version = 0
        self.wake_s = float("inf")
        self.waiting = 0
        self.waiting_tokens = 0
        self.waiting_tokens_of = dict.fromkeys(JobClass, 0)
        self.waiting_bytes = 0
        self.retrying = 0  # jobs between two attempts
        self.retried = 0  # jobs in flight that hold a retry of the budget

    def line(
        self, model: str, accounts: tuple[str, ...], avoid: frozenset[str] = frozenset()
    ) -> Line:
        line = self.lines.get((model, accounts, avoid))
        if line is None:
            line = Line(self.name, model, accounts, avoid)
            self.lines[model, accounts, avoid] = line
        return line

    def add_waiting(self, entry: Entry) -> None:
        self.line(entry.job.model, entry.accounts).add_waiting(entry)
        self.waiting += 1
        self.waiting_tokens += entry.reserve
        self.waiting_tokens_of[entry.cls] += entry.reserve
        self.waiting_bytes += entry.body_bytes
        entry.tenant.waiting += 1

    def remove_waiting(self, entry: Entry) -> None:
        assert entry.line is not None
        entry.line.remove(entry)
        self.waiting -= 1
        self.waiting_tokens -= entry.reserve
        self.waiting_tokens_of[entry.cls] -= entry.reserve
        self.waiting_bytes -= entry.body_bytes
        entry.tenant.waiting -= 1
        assert min(self.waiting, self.waiting_bytes, entry.tenant.waiting) >= 0

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

    def overfull(self, settings: Schedule, tenant: Tenant) -> bool:
        """More waits than may, in the pool or of this tenant."""
        return (
            self.waiting > settings.max_queue_items
            or self.waiting_bytes > settings.max_queue_bytes
            or tenant.overfull
        )

    def occupied(self) -> Iterator[Line]:
        for line in self.lines.values():
            if line.size:
                yield line
