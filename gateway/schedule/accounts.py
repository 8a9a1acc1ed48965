"""What the scheduler needs of the accounts. `balance.pool.Accounts` is the one that runs; the
two rooms do not see each other, so that either can be read, tested and replaced alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from gateway.settings.schema import Account, Balance
from gateway.snapshots import AccountSnapshot
from gateway.types import Blocked, Fit, RateLimits, Verdict


class AccountPool(Protocol):
    """All accounts, by name. Times are seconds on the scheduler's clock."""

    def choose(
        self,
        model: str,
        accounts: tuple[str, ...],
        now: float,
        avoid: frozenset[str] = ...,
        *,
        express: bool = ...,
    ) -> Fit | Blocked:
        """The best of `accounts` for one more request for `model`, those in `avoid` only at
        need; `express` may use the few slots above the window. The answer does not depend on
        the request's size."""

    def heals_s(self, accounts: tuple[str, ...], now: float) -> float:
        """When one of them may serve again: `now` if one does, infinity if none ever will."""

    def take(self, account: str, model: str, tokens: float, now: float) -> int:
        """A slot for `model`, charged `tokens` (prompt and reserve); the lease's number."""

    def answered(self, lease: int, limits: RateLimits | None, now: float) -> bool:
        """The first byte came, with what the provider's headers say is left. True where the
        account took nothing and now may."""

    def give_back(
        self,
        lease: int,
        verdict: Verdict,
        *,
        retry_after_s: float | None = ...,
        tokens: float | None = ...,
        output_tokens: float | None = ...,
        now: float,
    ) -> bool:
        """The slot back with what the attempt taught; once per lease. `tokens`: what it used,
        prompt and output; None where nobody counted. False: it changes nothing for models
        other than the lease's."""

    def trust(self, share: float) -> None:
        """How far forecasts can be trusted, 0 to 1: where less, windows are wider."""

    def load(self, accounts: Iterable[str]) -> float:
        """In flight / room."""

    def room(self, accounts: Iterable[str]) -> float:
        """How many requests these accounts take at once: the sum of their windows."""

    def reconfigure(self, accounts: Sequence[Account], balance: Balance, now: float) -> None: ...

    def snapshot(self, now: float) -> tuple[AccountSnapshot, ...]: ...

    def check(self) -> None: ...
