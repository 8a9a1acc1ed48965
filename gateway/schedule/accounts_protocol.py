"""The scheduler's interface to the accounts, which balance.accounts.Accounts implements.

The two rooms do not import each other, so that each can be read, tested and replaced alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from gateway.settings.schema import Account, Balance
from gateway.snapshots import AccountSnapshot
from gateway.types import Blocked, Fit, RateLimits, Verdict


class AccountsProtocol(Protocol):
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
        """The best of `accounts` for one more request for `model`, or the reason why none takes it.

        Accounts in `avoid` come into question only if no other is in service; `express` may use
        the few slots above the window. The answer does not depend on the request's size.
        """

    def heals_s(self, accounts: tuple[str, ...], now: float) -> float:
        """The time at which one of them may serve again: `now` if one does, infinity if none
        ever will."""

    def take(self, account: str, model: str, tokens: float, now: float) -> int:
        """Take a slot for `model`, charged with `tokens` (prompt and reserve).

        Returns:
            The number of the lease.
        """

    def answered(self, lease: int, limits: RateLimits | None, now: float) -> bool:
        """Note the first byte of an answer and the limits in its headers. True where the account
        took nothing and now may take a job."""

    def give_back(
        self,
        lease: int,
        verdict: Verdict,
        *,
        retry_after_s: float | None = ...,
        tokens: float | None = ...,
        output_tokens: float | None = ...,
        own_s: float = ...,
        now: float,
    ) -> bool:
        """Give the slot back with what the attempt taught; once per lease.

        Args:
            tokens: used by the attempt, prompt and output; None where not counted.
            output_tokens: the output's part of these.
            own_s: seconds of the attempt that were not the provider's, at most.

        Returns:
            False where it changes nothing for models other than the lease's.
        """

    def trust(self, share: float) -> None:
        """Set the trust in forecasts, 0 to 1: the less, the wider the windows."""

    def load(self, accounts: Iterable[str]) -> float:
        """Requests in flight as a share of the room."""

    def room(self, accounts: Iterable[str]) -> float:
        """Requests that these accounts take at once: the sum of their windows."""

    def reconfigure(self, accounts: Sequence[Account], balance: Balance, now: float) -> None: ...

    def snapshot(self, now: float) -> tuple[AccountSnapshot, ...]: ...

    def check(self) -> None: ...
