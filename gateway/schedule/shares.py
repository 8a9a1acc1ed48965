"""Fair among the tenants of a class: virtual token counters (VTC, OSDI 2024).

Each tenant's counter grows by the work it was given, divided by its weight; the tenant with the
smallest one comes first. Whoever floods the queue finds its own counter ahead of all others, and
waits behind itself.

1. Work is charged by forecast when a job starts, corrected by what it used when it ends.
2. Who comes back after a pause is lifted to `SLACK_TOKENS` below the smallest counter among
   those at work: idle time is not saved up, but a tenant below its share goes first at once.
3. Counters are compared in steps of `SLACK_TOKENS`. Within a step the job's key decides, over
   tenants: exact fairness at every start would be round-robin, and leave the ordering nothing
   to order. So the gap between two tenants with work is at most a step, a correction and a job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.schedule.queue import Lane

SLACK_TOKENS = 1024.0
LEFT_TOKENS = 4 * SLACK_TOKENS  # that one which a cap of its own kept back is owed at most


class Share:
    """One tenant's part in one class of one pool, and the lanes its jobs wait in."""

    __slots__ = ("counter", "lanes", "rank", "waiting", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.counter = 0.0
        self.rank = 0  # the step its counter is in; orders lanes
        self.waiting = 0
        self.lanes: dict[Lane, None] = {}  # those in which jobs wait

    def move(self, counter: float) -> None:
        """To another counter; its lanes are shown anew where that is another step."""
        self.counter = counter
        rank = int(counter // SLACK_TOKENS)
        if rank != self.rank:
            self.rank = rank
            for lane in self.lanes:
                lane.tier.show(lane)


class Shares:
    """The counters of one class of one pool."""

    __slots__ = ("_shares", "floor", "weight")

    def __init__(self) -> None:
        self._shares: dict[str, Share] = {}
        self.floor = 0.0  # the counter of who was served last: the smallest at work
        self.weight = 0.0  # of all who have jobs that wait

    def of(self, tenant: str, weight: float) -> Share:
        share = self._shares.get(tenant)
        if share is None:
            share = self._shares[tenant] = Share(weight)
        share.weight = weight
        return share

    def joined(self, share: Share) -> None:
        """A job of this tenant waits."""
        if share.waiting == 0:
            lifted = self.floor - SLACK_TOKENS
            if share.counter < lifted:
                share.move(lifted)
            self.weight += share.weight
        share.waiting += 1

    def left(self, share: Share) -> None:
        share.waiting -= 1
        assert share.waiting >= 0
        if share.waiting == 0:
            self.weight -= share.weight

    def charge(self, share: Share, tokens: float) -> None:
        """At a start. One that was kept back long by a cap of its own is not owed all of it."""
        counter = share.counter
        if counter > self.floor:
            self.floor = counter
        elif counter < self.floor - LEFT_TOKENS:
            counter = self.floor - LEFT_TOKENS
        share.move(counter + tokens / share.weight)

    def correct(self, share: Share, tokens: float) -> None:
        """At the end: `tokens` more (or less) than was charged."""
        share.move(share.counter + tokens / share.weight)

    def check(self, waiting: Mapping[str, int]) -> None:
        """Asserts that it counts these waiting jobs, by tenant."""
        for tenant, share in self._shares.items():
            assert share.waiting == waiting.get(tenant, 0), tenant
            assert share.rank == int(share.counter // SLACK_TOKENS), tenant
        at_work = sum(share.weight for share in self._shares.values() if share.waiting)
        assert abs(self.weight - at_work) < 1e-6 * (1.0 + at_work)

    def inherit(self, old: Shares) -> None:
        """The counters of an earlier life, by name."""
        self.floor = old.floor
        for tenant, was in old._shares.items():
            share = self._shares.get(tenant)
            if share is None:
                share = self._shares[tenant] = Share(was.weight)
            share.move(was.counter)
