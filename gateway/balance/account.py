"""One account: its windows, its concurrency limit, its pacers and its health.

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

A window holds back so that the short can go first. Where forecasts do not tell who is short, that
is less worth its price, so a window is given up to `WIDENING` on top, below the limit.
"""

from __future__ import annotations

from enum import StrEnum
from math import ceil

from msgspec.structs import replace

from gateway.balance.allowance import Allowance, Allowances, least
from gateway.balance.learned import NO_CEILING, RESTORE_RATIO, LearnedAccount, LearnedAllowance
from gateway.balance.limit import Limit
from gateway.balance.pacer import Pacer
from gateway.balance.window import Window
from gateway.settings.schema import Account as AccountSettings
from gateway.settings.schema import Balance
from gateway.types import AccountSnapshot, Blocked, Reason, Verdict, WindowSnapshot

CUTS = frozenset({Verdict.RATE_LIMITED, Verdict.OVERLOADED, Verdict.TIMEOUT})
RESTS = frozenset({Verdict.RATE_LIMITED, Verdict.OVERLOADED})
FAILURES = frozenset({Verdict.TIMEOUT, Verdict.SERVER_ERROR, Verdict.UNREACHABLE})
FAULTS = frozenset({Verdict.SERVER_ERROR, Verdict.UNREACHABLE})
UNSERVED = frozenset({Verdict.RATE_LIMITED, Verdict.OVERLOADED, Verdict.UNREACHABLE})
"""Verdicts after which the provider has generated nothing: charged tokens go back."""


WIDENING = 0.5
"""Of a window, what it is given on top where forecasts are not trusted at all."""
ENDLESS = 1e9
"""The room of an account that limits nothing."""
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
LIMIT_FULL = Blocked(Reason.ACCOUNT_LIMIT)
WINDOW_FULL = Blocked(Reason.WINDOW)


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


