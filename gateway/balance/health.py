"""An account's health: a table of states and the rules for leaving them.

    open ── 429, 503 ─────────────▶ backoff    ── time ─▶ open
      │ └── repeated failures ────▶ ejected    ── time ─▶ half_open ── success ─▶ open
      └──── key refused ──────────▶ dead_key   ── time ─▶     │ └───── failure ─▶ ejected
                                                              └─ key refused ──▶ dead_key
    any ── removed by a reload ───▶ draining   (finishes what it has; back: half_open)

Rules:

1. `half_open` lets one request through, the probe, and only the end of the probe moves the
   account on. A probe that ends without a verdict (the client left) makes room for another.
2. In every other state the end of a request that began before the state was entered is ignored,
   whether good or bad. A Retry-After is the exception, for it is about the future: it rests an
   open account and extends a rest, however old its request.
3. 429 and 503 rest the account and cut its limit but never eject it. Timeouts cut the limit and
   count as failures; 5xx and broken connections count as failures only.
"""

from __future__ import annotations

from enum import StrEnum
from math import inf

from gateway.settings.schema import Balance
from gateway.types import Blocked, Reason, Verdict

RESTS = frozenset({Verdict.RATE_LIMITED, Verdict.OVERLOADED})
FAILURES = frozenset({Verdict.TIMEOUT, Verdict.SERVER_ERROR, Verdict.UNREACHABLE})
MIN_BACKOFF_S = 0.05
"""Least rest, so that "retry after 0" does not become a tight loop."""


class HealthState(StrEnum):
    """State of an account; the head of this file has the transitions."""

    OPEN = "open"
    BACKOFF = "backoff"
    EJECTED = "ejected"
    HALF_OPEN = "half_open"
    DEAD_KEY = "dead_key"
    DRAINING = "draining"


OPEN = HealthState.OPEN


class HealthSignal(StrEnum):
    """Cause of a transition between two states."""

    SUCCEEDED = "succeeded"  # of the probe
    RESTED = "rested"  # 429, 503
    FAILED = "failed"  # eject_after failures in a row, or one of the probe
    KEY_REFUSED = "key_refused"
    ELAPSED = "elapsed"
    REMOVED = "removed"
    RELOADED = "reloaded"


TRANSITIONS: dict[tuple[HealthState, HealthSignal], HealthState] = {
    (HealthState.OPEN, HealthSignal.RESTED): HealthState.BACKOFF,
    (HealthState.OPEN, HealthSignal.FAILED): HealthState.EJECTED,
    (HealthState.OPEN, HealthSignal.KEY_REFUSED): HealthState.DEAD_KEY,
    (HealthState.BACKOFF, HealthSignal.ELAPSED): HealthState.OPEN,
    (HealthState.EJECTED, HealthSignal.ELAPSED): HealthState.HALF_OPEN,
    (HealthState.HALF_OPEN, HealthSignal.SUCCEEDED): HealthState.OPEN,
    (HealthState.HALF_OPEN, HealthSignal.RESTED): HealthState.BACKOFF,
    (HealthState.HALF_OPEN, HealthSignal.FAILED): HealthState.EJECTED,
    (HealthState.HALF_OPEN, HealthSignal.KEY_REFUSED): HealthState.DEAD_KEY,
    (HealthState.DEAD_KEY, HealthSignal.ELAPSED): HealthState.HALF_OPEN,
    (
        HealthState.DEAD_KEY,
        HealthSignal.RELOADED,
    ): HealthState.HALF_OPEN,  # the operator may have mended the key
    (HealthState.DRAINING, HealthSignal.RELOADED): HealthState.HALF_OPEN,
} | {(state, HealthSignal.REMOVED): HealthState.DRAINING for state in HealthState}
"""Pairs that are absent change nothing."""


