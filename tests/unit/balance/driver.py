"""One account, driven as its pool drives it and checked after every end."""

from __future__ import annotations

from typing import Any

from gateway.balance.account import Account
from gateway.settings.schema import Balance
from gateway.types import Reason, Verdict
from tests.unit.schedule.build import settings


class Driver:
    """One account and the numbers of its leases."""

    def __init__(self, **fields: Any) -> None:
        given = settings({"a": fields}, balance={"eject_after": 3})
        self.balance: Balance = given.balance
        self.account = Account(given.accounts[0], given.balance)
        self.next = 1
        self.now = 0.0

    def take(self, tokens: float = 10.0) -> int:
        assert self.account.blocked(self.now) is None
        lease, self.next = self.next, self.next + 1
        self.account.take(lease, tokens, self.now)
        return lease

    def end(
        self, lease: int, verdict: Verdict, after: float | None = None, used: float | None = None
    ) -> None:
        self.account.give_back(
            lease,
            verdict,
            charged=10.0,
            actual=used,
            retry_after_s=after,
            next_lease=self.next,
            now=self.now,
        )
        self.account.check()

    def once(self, verdict: Verdict, after: float | None = None) -> None:
        self.end(self.take(), verdict, after)

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.once(Verdict.SERVER_ERROR)

    @property
    def state(self) -> str:
        return self.account.snapshot(self.now).state

    @property
    def reason(self) -> Reason | None:
        blocked = self.account.blocked(self.now)
        return blocked.reason if blocked else None
