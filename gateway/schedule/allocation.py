"""What may start next in a pool: the one predicate, and the job that goes.

Three orders, one inside the other:

    class     whose turn: deficit round-robin in tokens (rounds.py)
    tenant    whose share: virtual token counters, in steps (shares.py)
    job       which of one tenant's: the ordering's key, with a bound on overtaking (ordering.py)

Work conservation. Every question is asked of heads that could start at this moment, and of all
of them: a turn, a share, a key only choose among those, and never keep a slot empty for one that
cannot. That is why credit is earned by rounds counted at the choice and not by time, and why a
class beyond its budget is asked as soon as no class below its own has a head, or has starved.

The short. Their P95 is made by the few that wait for a turn. Within a round the interactive
class goes first; its share of the tokens is far above what short answers use, so its queue is
hardly ever longer than its credit; and `express` lets it start above the window, where a slot is
not there yet but will be soon. What is left to pay is bounded by the weights: heavy work keeps
its share of the tokens however many short ones come.

The late. Keys favour, and a favour without bound starves. So a job may pass those of its tenant
and class that came before it only if they came less than `max_overtake_s` before: otherwise the
oldest of them goes in its place. This one rule bounds every ordering. Across tenants the
counters bound the wait, across classes the weights; and a turn that has started nothing for
`max_overtake_s` is next, whatever its head costs and its class owes. Where budgets are hard
(`borrow` off, or both of `dual_budget` used up) its class's own jobs have to end first.

Deferred jobs (overload.py) have a turn of their own, last in each round, of small weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from gateway.schedule.accounts import AccountPool
from gateway.schedule.budget import tier_cap
from gateway.schedule.entry import Entry, Place
from gateway.schedule.openings import Openings
from gateway.schedule.pool import Pool
from gateway.schedule.queue import Best, Lane, Line, Rank, Tier
from gateway.schedule.rounds import Turn
from gateway.settings.schema import Schedule
from gateway.types import Blocked, Fit, JobClass, Mode, Reason, SizeBucket

TENANT_CAP = Blocked(Reason.TENANT_CAP)
CLASS_BUDGET = Blocked(Reason.CLASS_BUDGET)
TIER_CAP = Blocked(Reason.TIER_CAP)


Head = tuple[Lane, str]
"""A lane, and the account that takes its first job."""


class Allocation:
    """Reads pools and accounts. It changes neither, but for parking capped tenants' lanes and
    the rounds' credit, which is given out when a turn is chosen."""

    def __init__(self, settings: Schedule, accounts: AccountPool) -> None:
        self._caps = {
            mode: {bucket: tier_cap(settings, bucket, mode) for bucket in SizeBucket}
            for mode in Mode
        }
        self._capped = any(max(caps.values()) for caps in self._caps.values())
        self.openings = Openings(accounts, express=settings.policy == "adaptive")
        self._overtake_s = settings.max_overtake_s

    # ---- the predicate

    def fits(self, pool: Pool, entry: Entry, now: float) -> Fit | Blocked:
        """May this job, which waits, start now? A retry holds its reserve and its places under
        the caps, so it asks the accounts alone. For people and tests: nothing is remembered."""
        line, lane = entry.line, entry.lane
        assert line is not None
        if lane is None:
            return self.openings.anew(line, now, express=False)
        is_open = self.is_open(pool, entry.cls, now)
        return self.lane_fits(pool, lane, self.tier_fits(pool, lane.tier, is_open, now))

    def tier_fits(self, pool: Pool, tier: Tier, is_open: bool, now: float) -> Fit | Blocked:
        """`fits` for every job of the tier at once, but for caps of tenants; `is_open` is that
        of its class."""
        if not is_open:
            return CLASS_BUDGET
        if self._is_full(pool, tier.place):
            return TIER_CAP
        return self.openings.anew(tier.line, now, express=tier.place.express)

    def lane_fits(self, pool: Pool, lane: Lane, of_tier: Fit | Blocked) -> Fit | Blocked:
        """`fits` for every job of the lane at once. A deferred lane that nothing else blocks
        may start, for then nothing else does."""
        answer: Fit | Blocked = TENANT_CAP if lane.tenant.capped else of_tier
        if isinstance(answer, Blocked) and lane.tier.grade >= pool.deferred:
            return Blocked(Reason.OVERLOAD, answer.until_s)
        return answer

    def alone(self, pool: Pool, line: Line, entry: Entry, now: float) -> Fit | Blocked:
        """`fits` of a job that is not in the queue, while nothing that is there fits."""
        if entry.tenant.capped:
            return TENANT_CAP
        if not pool.budget.admits(entry.cls):
            return CLASS_BUDGET
        if self._is_full(pool, entry.place):
            return TIER_CAP
        return self.openings.of_place(pool, line, entry.place, now)

    def is_open(self, pool: Pool, cls: JobClass, now: float) -> bool:
        """May this class start a job? Below its budget, or on what the others leave idle."""
        if pool.budget.owns_room(cls):
            return True
        if not pool.budget.lends:
            return False
        heads = self._heads(pool, now)
        return not any(pool.budget.owns_room(lane.tier.cls) for lane, _ in heads.values())

    def _is_full(self, pool: Pool, place: Place) -> bool:
        bucket = place.bucket
        return (
            bucket is not None and 0 < self._caps[pool.mode][bucket] <= pool.budget.buckets[bucket]
        )

    # ---- the choice

    def next(self, pool: Pool, now: float) -> tuple[Entry, str, Turn | None] | None:
        """The next job to start, where, and whose turn it is; retries first, on nobody's."""
        if pool.retrying and (found := self._next_retry(pool, now)):
            return (*found, None)
        return self._next_waiting(pool, now) if pool.queued else None

    def _next_waiting(self, pool: Pool, now: float) -> tuple[Entry, str, Turn] | None:
        """Of the turn that has starved, on borrowed room if need be; else of classes below their
        budget, and where none of those can start anything, of the others on borrowed room."""
        heads = self._heads(pool, now)
        if not heads:
            return None
        budget = pool.budget
        owners = {t: head for t, head in heads.items() if budget.owns_room(head[0].tier.cls)}
        lends = len(owners) < len(heads) and budget.lends
        if not owners and not lends:
            return None
        turn = self._starved(pool, heads if lends else owners, now)
        if turn is None:
            heads = owners or heads
            charges = {t: lane.first.charge for t, (lane, _) in heads.items() if lane.first}
            turn = pool.rounds.choose(charges)
        lane, account = heads[turn]
        first = lane.first
        assert first is not None
        late = self._passed(pool, lane, first, turn, now)
        if late is None:
            return first, account, turn
        entry, account = late
        return entry, account, turn

    def _heads(self, pool: Pool, now: float) -> dict[Turn, Head]:
        """The best lane of each turn whose head nothing but a class's budget may block, with
        its account; `fits` over many lanes, cheapest question first: a line whose best are not
        the pool's best so far need not ask the accounts."""
        heads: dict[Turn, Head] = {}
        openings = self.openings
        if len(pool.lines) > 1 and openings.is_closed(pool, now):
            return heads
        ranks: dict[Turn, Rank] = {}
        for line in pool.lines.values():
            if not line.waiting:
                continue
            placed = line.placement
            answer: Fit | Blocked | None = placed.answer if now < placed.shut_s else None
            if answer is None:
                for turn, (rank, lane) in self._best(pool, line).items():
                    if turn not in ranks or rank < ranks[turn]:
                        if answer is None:
                            answer = openings.of_line(pool, line, now)
                        if isinstance(answer, Blocked):
                            break
                        ranks[turn] = rank
                        heads[turn] = (lane, answer.account)
            if answer is not None and openings.leads_above(answer):
                tiers = [tier for tier in line.express_tiers if tier.size]
                if not tiers:
                    continue
                answer = openings.above(pool, line, now)
                if isinstance(answer, Fit):
                    for turn, (rank, lane) in self._best_of(pool, tiers).items():
                        if turn not in ranks or rank < ranks[turn]:
                            ranks[turn] = rank
                            heads[turn] = (lane, answer.account)
        return heads

    def _best(self, pool: Pool, line: Line) -> Best:
        """The best lane of each turn, remembered while nothing moves in the line; not where it
        hangs on budgets, which move without it."""
        if not pool.budget.lends:
            return self._best_of(pool, line.tiers.values())
        best = line.best
        if best is not None and line.deferred is pool.deferred and not self._capped:
            for _, lane in best.values():
                if lane.tenant.capped:
                    break
            else:
                return best
        best = self._best_of(pool, line.tiers.values())
        line.best, line.deferred = best, pool.deferred
        return best

    def _best_of(self, pool: Pool, tiers: Iterable[Tier]) -> Best:
        best: Best = {}
        deferred, capped, budget = pool.deferred, self._capped, pool.budget
        for tier in tiers:
            if not tier.size or (capped and self._is_full(pool, tier.place)):
                continue
            # The deferred turn has jobs of all classes: one without room must not hide another.
            if not budget.admits(tier.cls):
                continue
            lane = tier.best()
            if lane is None:
                continue
            turn = Turn.DEFERRED if tier.grade >= deferred else tier.turn
            if turn not in best or tier.best_rank < best[turn][0]:
                best[turn] = (tier.best_rank, lane)
        return best

    def _starved(self, pool: Pool, heads: dict[Turn, Head], now: float) -> Turn | None:
        """The turn that could start something and has not for `max_overtake_s`: what it costs
        is one job. A head of many tokens may need many rounds, and a class in which a giant
        runs may owe room for as long as that takes."""
        if self._overtake_s <= 0.0 or len(heads) < 2:
            return None
        served_s = pool.served_s
        turn = min(heads, key=served_s.__getitem__)
        return turn if now - served_s[turn] >= self._overtake_s else None

    def _passed(
        self, pool: Pool, lane: Lane, first: Entry, turn: Turn, now: float
    ) -> tuple[Entry, str] | None:
        """The oldest job of the same turn and tenant which `first` came too late to pass."""
        latest = (first.job.arrived_s - self._overtake_s, inf)
        found: tuple[Entry, str] | None = None
        shares = (lane.share,) if turn is not Turn.DEFERRED else pool.shares_of(lane.tenant)
        for share in shares:
            for other in share.lanes:
                oldest = other.oldest
                if oldest is None or oldest.came > latest or oldest is first:
                    continue
                tier = other.tier
                if (tier.grade >= pool.deferred) is not (turn is Turn.DEFERRED):
                    continue
                if not pool.budget.admits(tier.cls):
                    continue
                answer = self.openings.of_place(pool, tier.line, tier.place, now)
                if isinstance(answer, Blocked) or self._is_full(pool, tier.place):
                    continue
                latest = oldest.came
                found = (oldest, answer.account)
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
            answer = self.openings.of_line(pool, line, now)
            if isinstance(answer, Fit):
                best, account = head, answer.account
        return None if best is None else (best, account)
