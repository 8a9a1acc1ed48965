"""What may start next in a pool: the one predicate, and the best job it holds for."""

from __future__ import annotations

from gateway.schedule.accounts import AccountPool
from gateway.schedule.budget import tier_cap
from gateway.schedule.entry import Entry
from gateway.schedule.pool import Pool
from gateway.schedule.queue import Lane, Line, Tier
from gateway.settings.schema import Schedule
from gateway.types import Blocked, Fit, JobClass, Mode, Reason, SizeBucket

TENANT_CAP = Blocked(Reason.TENANT_CAP)
CLASS_BUDGET = Blocked(Reason.CLASS_BUDGET)
TIER_CAP = Blocked(Reason.TIER_CAP)

OUT_OF_SERVICE = frozenset({Reason.HEALTH, Reason.ACCOUNT_BACKOFF})


class Allocation:
    """Reads pools and accounts, changes neither (but for parking capped tenants' lanes)."""

    def __init__(self, settings: Schedule, accounts: AccountPool) -> None:
        self._borrow = settings.borrow
        self._caps = {
            mode: {bucket: tier_cap(settings, bucket, mode) for bucket in SizeBucket}
            for mode in Mode
        }
        self._accounts = accounts

    def fits(self, pool: Pool, entry: Entry, now: float) -> Fit | Blocked:
        """May this job, which waits, start now? A retry holds its reserve and its places under
        the caps, so it asks the accounts alone."""
        assert entry.line is not None
        if entry.lane is None:
            return self.place(pool, entry.line, now)
        return self.lane_fits(pool, entry.lane, self.is_open(pool, entry.cls, now), now)

    def lane_fits(self, pool: Pool, lane: Lane, is_open: bool, now: float) -> Fit | Blocked:
        """`fits` for every job of the lane at once; `is_open` is that of its class."""
        if lane.tenant.capped:
            return TENANT_CAP
        if not is_open:
            return CLASS_BUDGET
        if self._is_full(pool, lane.tier):
            return TIER_CAP
        return self.place(pool, lane.tier.line, now)

    def is_open(self, pool: Pool, cls: JobClass, now: float) -> bool:
        """May this class start a job? Below its budget, or on what the other leaves idle."""
        if pool.budget.owns_room(cls):
            return True
        return self._lends(pool) and self._best(pool, True, now) is None

    def _lends(self, pool: Pool) -> bool:
        """There is room, and who has none of its own may use what the owner does not."""
        return self._borrow and pool.budget.has_spare

    def _is_full(self, pool: Pool, tier: Tier) -> bool:
        return 0 < self._caps[pool.mode][tier.bucket] <= pool.budget.buckets[tier.bucket]

    def place(self, pool: Pool, line: Line, now: float) -> Fit | Blocked:
        """The accounts' answer, asked once per change of theirs and moment."""
        stamp = (pool.version, now)
        if line.stamp != stamp:
            line.placement = self._accounts.place(line.model, line.accounts, now, line.avoid)
            line.stamp = stamp
        return line.placement

    def horizon_s(self, pool: Pool, line: Line, now: float) -> float:
        """Waits on these accounts that end by then end in vain: `now`, or the time at which
        the first account can be back in service where none is."""
        answer = self.place(pool, line, now)
        if isinstance(answer, Fit) or answer.reason not in OUT_OF_SERVICE:
            return now
        return max(now, self._accounts.heals_s(line.accounts, now))

    def wake_s(self, pool: Pool, now: float) -> float:
        """When time alone will change something for a job that waits; infinity: never."""
        wake_s = float("inf")
        for line in pool.occupied():
            first = line.expiry.top()
            if first is not None:
                wake_s = min(wake_s, first.expire_s)
            answer = self.place(pool, line, now)
            if isinstance(answer, Blocked) and answer.until_s is not None:
                wake_s = min(wake_s, answer.until_s)
        return wake_s

    def next(self, pool: Pool, now: float) -> tuple[Entry, str] | None:
        """The next job to start, and where: retries first."""
        return self._next_retry(pool, now) or self._next_waiting(pool, now)

    def _next_waiting(self, pool: Pool, now: float) -> tuple[Entry, str] | None:
        """The smallest key among the jobs that fit: of classes below their budget, and where
        none of those can start anything, of the others on borrowed room."""
        if not pool.waiting:
            return None
        found = self._best(pool, True, now)
        if found is None and self._lends(pool):
            found = self._best(pool, False, now)
        return found

    def _best(self, pool: Pool, owns: bool, now: float) -> tuple[Entry, str] | None:
        """The smallest key among jobs whose class has room of its own (or has not: `owns`) and
        that nothing else blocks; `fits` over many jobs, cheapest question first."""
        best: Entry | None = None
        account = ""
        for line in pool.lines.values():
            if not line.waiting:
                continue
            answer = self.place(pool, line, now)
            if not isinstance(answer, Fit):
                continue
            for tier in line.tiers.values():
                if pool.budget.owns_room(tier.cls) is not owns or self._is_full(pool, tier):
                    continue
                first = tier.best()
                if first is not None and (best is None or first.precedes(best)):
                    best, account = first, answer.account
        return None if best is None else (best, account)

    def _next_retry(self, pool: Pool, now: float) -> tuple[Entry, str] | None:
        """The oldest job after a failed attempt that an account takes."""
        if not pool.retrying:
            return None
        best: Entry | None = None
        account = ""
        for line in pool.occupied():
            head = line.retrying.top()
            if head is None:
                continue
            rank = (head.job.arrived_s, head.seq)
            if best is not None and (best.job.arrived_s, best.seq) < rank:
                continue
            answer = self.place(pool, line, now)
            if isinstance(answer, Fit):
                best, account = head, answer.account
        return None if best is None else (best, account)
