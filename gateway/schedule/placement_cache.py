"""A cache of the accounts' answers (`Fit` or `Blocked`) to the queues of a pool.

A drain puts the same question again and again, and most answers cannot have changed. A `Fit` is
valid for one version of the pool and one moment, since another job may take the slot. A `Blocked`
is valid until the time it names, or until one of the queue's accounts changes
(`Pool.account_changed`). Express jobs ask a second time where the window is full: for the few
slots above it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from gateway.schedule.accounts_protocol import AccountsProtocol
from gateway.schedule.model_pool import Pool
from gateway.schedule.queue import NEVER, AccountsQueue, CachedAnswer
from gateway.types import Blocked, Fit, Reason

OUT_OF_SERVICE = frozenset({Reason.HEALTH, Reason.ACCOUNT_BACKOFF})

Ask = Callable[[Pool, AccountsQueue, bool, float], Fit | Blocked]
"""A question to the accounts: for a place for a job of this queue, express or not, now."""


class PlacementCache:
    """Questions to the accounts and their answers. `express`: there are slots above the windows."""

    def __init__(self, accounts: AccountsProtocol, *, express: bool) -> None:
        self._accounts = accounts
        self._express = express

    def ask(self, pool: Pool, queue: AccountsQueue, express: bool, now: float) -> Fit | Blocked:
        """The accounts' answer to a job of this queue. An express job is also offered the slots
        above the window, where the window is full."""
        answer = self._ask(pool, queue, queue.cached, now)
        if express and self.leads_above(answer):
            return self._ask(pool, queue, queue.cached_express, now)
        return answer

    def ask_above(self, pool: Pool, queue: AccountsQueue, now: float) -> Fit | Blocked:
        """The accounts' answer with the slots above the window."""
        return self._ask(pool, queue, queue.cached_express, now)

    def leads_above(self, answer: Fit | Blocked) -> bool:
        """True for a refusal by the window alone, while there are slots above it."""
        return self._express and isinstance(answer, Blocked) and answer.reason is Reason.WINDOW

    def _ask(
        self, pool: Pool, queue: AccountsQueue, cached: CachedAnswer, now: float
    ) -> Fit | Blocked:
        if now < cached.shut_s:
            return cached.answer
        at = (pool.version, now)
        if cached.asked_at != at:
            cached.asked_at = at
            cached.answer = self._accounts.choose(
                queue.model, queue.accounts, now, queue.avoid, express=cached.express
            )
            cached.shut_s = _holds_until(cached.answer)
        return cached.answer

    def ask_anew(
        self, pool: Pool, queue: AccountsQueue, express: bool, now: float
    ) -> Fit | Blocked:
        """`ask` without reading or writing the cache: for display and tests."""
        choose = self._accounts.choose
        answer = choose(queue.model, queue.accounts, now, queue.avoid)
        if express and self.leads_above(answer):
            answer = choose(queue.model, queue.accounts, now, queue.avoid, express=True)
        return answer

    def is_closed(self, pool: Pool, now: float) -> bool:
        """True where no account of the pool takes a request of any model; valid until
        `pool.closed_s` unless an account changes before. (The question names no model, so that no
        model's window has a part in the answer.)"""
        if now < pool.closed_s:
            return True
        pool.closed_s = _holds_until(self._accounts.choose("", pool.accounts, now))
        return now < pool.closed_s

    # ---- time

    def horizon_s(self, pool: Pool, queue: AccountsQueue, now: float) -> float:
        """The time before which no account of the queue can serve: `now` where one is in service,
        else the earliest return of one. A job that cannot wait so long waits in vain."""
        answer = self.ask(pool, queue, False, now)
        if isinstance(answer, Fit) or answer.reason not in OUT_OF_SERVICE:
            return now
        return max(now, self._accounts.heals_s(queue.accounts, now))

    @staticmethod
    def wake_s(pool: Pool, now: float) -> float:
        """The time at which time alone changes something for a job that waits; infinity: never."""
        wake_s = pool.closed_s if pool.closed_s > now else inf
        for queue in pool.queues.values():
            if not queue.jobs:
                continue
            first = queue.expiry.top()
            if first is not None and first.expire_s < wake_s:
                wake_s = first.expire_s
            if now < queue.cached.shut_s < wake_s:
                wake_s = queue.cached.shut_s
            if now < queue.cached_express.shut_s < wake_s:
                wake_s = queue.cached_express.shut_s
        return wake_s


def _holds_until(answer: Fit | Blocked) -> float:
    """The time up to which an answer stays valid; NEVER for a Fit, which another job may use up."""
    if isinstance(answer, Fit):
        return NEVER
    return inf if answer.until_s is None else answer.until_s
