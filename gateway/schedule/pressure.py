"""The load of a pool, assessed before a drain: saturation, severity, and what they set.

choice.py and admission.py read the results from the pool. Starts move work from waiting to running
and add none, so one assessment before them is enough. It matters where something waits, or where
the mode caps sizes; else, and where a queue is long and so changes slowly, one event in `EVERY` is
assessed, and the one that leaves the pool idle.
"""

from __future__ import annotations

from gateway.schedule import overload
from gateway.schedule.accounts_protocol import AccountsProtocol
from gateway.schedule.budget import SURE_STARTS
from gateway.schedule.model_pool import Pool
from gateway.schedule.ordering import Order
from gateway.schedule.overload import Grade
from gateway.schedule.rounds import Turn
from gateway.settings.schema import Schedule

EVERY = 8  # events between two assessments while nothing waits, or very much
LONG_QUEUE = 32
REKEY_SLICE = 2  # keys made anew per drain of one: a change of scale is spread over many events


def assess(
    pool: Pool, accounts: AccountsProtocol, settings: Schedule, trust: float, now: float
) -> None:
    """Set saturation and mode, budgets and weights, severity and ladder, the ordering's scale."""
    pool.drains += 1
    if pool.drains % EVERY == 0 or _at_once(pool):
        pool.saturation = saturation(pool, accounts)
        pool.mode = overload.next_mode(pool.mode, pool.saturation)
        _resize(pool, accounts)
        _severity(pool, settings, now)
        _order(pool, trust)
    if pool.stale:
        pool.rekey(REKEY_SLICE if len(pool.stale) > LONG_QUEUE else LONG_QUEUE)


def _at_once(pool: Pool) -> bool:
    """True where the present load decides something."""
    if waiting := len(pool.queued):
        return waiting < LONG_QUEUE or pool.budget.fixed
    return pool.capped or not pool.budget.total_jobs


def saturation(pool: Pool, accounts: AccountsProtocol) -> float:
    """Tokens in flight and waiting as a share of the pool's limit, or the accounts' own load if
    that is more."""
    tokens = pool.budget.total_tokens + pool.pressing_tokens
    return max(tokens / pool.budget.total_limit, accounts.load(pool.accounts))


def load(pool: Pool, settings: Schedule) -> tuple[float, float, float]:
    """Predicted seconds to serve what waits, 0 where the pace is not known; the severity of that
    backlog; and the severity of all."""
    pace = pool.pace
    clear_s = pace.clear_s(pool.pressing_tokens, pool.budget.total_jobs) if pace.sure else None
    backlog = overload.backlog_severity(clear_s or 0.0, settings)
    return clear_s or 0.0, backlog, overload.severity(backlog, pace.drop_ratio, pace.slowdown)


def _resize(pool: Pool, accounts: AccountsProtocol) -> None:
    pace = pool.pace
    if pace.starts >= SURE_STARTS:
        pressure = overload.pressure(pool.saturation)
        room = max(1.0, accounts.room(pool.accounts))
        pool.budget.resize(room * pace.mean_reserve, pressure)
        pool.rounds.adapt(pressure, pace.mean_reserve)


def _severity(pool: Pool, settings: Schedule, now: float) -> None:
    pool.clear_s, backlog, pool.severity = load(pool, settings)
    deferred = overload.deferred_from(pool.deferred, pool.severity, settings)
    if deferred is not pool.deferred:
        if Grade.NONE in (deferred, pool.deferred):  # its turn begins, or is over
            pool.rounds.reset(Turn.DEFERRED)
            pool.served_s[Turn.DEFERRED] = now
        pool.deferred = deferred
    pool.rejected = overload.rejected_from(pool.rejected, backlog, settings)


def _order(pool: Pool, trust: float) -> None:
    if not pool.queued:
        return
    pace, order = pool.pace, pool.order
    typical, token_s, short = order.typical_tokens, order.token_s, order.typical_ln_short
    if pace.starts >= SURE_STARTS and pace.token_s is not None:
        typical, token_s, short = pace.mean_reserve, pace.token_s, pace.mean_ln_short
    streams = pace.streams(pool.budget.total_jobs)
    if not order.near(pool.pressing_tokens, typical, token_s, streams, trust, short):
        pool.reorder(
            Order(order.kind, pool.pressing_tokens, typical, token_s, streams, trust, short)
        )
