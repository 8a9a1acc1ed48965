"""All accounts by name: the choice of one for a request, and learning from its answer.

Of the accounts that take a request now, the one with the least load is chosen: (in flight + 1) /
(window × weight). If the speed of all of them is known, load is multiplied by the time a request
of medium size takes on each when unloaded, which gives the shortest expected delay. All accounts
are compared, for the load of each is known exactly; "power of two choices" is for balancers that
must guess it. Of equal accounts the one used longest ago is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from msgspec import Struct

from gateway.balance.account import Account, tokens_used
from gateway.balance.header_limits import ModelLimits
from gateway.balance.health import HealthState
from gateway.balance.inflight import Mark
from gateway.balance.saved_state import MAX_AGE_S, SavedState
from gateway.balance.window import Window
from gateway.settings.schema import Account as AccountSettings
from gateway.settings.schema import Balance
from gateway.snapshots import AccountSnapshot
from gateway.types import Blocked, Fit, RateLimits, Reason, Verdict

NEAREST = {
    Reason.WINDOW: 0,
    Reason.ACCOUNT_LIMIT: 1,
    Reason.PACER: 2,
    Reason.ACCOUNT_BACKOFF: 3,
    Reason.HEALTH: 4,
}
"""Order of reasons: a set of accounts is blocked for the first of its accounts' reasons."""
QUIET = frozenset({Verdict.SUCCESS, Verdict.IGNORED})
"""Verdicts that close no account that was open."""
IN_SERVICE = frozenset({Reason.WINDOW, Reason.ACCOUNT_LIMIT, Reason.PACER})
"""Reasons of accounts that serve and will have room again soon."""


class _Lease(Struct, frozen=True, gc=False):
    account: Account
    tokens: float
    window: Window | None
    mark: Mark | None
    limits: ModelLimits | None
    requests_spent: float  # of `limits`, this request included
    tokens_spent: float


