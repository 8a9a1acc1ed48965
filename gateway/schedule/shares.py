"""Fairness among the tenants of a class: virtual token counters (VTC, OSDI 2024).

Each tenant's counter grows by the work it was given, divided by its weight; the tenant with the
smallest counter comes first. A tenant that floods the queue finds its own counter ahead of all
others, and waits behind itself.

1. Work is charged by forecast when a job starts, corrected by what it used when it ends.
2. A tenant that comes back after a pause is lifted to `SLACK_TOKENS` below the smallest counter
   among those at work: idle time is not saved up, but a tenant below its share goes first at once.
3. Counters are compared in steps of `SLACK_TOKENS`. Within a step the ordering's key decides, over
   tenants: exact fairness at every start would be round-robin, and leave the ordering nothing
   to order. So the gap between two tenants with work is at most a step, a correction and a job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

SLACK_TOKENS = 1024.0
LEFT_TOKENS = 4 * SLACK_TOKENS  # most that is owed to a tenant which its own cap held back


class Ranked(Protocol):
    """A queue that is ordered among others by its tenant's share (queue.TenantQueue)."""

    def show(self) -> None:
        """Take in that the share's rank has changed."""


Q = TypeVar("Q", bound=Ranked)


class Share(Generic[Q]):
    """One tenant's part in one class of one pool, and its queues there that hold jobs."""

    __slots__ = ("counter", "queues", "rank", "waiting", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.counter = 0.0  # tokens of work per weight
        self.rank = 0  # number of the step that the counter is in; orders queues
        self.waiting = 0  # jobs
        self.queues: dict[Q, None] = {}

    def move(self, counter: float) -> None:
        """Set the counter; where that changes the rank, the queues are shown anew."""
        self.counter = counter
        rank = int(counter // SLACK_TOKENS)
        if rank != self.rank:
            self.rank = rank
            for queue in self.queues:
                queue.show()


class Shares(Generic[Q]):
    """The counters of one class of one pool, by tenant."""

    __slots__ = ("_shares", "floor", "weight")

    def __init__(self) -> None:
        self._shares: dict[str, Share[Q]] = {}
        self.floor = 0.0  # counter of the tenant served last: the smallest at work
        self.weight = 0.0  # sum over the tenants that have jobs waiting

    def of(self, tenant: str, weight: float) -> Share[Q]:
        """The tenant's share, made where there is none."""
        share = self._shares.get(tenant)
        if share is None:
            share = self._shares[tenant] = Share(weight)
        share.weight = weight
        return share

    def joined(self, share: Share[Q]) -> None:
        """Count a job of this tenant that has begun to wait."""
        if share.waiting == 0:
            self.lift(share)
            self.weight += share.weight
        share.waiting += 1

    def lift(self, share: Share[Q]) -> None:
        """Save up nothing for a tenant that comes back after a pause."""
        lifted = self.floor - SLACK_TOKENS
        if share.counter < lifted:
            share.move(lifted)

    def left(self, share: Share[Q]) -> None:
        """Count a job of this tenant that waits no longer."""
        share.waiting -= 1
        assert share.waiting >= 0
        if share.waiting == 0:
            self.weight -= share.weight

    def charge(self, share: Share[Q], tokens: float) -> None:
        """Charge a start. A tenant long held back by its own cap does not get all of that back."""
        counter = share.counter
        if counter > self.floor:
            self.floor = counter
        elif counter < self.floor - LEFT_TOKENS:
            counter = self.floor - LEFT_TOKENS
        share.move(counter + tokens / share.weight)

    def correct(self, share: Share[Q], tokens: float) -> None:
        """Add what a job used beyond its charge; negative where it used less."""
        share.move(share.counter + tokens / share.weight)

    def check(self, waiting: Mapping[str, int]) -> None:
        """Assert that the shares count these waiting jobs, by tenant."""
        for tenant, share in self._shares.items():
            assert share.waiting == waiting.get(tenant, 0), tenant
            assert share.rank == int(share.counter // SLACK_TOKENS), tenant
        at_work = sum(share.weight for share in self._shares.values() if share.waiting)
        assert abs(self.weight - at_work) < 1e-6 * (1.0 + at_work)

    def inherit(self, old: Shares[Q]) -> None:
        """Take over the counters of an earlier pool, by tenant."""
        self.floor = old.floor
        for tenant, was in old._shares.items():
            share = self._shares.get(tenant)
            if share is None:
                share = self._shares[tenant] = Share(was.weight)
            share.move(was.counter)
