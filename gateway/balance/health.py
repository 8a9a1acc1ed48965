"""An account's health: a table of states, and who may move it.

    open ── 429, 503 ─────────────▶ backoff    ── time ─▶ open
      │ └── repeated failures ────▶ ejected    ── time ─▶ half_open ── success ─▶ open
      └──── key refused ──────────▶ dead_key   ── time ─▶     │ └───── failure ─▶ ejected
                                                              └─ key refused ──▶ dead_key
    any ── removed by a reload ───▶ draining   (finishes what it has; back: half_open)

Who may say what:

1. `half_open` lets one request through, the probe, and only the probe's end decides. A probe
   that ends without a statement (the client left) makes room for another.
2. In every other state a request that began before the state was entered says nothing new:
   a stream that was under way when the account was ejected may end well or badly, it proves
   nothing about now. A Retry-After is the exception: it speaks of the future, so however old
   its request is, it rests an open account and extends a rest.
3. 429 and 503 rest the account and cut its limit; they never eject it: an account that says
   "later" is alive. Timeouts cut the limit and count as failures. 5xx and broken connections
   count as failures only.
"""

from __future__ import annotations

from enum import StrEnum

from gateway.settings.schema import Balance
from gateway.types import Blocked, Reason, Verdict

RESTS = frozenset({Verdict.RATE_LIMITED, Verdict.OVERLOADED})
FAILURES = frozenset({Verdict.TIMEOUT, Verdict.SERVER_ERROR, Verdict.UNREACHABLE})
MIN_BACKOFF_S = 0.05
"""A 429 that says "retry after 0" must not become a tight loop."""


class State(StrEnum):
    OPEN = "open"
    BACKOFF = "backoff"
    EJECTED = "ejected"
    HALF_OPEN = "half_open"
    DEAD_KEY = "dead_key"
    DRAINING = "draining"


OPEN = State.OPEN


class Signal(StrEnum):
    SUCCEEDED = "succeeded"  # of the probe
    RESTED = "rested"  # 429, 503
    FAILED = "failed"  # eject_after failures in a row, or one of the probe
    KEY_REFUSED = "key_refused"
    ELAPSED = "elapsed"
    REMOVED = "removed"
    RELOADED = "reloaded"


TRANSITIONS: dict[tuple[State, Signal], State] = {
    (State.OPEN, Signal.RESTED): State.BACKOFF,
    (State.OPEN, Signal.FAILED): State.EJECTED,
    (State.OPEN, Signal.KEY_REFUSED): State.DEAD_KEY,
    (State.BACKOFF, Signal.ELAPSED): State.OPEN,
    (State.EJECTED, Signal.ELAPSED): State.HALF_OPEN,
    (State.HALF_OPEN, Signal.SUCCEEDED): State.OPEN,
    (State.HALF_OPEN, Signal.RESTED): State.BACKOFF,
    (State.HALF_OPEN, Signal.FAILED): State.EJECTED,
    (State.HALF_OPEN, Signal.KEY_REFUSED): State.DEAD_KEY,
    (State.DEAD_KEY, Signal.ELAPSED): State.HALF_OPEN,
    (State.DEAD_KEY, Signal.RELOADED): State.HALF_OPEN,  # the operator may have mended the key
    (State.DRAINING, Signal.RELOADED): State.HALF_OPEN,
} | {(state, Signal.REMOVED): State.DRAINING for state in State}
"""A pair that is not here changes nothing."""


