"""What may start next in a pool: the one predicate, and the job that goes.

Three orders, one inside the other:

    class     whose turn: deficit round-robin in tokens (rounds.py)
    tenant    whose share: virtual token counters, in steps (shares.py)
    job       which of one tenant's: the ordering's key, with a bound on overtaking (ordering.py)

Work conservation. Every question is asked of heads that could start at this moment, and of all
of them: a turn, a share, a key only choose among those, and never keep a slot empty for one that
cannot. That is why credit is earned by rounds counted at the choice and not by time, and why a
class beyond its budget is asked as soon as no class below its own has a head.

The short. Their P95 is made by the few that wait for a turn. Within a round the interactive
class goes first; its share of the tokens is far above what short answers use, so its queue is
hardly ever longer than its credit; and `express` lets it start above the window, where a slot is
not there yet but will be soon. What is left to pay is bounded by the weights: heavy work keeps
its share of the tokens however many short ones come.

The late. Keys favour, and a favour without bound starves. So a job may pass those of its tenant
and class that came before it only if they came less than `max_overtake_s` before: otherwise the
oldest of them goes in its place. This one rule bounds every ordering. Across tenants the
counters bound the wait, across classes the weights; and a turn that has started nothing for
`max_overtake_s` is next, whatever its head costs.

Deferred jobs (overload.py) have a turn of their own, last in each round, of small weight.
"""

from __future__ import annotations

from gateway.schedule.accounts import AccountPool
from gateway.schedule.budget import tier_cap
from gateway.schedule.entry import Entry, Place
from gateway.schedule.pool import Pool
from gateway.schedule.queue import Lane, Line, Tier
from gateway.schedule.rounds import Turn
from gateway.settings.schema import Schedule
from gateway.types import Blocked, Fit, JobClass, Mode, Reason, SizeBucket

TENANT_CAP = Blocked(Reason.TENANT_CAP)
CLASS_BUDGET = Blocked(Reason.CLASS_BUDGET)
TIER_CAP = Blocked(Reason.TIER_CAP)

OUT_OF_SERVICE = frozenset({Reason.HEALTH, Reason.ACCOUNT_BACKOFF})
TAIL_P_SHORT = 0.1  # who may be short keeps its place in the tail
TAIL_JOBS = 128