class Accounts:
    """The accounts of a gateway.

    Times are seconds on the caller's clock; tokens include the prompt's. A lease is a number,
    larger for each request taken.
    """

    def __init__(self, accounts: Sequence[AccountSettings], balance: Balance) -> None:
        self._accounts = {a.name: Account(a, balance) for a in accounts}
        self._leases: dict[int, _Lease] = {}
        self._next = 1
        self._trust = 1.0  # in forecasts, 0 to 1

    def __repr__(self) -> str:
        return f"<Accounts {', '.join(map(repr, self._accounts.values()))}>"

    def reconfigure(
        self, accounts: Sequence[AccountSettings], balance: Balance, now: float
    ) -> None:
        """Applies reloaded settings.

        An account of the same name keeps its live state, a removed one drains.
        """
        wanted = {a.name: a for a in accounts}
        for name, live in list(self._accounts.items()):
            if name not in wanted:
                live.remove()
                if live.inflight == 0:
                    del self._accounts[name]
        order = {}
        for name, settings in wanted.items():
            account = self._accounts.get(name)
            if account is None:
                account = Account(settings, balance)
                account.trust(self._trust)
            else:
                account.configure(settings, balance, self._next)
            order[name] = account
        self._accounts = order | self._accounts

    def choose(
        self,
        model: str,
        accounts: tuple[str, ...],
        now: float,
        avoid: frozenset[str] = frozenset(),
        *,
        express: bool = False,
    ) -> Fit | Blocked:
        """The best of `accounts` for one more request for `model`, or why it must wait.

        Accounts in `avoid`, where the job failed before, are used only if none of the others is
        in service. An account that is full or paced is in service. An `express` request may use
        `express_ratio` of a window on top of it.
        """
        if not avoid:
            return self._best(model, accounts, now, express)
        others = [name for name in accounts if name not in avoid]
        answer = self._best(model, others, now, express)
        if isinstance(answer, Fit) or answer.reason in IN_SERVICE:
            return answer
        return self._best(model, accounts, now, express)

    def heals_s(self, accounts: tuple[str, ...], now: float) -> float:
        """Time at which the first of them may serve again.

        `now` if one serves; infinity if only an operator can help (keys refused, accounts
        removed).
        """
        live = [a for name in accounts if (a := self._accounts.get(name)) is not None]
        return min((a.health.heals_s(now) for a in live), default=inf)

    def take(self, account: str, model: str, tokens: float, now: float) -> int:
        """Takes a slot on `account` for `model`, charges `tokens`; the lease."""
        lease, self._next = self._next, self._next + 1
        to = self._accounts[account]
        window = to.window_by_model.get(model)
        mark = None if window is None else window.take(now)
        to.take(lease, tokens, now)
        requests_spent = tokens_spent = 0.0
        if (limits := to.header_limits.open(model)) is not None:
            limits.charge(tokens, now)
            requests_spent, tokens_spent = limits.requests.spent, limits.tokens.spent
        self._leases[lease] = _Lease(to, tokens, window, mark, limits, requests_spent, tokens_spent)
        return lease

    def answered(self, lease: int, limits: RateLimits | None, now: float) -> bool:
        """Takes in the provider's headers, at an answer's first byte.

        True if the account took nothing of this model before and now may, or may sooner.
        """
        held = self._leases.get(lease)
        if held is None or held.limits is None or limits is None:
            return False
        before_s = held.limits.free_s
        held.limits.update(limits, held.requests_spent, held.tokens_spent, now)
        return now < before_s and held.limits.free_s < before_s

    def give_back(
        self,
        lease: int,
        verdict: Verdict,
        *,
        retry_after_s: float | None = None,
        tokens: float | None = None,
        output_tokens: float | None = None,
        own_s: float = 0.0,
        now: float,
    ) -> bool:
        """Returns the slot and learns from how the attempt ended.

        `retry_after_s` is the provider's; `tokens`, of which `output_tokens`, are prompt and
        output used, None where they were not counted; `own_s` the seconds that were the gateway's
        or the client's, at most. Returns False if nothing changes for other models: the account
        took requests before and still does. Raises KeyError if the lease was given back before.
        """
        held = self._leases.pop(lease)
        account = held.account
        took = account.takes(now)
        if held.window is not None and held.mark is not None:
            if verdict is Verdict.SUCCESS:
                prompt = None if tokens is None else tokens - (output_tokens or 0.0)
                held.window.learn(held.mark, lease, self._next, prompt, output_tokens, now, own_s)
            held.window.give_back(now)
        _settle_limits(held, verdict, tokens, now)
        account.give_back(
            lease,
            verdict,
            charged=held.tokens,
            actual=tokens,
            retry_after_s=retry_after_s,
            next_lease=self._next,
            now=now,
        )
        if account.health.state is HealthState.DRAINING and account.inflight == 0:
            del self._accounts[account.settings.name]
        return not took or verdict not in QUIET

    def load(self, accounts: Iterable[str]) -> float:
        """In flight / room of these accounts, without those whose key was refused.

        0 to about 1, more just after a limit was cut.
        """
        inflight, room = 0, 0.0
        for name in accounts:
            account = self._accounts.get(name)
            if account is not None and account.health.state is not HealthState.DEAD_KEY:
                inflight += account.inflight
                room += account.room
        return inflight / room if room else 0.0

    def room(self, accounts: Iterable[str]) -> float:
        """Requests that these accounts may have in flight: the sum of their windows.

        An account counts for at most its concurrency limit.
        """
        return sum(a.room for name in accounts if (a := self._accounts.get(name)))

    def trust(self, share: float) -> None:
        """Sets how far forecasts are trusted, 0 to 1: the less, the wider the windows."""
        self._trust = share
        for account in self._accounts.values():
            account.trust(share)

    def snapshot(self, now: float) -> tuple[AccountSnapshot, ...]:
        """One value per account, for display and metrics."""
        return tuple(account.snapshot(now) for account in self._accounts.values())

    def to_save(self) -> SavedState:
        """State that all accounts have learned, for `restore`."""
        return SavedState(tuple(account.to_save() for account in self._accounts.values()))

    def restore(self, saved: SavedState, age_s: float) -> int:
        """Takes back state that was saved `age_s` ago, before the first request.

        Nothing is taken if it is older than `MAX_AGE_S`; unknown names are skipped. Returns the
        number of accounts that took something.
        """
        if not 0.0 <= age_s <= MAX_AGE_S:
            return 0
        restored = [account for account in saved.accounts if account.name in self._accounts]
        for account in restored:
            self._accounts[account.name].restore(account)
        return len(restored)

    def inherit(self, old: Accounts) -> None:
        """Takes over health and debts of a failed core's accounts, before the first request."""
        self._next = old._next
        for name, account in self._accounts.items():
            before = old._accounts.get(name)
            if before is not None:
                account.inherit(before)

    def check(self) -> None:
        """Asserts every invariant; for tests."""
        held = dict.fromkeys(self._accounts, 0)
        for lease in self._leases.values():
            held[lease.account.settings.name] += 1
        for name, account in self._accounts.items():
            account.check()
            assert account.inflight == held[name], (name, account.inflight, held[name])
            assert account.health.state is not HealthState.DRAINING or account.inflight, name

    def _best(
        self, model: str, accounts: Iterable[str], now: float, express: bool
    ) -> Fit | Blocked:
        live = self._accounts
        takers: list[Account] = []
        reason, until_s = Reason.HEALTH, inf
        for name in accounts:
            account = live.get(name)
            if account is None:
                continue
            window = account.window_by_model.get(model)
            limits = account.header_limits.by_model.get(model)
            blocked = account.blocked(now, window, limits, express=express)
            if blocked is None:
                takers.append(account)
                continue
            if NEAREST[blocked.reason] < NEAREST[reason]:
                reason = blocked.reason
            if blocked.until_s is not None:
                until_s = min(until_s, blocked.until_s)
        if takers:
            one = len(takers) == 1
            return Fit(takers[0].settings.name if one else _least_loaded(takers, model))
        return Blocked(reason, None if until_s == inf else until_s)


def _settle_limits(lease: _Lease, verdict: Verdict, tokens: float | None, now: float) -> None:
    """Corrects the header limits of the lease's model; `tokens` as of `Accounts.give_back`."""
    limits = lease.limits
    if limits is None:
        return
    if verdict is Verdict.RATE_LIMITED:
        limits.refused(lease.requests_spent, lease.tokens_spent, now)
    if (used := tokens_used(verdict, tokens)) is not None:
        limits.correct(used - lease.tokens, now)


def _least_loaded(accounts: list[Account], model: str) -> str:
    """The least loaded account's name; if all speeds are known, of the one with the shortest
    delay."""
    windows = [account.window_by_model.get(model) for account in accounts]
    speeds = [0.0 if window is None else window.alone_s for window in windows]
    known = all(speeds)
    return min(
        (
            account.score(window) * (alone_s if known else 1.0),
            account.last_lease,
            account.settings.name,
        )
        for account, window, alone_s in zip(accounts, windows, speeds, strict=True)
    )[2]