class Health:
    """Times are seconds on the caller's clock. `state` and `until_s` are those of the last
    question: time alone may have moved them on."""

    __slots__ = ("_balance", "_ejections", "_entered", "_failures", "_probe", "state", "until_s")

    def __init__(self, balance: Balance) -> None:
        self._balance = balance
        self.state = State.OPEN
        self.until_s = 0.0
        self._probe: int | None = None
        self._entered = 0  # leases below this number began before the present state
        self._failures = 0  # in a row
        self._ejections = 0  # since the last success of a fresh request

    def configure(self, balance: Balance, next_lease: int) -> None:
        """A reload: a dead key is probed again."""
        self._balance = balance
        self._failures = min(self._failures, balance.eject_after - 1)
        self._enter(Signal.RELOADED, 0.0, next_lease)

    def inherit(self, old: Health) -> None:
        """All but the probe, which was in flight."""
        self.state, self.until_s = old.state, old.until_s
        self._entered = old._entered
        self._failures, self._ejections = old._failures, old._ejections

    def remove(self) -> None:
        """The account is no longer in the settings; it finishes what it has."""
        self._enter(Signal.REMOVED, 0.0)

    # ---- questions

    def is_open(self, now: float) -> bool:
        self._elapse(now)
        return self.state is OPEN

    def blocked(self, now: float) -> Blocked | None:
        """Why nothing may begin now; None where something may."""
        self._elapse(now)
        match self.state:
            case State.BACKOFF:
                return Blocked(Reason.ACCOUNT_BACKOFF, self.until_s)
            case State.EJECTED | State.DEAD_KEY:
                return Blocked(Reason.HEALTH, self.until_s)
            case State.DRAINING:
                return Blocked(Reason.HEALTH)
            case State.HALF_OPEN if self._probe is not None:
                return Blocked(Reason.HEALTH)
        return None

    def lasts(self, now: float) -> tuple[State, float]:
        """The state, and how many more seconds where it ends by time; else 0.0."""
        self._elapse(now)
        timed = self.state in (State.BACKOFF, State.EJECTED, State.DEAD_KEY)
        return self.state, self.until_s - now if timed else 0.0

    def heals_s(self, now: float) -> float:
        """The earliest time at which it may serve again: `now` where it does or where a running
        probe may say so any moment, infinity where only an operator can help."""
        self._elapse(now)
        match self.state:
            case State.BACKOFF | State.EJECTED:
                return self.until_s
            case State.DEAD_KEY | State.DRAINING:
                return float("inf")
        return now

    def check(self, inflight: int) -> None:
        """Asserts the invariants; for tests."""
        assert self._probe is None or inflight > 0
        assert self.state is not OPEN or self._failures < self._balance.eject_after

    # ---- news

    def begun(self, lease: int) -> None:
        """One attempt began."""
        if self.state is State.HALF_OPEN:
            self._probe = lease

    def ended(
        self,
        lease: int,
        verdict: Verdict,
        retry_after_s: float | None,
        next_lease: int,
        now: float,
    ) -> None:
        """One attempt ended. `next_lease`: the number of the next one to begin."""
        self._elapse(now)
        probe = lease == self._probe
        if probe:
            self._probe = None
        elif self.state is State.HALF_OPEN:
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
                self._enter(Signal.SUCCEEDED, now, next_lease)
        elif verdict is Verdict.DEAD_KEY:
            self._enter(Signal.KEY_REFUSED, now + self._balance.dead_key_s, next_lease)
        elif verdict in FAILURES:
            self._fail(probe, next_lease, now)

    def _rest(self, retry_after_s: float | None, next_lease: int, now: float) -> None:
        wait_s = self._balance.default_backoff_s if retry_after_s is None else retry_after_s
        until_s = now + min(max(wait_s, MIN_BACKOFF_S), self._balance.max_backoff_s)
        if self.state in (State.BACKOFF, State.EJECTED):
            self.until_s = max(self.until_s, until_s)
        else:
            self._enter(Signal.RESTED, until_s, next_lease)

    def _fail(self, probe: bool, next_lease: int, now: float) -> None:
        self._failures += 1
        if not probe and self._failures < self._balance.eject_after:
            return
        self._failures = 0
        self._ejections += 1
        wait_s = min(self._balance.eject_s * self._ejections, self._balance.max_eject_s)
        self._enter(Signal.FAILED, now + wait_s, next_lease)

    def _elapse(self, now: float) -> None:
        if self.state is not OPEN and now >= self.until_s:
            self._enter(Signal.ELAPSED, 0.0)

    def _enter(self, signal: Signal, until_s: float, next_lease: int | None = None) -> None:
        state = TRANSITIONS.get((self.state, signal), self.state)
        if state is self.state:
            return
        self.state, self.until_s, self._probe = state, until_s, None
        if next_lease is not None:
            self._entered = next_lease