class Allocation:
    """Reads pools and accounts. It changes neither, but for parking capped tenants' lanes and
    the rounds' credit, which is given out when a turn is chosen."""

    def __init__(self, settings: Schedule, accounts: AccountPool) -> None:
        self._caps = {
            mode: {bucket: tier_cap(settings, bucket, mode) for bucket in SizeBucket}
            for mode in Mode
        }
        self._express = settings.policy == "adaptive"
        self._overtake_s = settings.max_overtake_s
        self._tail = settings.drain_longest_first
        self._accounts = accounts

    # ---- the predicate

    def fits(self, pool: Pool, entry: Entry, now: float) -> Fit | Blocked:
        """May this job, which waits, start now? A retry holds its reserve and its places under
        the caps, so it asks the accounts alone."""
        assert entry.line is not None
        if entry.lane is None:
            return self.place(pool, entry.line, now)
        return self.lane_fits(pool, entry.lane, self.is_open(pool, entry.cls, now), now)

    def lane_fits(self, pool: Pool, lane: Lane, is_open: bool, now: float) -> Fit | Blocked:
        """`fits` for every job of the lane at once; `is_open` is that of its class. A deferred
        lane that nothing else blocks may start, for then nothing else does."""
        tier = lane.tier
        answer: Fit | Blocked
        if lane.tenant.capped:
            answer = TENANT_CAP
        elif not is_open:
            answer = CLASS_BUDGET
        elif self._is_full(pool, tier.place):
            answer = TIER_CAP
        else:
            answer = self.tier_place(pool, tier, now)
        if isinstance(answer, Blocked) and tier.place.grade >= pool.deferred:
            return Blocked(Reason.OVERLOAD, answer.until_s)
        return answer

    def alone(self, pool: Pool, line: Line, entry: Entry, now: float) -> Fit | Blocked:
        """`fits` of a job that is not in the queue, while nothing that is there fits."""
        if entry.tenant.capped:
            return TENANT_CAP
        if not (pool.budget.owns_room(entry.cls) or pool.budget.lends):
            return CLASS_BUDGET
        if self._is_full(pool, entry.place):
            return TIER_CAP
        return self._line_place(pool, line, entry.place, now)

    def is_open(self, pool: Pool, cls: JobClass, now: float) -> bool:
        """May this class start a job? Below its budget, or on what the others leave idle."""
        if pool.budget.owns_room(cls):
            return True
        if not pool.budget.lends:
            return False
        heads = self._heads(pool, now)
        return not any(pool.budget.owns_room(lane.tier.place.cls) for lane, _ in heads.values())

    def _is_full(self, pool: Pool, place: Place) -> bool:
        bucket = place.bucket
        return (
            bucket is not None and 0 < self._caps[pool.mode][bucket] <= pool.budget.buckets[bucket]
        )

    def place(self, pool: Pool, line: Line, now: float) -> Fit | Blocked:
        """The accounts' answer, asked once per change of theirs and moment."""
        stamp = (pool.version, now)
        if line.stamp != stamp:
            line.placement = self._accounts.place(line.model, line.accounts, now, line.avoid)
            line.stamp = stamp
        return line.placement

    def tier_place(self, pool: Pool, tier: Tier, now: float) -> Fit | Blocked:
        return self._line_place(pool, tier.line, tier.place, now)

    def _line_place(self, pool: Pool, line: Line, place: Place, now: float) -> Fit | Blocked:
        """`place`, where the window is full with the slots above it for those who may."""
        answer = self.place(pool, line, now)
        if (
            not place.express
            or not self._express
            or isinstance(answer, Fit)
            or answer.reason is not Reason.WINDOW
        ):
            return answer
        stamp = (pool.version, now)
        if line.express_stamp != stamp:
            line.express = self._accounts.place(
                line.model, line.accounts, now, line.avoid, express=True
            )
            line.express_stamp = stamp
        return line.express

    # ---- time

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
        for line in pool.lines.values():
            if not line.size:
                continue
            first = line.expiry.top()
            if first is not None and first.expire_s < wake_s:
                wake_s = first.expire_s
            answer = self.place(pool, line, now)
            if isinstance(answer, Blocked) and answer.until_s is not None:
                wake_s = min(wake_s, answer.until_s)
            if line.express_stamp == line.stamp:
                answer = line.express
                if isinstance(answer, Blocked) and answer.until_s is not None:
                    wake_s = min(wake_s, answer.until_s)
        return wake_s

    # ---- the choice

    def next(self, pool: Pool, now: float) -> tuple[Entry, str, Turn | None] | None:
        """The next job to start, where, and whose turn it is; retries first, on nobody's."""
        if pool.retrying and (found := self._next_retry(pool, now)):
            return (*found, None)
        return self._next_waiting(pool, now) if pool.queued else None

    def _next_waiting(self, pool: Pool, now: float) -> tuple[Entry, str, Turn] | None:
        """Of classes below their budget, and where none of those can start anything, of the
        others on borrowed room."""
        heads = self._heads(pool, now)
        if not heads:
            return None
        owns_room = pool.budget.owns_room
        owners = {t: head for t, head in heads.items() if owns_room(head[0].tier.place.cls)}
        if owners:
            heads = owners
        elif not pool.budget.lends:
            return None
        if self._tail and (longest := self._longest(pool, now, not owners)):
            return longest
        turn = self._starved(pool, heads, now) if len(heads) > 1 else None
        if turn is None:
            charges = {t: lane.first.charge for t, (lane, _) in heads.items() if lane.first}
            turn = pool.rounds.choose(charges)
        lane, account = heads[turn]
        assert lane.first is not None
        late = self._passed(pool, lane, lane.first, turn, now)
        if late is None:
            return lane.first, account, turn
        entry, account = late
        return entry, account, turn

    def _heads(self, pool: Pool, now: float) -> dict[Turn, tuple[Lane, str]]:
        """The best lane of each turn whose head nothing but a class's budget may block, with
        its account; `lane_fits` over many lanes, cheapest question first."""
        heads: dict[Turn, tuple[Lane, str]] = {}
        for line in pool.lines.values():
            if not line.waiting:
                continue
            answer = self.place(pool, line, now)
            full = isinstance(answer, Blocked)
            if isinstance(answer, Blocked) and answer.reason is not Reason.WINDOW:
                continue
            for tier in line.tiers.values():
                if not tier.size or (full and not tier.place.express):
                    continue
                if full:
                    answer = self.tier_place(pool, tier, now)
                if isinstance(answer, Blocked) or self._is_full(pool, tier.place):
                    continue
                lane = tier.best()
                if lane is None:
                    continue
                turn = self._turn(pool, tier)
                found = heads.get(turn)
                if found is None or _precedes(lane, found[0]):
                    heads[turn] = (lane, answer.account)
        return heads

    def _starved(self, pool: Pool, heads: dict[Turn, tuple[Lane, str]], now: float) -> Turn | None:
        """The turn that could start something and has not for `max_overtake_s`: what it costs
        is one job, and a head of many tokens may need many rounds."""
        turn = min(heads, key=pool.served_s.__getitem__)
        return turn if now - pool.served_s[turn] >= self._overtake_s > 0 else None

    @staticmethod
    def _turn(pool: Pool, tier: Tier) -> Turn:
        return Turn.DEFERRED if tier.place.grade >= pool.deferred else tier.turn

    def _passed(
        self, pool: Pool, lane: Lane, first: Entry, turn: Turn, now: float
    ) -> tuple[Entry, str] | None:
        """The oldest job of the same turn and tenant which `first` came too late to pass."""
        latest_s = first.job.arrived_s - self._overtake_s
        found: tuple[Entry, str] | None = None
        name = lane.tenant.name
        for line in pool.lines.values():
            if not line.waiting:
                continue
            for tier in line.tiers.values():
                other = tier.lanes.get(name)
                if other is None or not other.size or self._turn(pool, tier) is not turn:
                    continue
                oldest = other.oldest
                if oldest is None or oldest is first or oldest.job.arrived_s > latest_s:
                    continue
                answer = self.tier_place(pool, tier, now)
                if isinstance(answer, Blocked) or self._is_full(pool, tier.place):
                    continue
                latest_s = oldest.job.arrived_s
                found = (oldest, answer.account)
        return found

    def _longest(self, pool: Pool, now: float, borrowing: bool) -> tuple[Entry, str, Turn] | None:
        """In the tail of a burst, nothing having come for a typical service time and little
        left: the longest that can start, so that it does not end alone after all the others."""
        if len(pool.queued) > min(TAIL_JOBS, 2 * self._accounts.room(pool.accounts)):
            return None
        if now - pool.last_arrival_s < pool.pace.mean_reserve * (pool.pace.token_s or 0.0):
            return None
        found: tuple[Entry, str, Turn] | None = None
        for entry in pool.queued.values():
            if entry.workload.p_short > TAIL_P_SHORT or entry.tenant.capped:
                continue
            if found is not None and entry.reserve <= found[0].reserve:
                continue
            assert entry.lane is not None
            tier = entry.lane.tier
            if not borrowing and not pool.budget.owns_room(entry.cls):
                continue
            answer = self.tier_place(pool, tier, now)
            if isinstance(answer, Fit) and not self._is_full(pool, tier.place):
                found = (entry, answer.account, self._turn(pool, tier))
        return found

    def _next_retry(self, pool: Pool, now: float) -> tuple[Entry, str] | None:
        """The oldest job after a failed attempt that an account takes."""
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


def _precedes(lane: Lane, other: Lane) -> bool:
    """By the tenant's rank, then by the head's key."""
    mine, theirs = lane.first, other.first
    assert mine is not None
    assert theirs is not None
    return (lane.share.rank, mine.key, mine.seq) < (other.share.rank, theirs.key, theirs.seq)
