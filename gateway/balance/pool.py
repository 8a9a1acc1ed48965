"""All accounts by name: where a job goes, and what comes back from there.

The choice is least load, (in flight + 1) / (limit × weight), over every account that takes a
request now. One process knows its own load exactly, so there is nothing to sample (power of
two choices is for balancers that guess). Equal accounts take turns: the one used longest ago.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from gateway.balance.account import Account, State
from gateway.settings.schema import Account as AccountSettings
from gateway.settings.schema import Balance
from gateway.types import AccountSnapshot, Blocked, Fit, RateLimits, Reason, Verdict

NEAREST = {
    Reason.ACCOUNT_LIMIT: 0,
    Reason.PACER: 1,
    Reason.ACCOUNT_BACKOFF: 2,
    Reason.HEALTH: 3,
}
"""A set of accounts is blocked for the reason of the one that is nearest to serving."""
IN_SERVICE = frozenset({Reason.ACCOUNT_LIMIT, Reason.PACER})


class _Lease(Struct, frozen=True, gc=False):
    account: str
    tokens: float


class Accounts:
    """The accounts of a gateway. Times are seconds on the caller's clock, tokens include the
    prompt's."""

    def __init__(self, accounts: Sequence[AccountSettings], balance: Balance) -> None:
        self._accounts = {a.name: Account(a, balance) for a in accounts}
        self._leases: dict[int, _Lease] = {}
        self._next = 1

    def reconfigure(
        self, accounts: Sequence[AccountSettings], balance: Balance, now: float
    ) -> None:
        """A reload: an account of the same name keeps its live state, a removed one drains."""
        kept = {a.name: a for a in accounts}
        for name, live in list(self._accounts.items()):
            if name not in kept:
                live.remove()
                if live.inflight == 0:
                    del self._accounts[name]
        order = {}
        for name, settings in kept.items():
            account = self._accounts.get(name)
            if account is None:
                account = Account(settings, balance)
            else:
                account.configure(settings, balance, self._next)
            order[name] = account
        self._accounts = order | self._accounts

    def place(
        self,
        model: str,
        accounts: tuple[str, ...],
        now: float,
        avoid: frozenset[str] = frozenset(),
        *,
        express: bool = False,
    ) -> Fit | Blocked:
        """The best of `accounts` for one more request for `model`.

        Those in `avoid` (where the job failed before) come into question only when none of
        the others is in service; full or paced is in service, it has room again soon.
        """
        if not avoid:
            return self._best(accounts, now)
        answer = self._best([name for name in accounts if name not in avoid], now)
        if isinstance(answer, Fit) or answer.reason in IN_SERVICE:
            return answer
        return self._best(accounts, now)

    def heals_s(self, accounts: tuple[str, ...], now: float) -> float:
        """When the first of them may serve again: `now` if one does, infinity if only an
        operator can help (keys refused, accounts removed)."""
        live = [a for name in accounts if (a := self._accounts.get(name)) is not None]
        return min((a.heals_s(now) for a in live), default=float("inf"))

    def take(self, account: str, model: str, tokens: float, now: float) -> int:
        """A slot on `account` for `model`, charged `tokens`; the lease's number."""
        lease, self._next = self._next, self._next + 1
        self._accounts[account].take(lease, tokens, now)
        self._leases[lease] = _Lease(account, tokens)
        return lease

    def answered(self, lease: int, limits: RateLimits | None, now: float) -> None:
        """The first byte came, with what the provider's headers say is left."""

    def give_back(
        self,
        lease: int,
        verdict: Verdict,
        *,
        retry_after_s: float | None = None,
        tokens: float | None = None,
        output_tokens: float | None = None,
        now: float,
    ) -> None:
        """The slot back, with what the attempt taught. `tokens`: what it really used.

        Raises KeyError where the lease was given back before.
        """
        held = self._leases.pop(lease)
        account = self._accounts[held.account]
        account.give_back(
            lease,
            verdict,
            charged=held.tokens,
            actual=tokens,
            retry_after_s=retry_after_s,
            next_lease=self._next,
            now=now,
        )
        if account.state is State.DRAINING and account.inflight == 0:
            del self._accounts[held.account]

    def load(self, accounts: Iterable[str]) -> float:
        """In flight / limit over these accounts, without those that are out for good; 0 to
        about 1, more after a cut."""
        inflight, limit = 0, 0.0
        for name in accounts:
            account = self._accounts.get(name)
            if account is not None and account.state is not State.DEAD_KEY:
                inflight += account.inflight
                limit += account.limit.value
        return inflight / limit if limit else 0.0

    def room(self, accounts: Iterable[str]) -> float:
        """How many requests these accounts take at once."""
        return sum(a.limit.value for name in accounts if (a := self._accounts.get(name)))

    @property
    def leases(self) -> int:
        return len(self._leases)

    def snapshot(self, now: float) -> tuple[AccountSnapshot, ...]:
        return tuple(account.snapshot(now) for account in self._accounts.values())

    def check(self) -> None:
        """Asserts every invariant; for tests."""
        held = dict.fromkeys(self._accounts, 0)
        for lease in self._leases.values():
            held[lease.account] += 1
        for name, account in self._accounts.items():
            account.check()
            assert account.inflight == held[name], (name, account.inflight, held[name])
            assert account.state is not State.DRAINING or account.inflight, name

    def _best(self, accounts: Iterable[str], now: float) -> Fit | Blocked:
        best: Account | None = None
        lightest = (float("inf"), 0)
        reason, until_s = Reason.HEALTH, float("inf")
        for name in accounts:
            account = self._accounts.get(name)
            if account is None:
                continue
            blocked = account.blocked(now)
            if blocked is None:
                rank = (account.score, account.last_lease)
                if rank < lightest:
                    best, lightest = account, rank
                continue
            if NEAREST[blocked.reason] < NEAREST[reason]:
                reason = blocked.reason
            if blocked.until_s is not None:
                until_s = min(until_s, blocked.until_s)
        if best is not None:
            return Fit(best.settings.name)
        return Blocked(reason, None if until_s == float("inf") else until_s)
