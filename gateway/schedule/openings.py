"""Where the accounts would take a job of a line, asked as seldom as can be.

A drain puts the same question again and again, and most answers cannot have changed. A yes is
good for one version of the pool and one moment, for others may take the slot. A no is good until
the time it names, or until one of the line's accounts has news (`Line.forget`, `Pool.news`).
Express jobs, where the window is full, may ask a second time: for the slots above it.
"""

from __future__ import annotations

from math import inf

from gateway.schedule.accounts import AccountPool
from gateway.schedule.entry import Place
from gateway.schedule.pool import Pool
from gateway.schedule.queue import NEVER, Line, Placement
from gateway.types import Blocked, Fit, Reason

OUT_OF_SERVICE = frozenset({Reason.HEALTH, Reason.ACCOUNT_BACKOFF})


class Openings:
    """`express`: whether there are slots above the windows."""

    def __init__(self, accounts: AccountPool, *, express: bool) -> None:
        self._accounts = accounts
        self.express = express

    def of_line(self, pool: Pool, line: Line, now: float) -> Fit | Blocked:
        return self._of(pool, line, line.placement, now)

    def above(self, pool: Pool, line: Line, now: float) -> Fit | Blocked:
        """With the slots above the window."""
        return self._of(pool, line, line.above, now)

    def of_place(self, pool: Pool, line: Line, place: Place, now: float) -> Fit | Blocked:
        """`of_line`, and where the window is full `above` for those who may."""
        answer = self._of(pool, line, line.placement, now)
        if place.express and self.leads_above(answer):
            return self._of(pool, line, line.above, now)
        return answer

    def leads_above(self, answer: Fit | Blocked) -> bool:
        """A no of the window alone."""
        return self.express and isinstance(answer, Blocked) and answer.reason is Reason.WINDOW

    def _of(self, pool: Pool, line: Line, placed: Placement, now: float) -> Fit | Blocked:
        if now < placed.shut_s:
            return placed.answer
        at = (pool.version, now)
        if placed.asked_at != at:
            placed.asked_at = at
            placed.answer = self._accounts.choose(
                line.model, line.accounts, now, line.avoid, express=placed.express
            )
            placed.shut_s = _holds_until(placed.answer)
        return placed.answer

    def anew(self, line: Line, now: float, *, express: bool) -> Fit | Blocked:
        """`of_place`, nothing remembered: for people and tests."""
        ask = self._accounts.choose
        answer = ask(line.model, line.accounts, now, line.avoid)
        if express and self.leads_above(answer):
            answer = ask(line.model, line.accounts, now, line.avoid, express=True)
        return answer

    def is_closed(self, pool: Pool, now: float) -> bool:
        """No account of the pool takes anything, whatever its model; until `pool.closed_s`
        unless they have news before. Asked for a model without a window, of no name."""
        if now < pool.closed_s:
            return True
        pool.closed_s = _holds_until(self._accounts.choose("", pool.accounts, now))
        return now < pool.closed_s

    # ---- time

    def horizon_s(self, pool: Pool, line: Line, now: float) -> float:
        """Waits on these accounts that end by then end in vain: `now`, or the time at which
        the first account can be back in service where none is."""
        answer = self.of_line(pool, line, now)
        if isinstance(answer, Fit) or answer.reason not in OUT_OF_SERVICE:
            return now
        return max(now, self._accounts.heals_s(line.accounts, now))

    @staticmethod
    def wake_s(pool: Pool, now: float) -> float:
        """When time alone will change something for a job that waits; infinity: never."""
        wake_s = pool.closed_s if pool.closed_s > now else inf
        for line in pool.lines.values():
            if not line.size:
                continue
            first = line.expiry.top()
            if first is not None and first.expire_s < wake_s:
                wake_s = first.expire_s
            if now < line.placement.shut_s < wake_s:
                wake_s = line.placement.shut_s
            if now < line.above.shut_s < wake_s:
                wake_s = line.above.shut_s
        return wake_s


def _holds_until(answer: Fit | Blocked) -> float:
    """A no, until time or news change it. A yes, not a moment."""
    if isinstance(answer, Fit):
        return NEVER
    return inf if answer.until_s is None else answer.until_s