class AccountHealth:
    """State of one account. Times are seconds on the caller's clock.

    `state` and `until_s` are as of the last question; time alone may have changed them since.
    `until_s` is infinite where time does not end the state.
    """

    __slots__ = ("_balance", "_ejections", "_entered", "_failures", "_probe", "state", "until_s")

    def __init__(self, balance: Balance) -> None:
        self._balance = balance
        self.state = HealthState.OPEN
        self.until_s = inf
        self._probe: int | None = None
        self._entered = 0  # leases below this number began before the present state
        self._failures = 0  # in a row
        self._ejections = 0  # since the last success of a fresh request

    def configure(self, balance: Balance, next_lease: int) -> None:
        """Applies reloaded settings; a dead key is probed again."""
        self._balance = balance
        self._failures = min(self._failures, balance.eject_after - 1)
        self._enter(HealthSignal.RELOADED, next_lease)

    def inherit(self, old: AccountHealth) -> None:
        """Takes over the state of a failed core's account, without its probe."""
        self.state, self.until_s = old.state, old.until_s
        self._entered = old._entered
        self._failures, self._ejections = old._failures, old._ejections

    def remove(self) -> None:
        """Drains the account, which is no longer in the settings."""
        self._enter(HealthSignal.REMOVED)

    # ---- questions

    def is_open(self, now: float) -> bool:
        """True if requests may start as far as health goes; a probe does not count."""
        self._elapse(now)
        return self.state is OPEN

    def blocked(self, now: float) -> Blocked | None:
        """The reason why no request may start now; None if one may."""
        self._elapse(now)
        match self.state:
            case HealthState.BACKOFF:
                return Blocked(Reason.ACCOUNT_BACKOFF, self.until_s)
            case HealthState.EJECTED | HealthState.DEAD_KEY:
                return Blocked(Reason.HEALTH, self.until_s)
            case HealthState.DRAINING:
                return Blocked(Reason.HEALTH)
            case HealthState.HALF_OPEN if self._probe is not None:
                return Blocked(Reason.HEALTH)
        return None

    def lasts(self, now: float) -> tuple[HealthState, float]:
        """The state and the seconds until it ends; 0.0 if time does not end it."""
        self._elapse(now)
        timed = self.state in (HealthState.BACKOFF, HealthState.EJECTED, HealthState.DEAD_KEY)
        return self.state, self.until_s - now if timed else 0.0

    def heals_s(self, now: float) -> float:
        """The earliest time at which the account may serve again.

        `now` if it serves or a probe is under way; infinity if only an operator can help.
        """
        self._elapse(now)
        match self.state:
            case HealthState.BACKOFF | HealthState.EJECTED:
                return self.until_s
            case HealthState.DEAD_KEY | HealthState.DRAINING:
                return inf
        return now

    def check(self, inflight: int) -> None:
        """Asserts the invariants; for tests."""
        assert self._probe is None or inflight > 0
        assert self.state is not OPEN or self._failures < self._balance.eject_after

    # ---- attempts

    def begun(self, lease: int) -> None:
        """Takes in the beginning of an attempt."""
        if self.state is HealthState.HALF_OPEN:
            self._probe = lease

    def ended(
        self,
        lease: int,
        verdict: Verdict,
        retry_after_s: float | None,
        next_lease: int,
        now: float,
    ) -> None:
        """Takes in the end of an attempt. `next_lease`: the number of the next to begin."""
        self._elapse(now)
        probe = lease == self._probe
        if probe:
            self._probe = None
        elif self.state is HealthState.HALF_OPEN:
            return
        fresh = probe or lease >= self._entered
        if verdict in RESTS:
            if fresh or retry_after_s is not None:
                self._rest(retry_after_s, next_lease, now)
        elif not fresh or verdict is Verdict.IGNORED:
            return
        elif verdict is Verdict.SUCCESS:
            self._failures = self._ejections = 0
            if self.state is not OPEN:
                self._enter(HealthSignal.SUCCEEDED, next_lease)
        elif verdict is Verdict.DEAD_KEY:
            self._enter(HealthSignal.KEY_REFUSED, next_lease, now + self._balance.dead_key_s)
        elif verdict in FAILURES:
            self._fail(probe, next_lease, now)

    def _rest(self, retry_after_s: float | None, next_lease: int, now: float) -> None:
        wait_s = self._balance.default_backoff_s if retry_after_s is None else retry_after_s
        until_s = now + min(max(wait_s, MIN_BACKOFF_S), self._balance.max_backoff_s)
        if self.state in (HealthState.BACKOFF, HealthState.EJECTED):
            self.until_s = max(self.until_s, until_s)
        else:
            self._enter(HealthSignal.RESTED, next_lease, until_s)

    def _fail(self, probe: bool, next_lease: int, now: float) -> None:
        self._failures += 1
        if not probe and self._failures < self._balance.eject_after:
            return
        self._failures = 0
        self._ejections += 1
        wait_s = min(self._balance.eject_s * self._ejections, self._balance.max_eject_s)
        self._enter(HealthSignal.FAILED, next_lease, now + wait_s)

    def _elapse(self, now: float) -> None:
        if self.state is not OPEN and now >= self.until_s:
            self._enter(HealthSignal.ELAPSED)

    def _enter(
        self, signal: HealthSignal, next_lease: int | None = None, until_s: float = inf
    ) -> None:
        state = TRANSITIONS.get((self.state, signal), self.state)
        if state is self.state:
            return
        self.state, self.until_s, self._probe = state, until_s, None
        if next_lease is not None:
            self._entered = next_lease