class Account:
    """Live state of one account. Times are seconds on the caller's clock."""

    def __init__(self, settings: AccountSettings, balance: Balance) -> None:
        self.settings = settings
        self.balance = balance
        self.limit = Limit(
            settings.initial_concurrency,
            balance.min_limit,
            settings.max_concurrency,
            balance.cut_ratio,
        )
        self.pacer = Pacer(settings.rpm, settings.tpm)
        self.windows: dict[str, Window] = {}  # by the provider's name of a model
        self.window_of: dict[str, Window] = {}  # by the client's; empty where there are none
        self._open_windows()
        self.allowances = Allowances(settings.model_map)
        self.inflight = 0
        self.widening = 1.0  # of its windows
        self.state = State.OPEN
        self.until_s = 0.0
        self.last_lease = 0  # number of the newest lease; the tie-break between equal accounts
        self.successes = 0
        self.drops: dict[Verdict, int] = {}
        self._probe: int | None = None
        self._entered = 0  # leases below this number began before the present state
        self._failures = 0  # in a row
        self._ejections = 0  # since the last success of a fresh request

    def configure(self, settings: AccountSettings, balance: Balance, next_lease: int) -> None:
        """A reload that keeps the account: what was learned stays; a dead key is probed again."""
        self.settings, self.balance = settings, balance
        self.limit.configure(balance.min_limit, settings.max_concurrency, balance.cut_ratio)
        self.pacer.configure(settings.rpm, settings.tpm)
        self._open_windows()
        self.allowances.configure(settings.model_map)
        self._failures = min(self._failures, balance.eject_after - 1)
        self._enter(Signal.RELOADED, 0.0, next_lease)

    def _open_windows(self) -> None:
        """A window for each model, those that were there kept; the ceiling bounds it."""
        settings, balance = self.settings, self.balance
        old, self.windows = self.windows, {}
        for upstream in settings.model_map.values():
            window = old.get(upstream) or Window(upstream, settings.initial_concurrency)
            window.configure(balance.min_window, settings.max_concurrency)
            self.windows[upstream] = window
        self.window_of = {}
        self._watches = balance.window == "watch"
        if balance.window != "off":
            self.window_of = {m: self.windows[name] for m, name in settings.model_map.items()}

    def inherit(self, old: Account) -> None:
        """How `old`, the same account of a core that failed, stood: all but what it had learned
        (`restore`) and what was in flight."""
        self.state, self.until_s = old.state, old.until_s
        self._entered, self._failures, self._ejections = (
            old._entered, old._failures, old._ejections,
        )  # fmt: skip
        self.pacer = old.pacer
        self.allowances = old.allowances
        self.allowances.configure(self.settings.model_map)
        self.successes, self.drops = old.successes, old.drops

    def remove(self) -> None:
        self._enter(Signal.REMOVED, 0.0)

    def blocked(
        self,
        now: float,
        window: Window | None = None,
        allowance: Allowance | None = None,
        *,
        express: bool = False,
    ) -> Blocked | None:
        """Why this account takes no request of the model whose `window` and `allowance` these
        are now; None where it takes one."""
        if self.state is not OPEN:
            self._elapse(now)
            match self.state:
                case State.BACKOFF if not self._watches:
                    return Blocked(Reason.ACCOUNT_BACKOFF, self.until_s)
                case State.EJECTED | State.DEAD_KEY:
                    return Blocked(Reason.HEALTH, self.until_s)
                case State.DRAINING:
                    return Blocked(Reason.HEALTH)
                case State.HALF_OPEN if self._probe is not None:
                    return Blocked(Reason.HEALTH)
        if self._watches:
            return Blocked(Reason.PACER, self.pacer.free_s) if now < self.pacer.free_s else None
        if window is not None and window.inflight + 1 > window.value:
            given = self._given(window)
            extra = ceil(self.balance.express_ratio * given) if express else 0
            if window.inflight + 1 > given + extra:
                return WINDOW_FULL
        if not self.limit.has_room(self.inflight):
            return LIMIT_FULL
        free_s = self.pacer.free_s
        if allowance is not None and allowance.free_s > free_s:
            free_s = allowance.free_s
        return Blocked(Reason.PACER, free_s) if now < free_s else None

    def trust(self, share: float) -> None:
        """In forecasts, 0 to 1."""
        self.widening = 1.0 + WIDENING * (1.0 - share)

    def _given(self, window: Window) -> float:
        """How many at once: what was learned, widened below the limit."""
        return max(window.value, min(window.value * self.widening, self.limit.value))

    def takes(self, now: float) -> bool:
        """Whether a request is refused only by its model's window, if at all."""
        if self.state is not OPEN:
            self._elapse(now)
        return (
            self.state is OPEN and self.limit.has_room(self.inflight) and now >= self.pacer.free_s
        )

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

    def score(self, window: Window | None) -> float:
        """Load after one more request, by which accounts are compared: less is better."""
        room = self.limit.value
        if window is None:
            return (self.inflight + 1) / (room * self.settings.weight)
        inflight = max(window.inflight, self.inflight * window.value / room)
        return (inflight + 1) / (min(window.value, room) * self.settings.weight)

    @property
    def room(self) -> float:
        """How many requests it is given at once, all its models together: those that are in
        use. Of a thousand that are not, no window says anything."""
        if self._watches:
            return ENDLESS
        used = [w.base for w in self.windows.values() if w.inflight or w.knows]
        if not self.window_of or not used:
            return self.limit.value
        return min(self.limit.value, sum(used) * self.widening)

    def take(self, lease: int, tokens: float, now: float) -> None:
        self.inflight += 1
        self.last_lease = lease
        self.pacer.charge(tokens, now)
        if self.state is State.HALF_OPEN:
            self._probe = lease

    def give_back(
        self,
        lease: int,
        verdict: Verdict,
        *,
        charged: float,
        actual: float | None,
        retry_after_s: float | None,
        next_lease: int,
        now: float,
    ) -> None:
        """One attempt ended. `actual` is what it used in tokens, None where nobody counted."""
        self._elapse(now)
        if (used := tokens_used(verdict, actual)) is not None:
            self.pacer.correct(used - charged, now)
        self._teach_limit(lease, verdict, next_lease)
        probe = lease == self._probe
        if probe:
            self._probe = None
        if probe or self.state is not State.HALF_OPEN:
            self._teach_health(lease, verdict, probe, retry_after_s, next_lease, now)
        self.inflight -= 1
        assert self.inflight >= 0, self.settings.name

    def snapshot(self, now: float) -> AccountSnapshot:
        self._elapse(now)
        timed = self.state in (State.BACKOFF, State.EJECTED, State.DEAD_KEY)
        rpm, tpm = self.allowances.limits
        return AccountSnapshot(
            name=self.settings.name,
            limit=self.limit.value,
            inflight=self.inflight,
            state=self.state.value,
            state_until_s=self.until_s - now if timed else 0.0,
            successes=self.successes,
            drops=dict(self.drops),
            cuts=self.limit.cuts,
            rpm=least(self.settings.rpm, rpm),
            tpm=least(self.settings.tpm, tpm),
            windows=tuple(map(self._window, self.windows.values())) if self.window_of else (),
            limits=self.allowances.snapshot(now),
        )

    def _window(self, window: Window) -> WindowSnapshot:
        rpm, tpm = self.allowances.limits_of(window.model)
        return replace(window.snapshot(), window=self._given(window), rpm=rpm, tpm=tpm)

    def learned(self) -> LearnedAccount:
        rpm, tpm = self.allowances.limits
        return LearnedAccount(
            name=self.settings.name,
            limit=self.limit.value,
            ceiling=min(self.limit.ceiling, NO_CEILING),
            rpm=rpm,
            tpm=tpm,
            windows=tuple(w.learned() for w in self.windows.values() if w.knows),
            allowances=self.allowances.learned(),
        )

    def restore(self, learned: LearnedAccount) -> None:
        """What was learned before a restart, cautiously. Unknown models are passed over."""
        ceiling = learned.ceiling if learned.ceiling < NO_CEILING else float("inf")
        self.limit.restore(learned.limit * RESTORE_RATIO, ceiling)
        for one in learned.windows:
            if (window := self.windows.get(one.model)) is not None:
                window.restore(one)
        told, served = learned.allowances, set(self.settings.model_map.values())
        if not told and len(served) == 1:  # stored before limits were per model
            told = tuple(LearnedAllowance(name, learned.rpm, learned.tpm) for name in served)
        self.allowances.restore(told)

    def check(self) -> None:
        low, high = self.limit.bounds
        assert low <= self.limit.value <= high, (self.settings.name, self.limit.value)
        for window in self.windows.values():
            window.check()
        assert self.inflight >= 0
        assert self._probe is None or self.inflight > 0
        assert self.state is not State.OPEN or self._failures < self.balance.eject_after

    def _teach_limit(self, lease: int, verdict: Verdict, next_lease: int) -> None:
        if verdict is Verdict.SUCCESS:
            self.successes += 1
            self.limit.on_success(self.inflight)
        elif verdict is not Verdict.IGNORED:
            self.drops[verdict] = self.drops.get(verdict, 0) + 1
            if verdict in CUTS:
                self.limit.on_drop(lease, next_lease)
            elif verdict in FAULTS:
                self.limit.on_fault()

    def _teach_health(
        self,
        lease: int,
        verdict: Verdict,
        probe: bool,
        retry_after_s: float | None,
        next_lease: int,
        now: float,
    ) -> None:
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
            self._enter(Signal.KEY_REFUSED, now + self.balance.dead_key_s, next_lease)
        elif verdict in FAILURES:
            self._fail(probe, next_lease, now)

    def _rest(self, retry_after_s: float | None, next_lease: int, now: float) -> None:
        wait_s = self.balance.default_backoff_s if retry_after_s is None else retry_after_s
        until_s = now + min(max(wait_s, MIN_BACKOFF_S), self.balance.max_backoff_s)
        if self.state in (State.BACKOFF, State.EJECTED):
            self.until_s = max(self.until_s, until_s)
        else:
            self._enter(Signal.RESTED, until_s, next_lease)

    def _fail(self, probe: bool, next_lease: int, now: float) -> None:
        self._failures += 1
        if not probe and self._failures < self.balance.eject_after:
            return
        self._failures = 0
        self._ejections += 1
        wait_s = min(self.balance.eject_s * self._ejections, self.balance.max_eject_s)
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


def tokens_used(verdict: Verdict, counted: float | None) -> float | None:
    """What an attempt used: as it was counted, nothing where it was not served, else None."""
    return 0.0 if counted is None and verdict in UNSERVED else counted
