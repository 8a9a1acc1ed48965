"""One account: its windows, concurrency limit, rate limits and health, taken together.

A window holds requests back so that short ones can overtake. That pays only if forecasts can tell
short from long, so the less forecasts are trusted, the more is added to each window: up to
`WIDENING` of it, within the concurrency limit.
"""

from __future__ import annotations

from math import ceil, inf

from msgspec.structs import replace

from gateway.balance.header_limits import AccountLimits, ModelLimits, least
from gateway.balance.health import OPEN, AccountHealth
from gateway.balance.limit import Limit
from gateway.balance.pacer import Pacer
from gateway.balance.saved_state import NO_CEILING, RESTORE_RATIO, SavedAccount
from gateway.balance.window import Window
from gateway.settings.schema import Account as AccountSettings
from gateway.settings.schema import Balance
from gateway.snapshots import AccountSnapshot, WindowSnapshot
from gateway.types import Blocked, Reason, Verdict

CUTS = frozenset({Verdict.RATE_LIMITED, Verdict.OVERLOADED, Verdict.TIMEOUT})
FAULTS = frozenset({Verdict.SERVER_ERROR, Verdict.UNREACHABLE})
UNSERVED = frozenset({Verdict.RATE_LIMITED, Verdict.OVERLOADED, Verdict.UNREACHABLE})
"""Verdicts after which the provider has generated nothing: charged tokens go back."""

WIDENING = 0.5
"""Share of a window that is added where forecasts are not trusted at all."""
ENDLESS = 1e9
"""The room of an account that limits nothing."""

LIMIT_FULL = Blocked(Reason.ACCOUNT_LIMIT)
WINDOW_FULL = Blocked(Reason.WINDOW)


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
        self.window_by_model: dict[str, Window] = {}  # by the client's; empty if windows are off
        self._open_windows()
        self.header_limits = AccountLimits(settings.model_map)
        self.inflight = 0
        self.widening = 1.0  # factor by which windows are widened
        self.health = AccountHealth(balance)
        self.last_lease = 0  # the newest lease's number; breaks ties between equal accounts
        self.successes = 0
        self.drops: dict[Verdict, int] = {}

    def __repr__(self) -> str:
        state, limit = self.health.state.value, self.limit.value
        return f"<Account {self.settings.name!r} {state}, {self.inflight} of {limit:g} in flight>"

    def configure(self, settings: AccountSettings, balance: Balance, next_lease: int) -> None:
        """Applies reloaded settings. What was learned stays; a dead key is probed again."""
        self.settings, self.balance = settings, balance
        self.limit.configure(balance.min_limit, settings.max_concurrency, balance.cut_ratio)
        self.pacer.configure(settings.rpm, settings.tpm)
        self._open_windows()
        self.header_limits.configure(settings.model_map)
        self.health.configure(balance, next_lease)

    def _open_windows(self) -> None:
        """Opens a window for each model and keeps those that exist."""
        settings, balance = self.settings, self.balance
        old, self.windows = self.windows, {}
        for upstream in settings.model_map.values():
            window = old.get(upstream) or Window(upstream, settings.initial_concurrency)
            window.configure(balance.min_window, settings.max_concurrency)
            self.windows[upstream] = window
        self.window_by_model = {}
        self._watches = balance.window == "watch"
        if balance.window != "off":
            self.window_by_model = {m: self.windows[name] for m, name in settings.model_map.items()}

    def inherit(self, old: Account) -> None:
        """Takes over the state of `old`, the same account of a core that failed.

        Without what it had learned (`restore`) and what was in flight.
        """
        self.health.inherit(old.health)
        self.pacer = old.pacer
        self.header_limits = old.header_limits
        self.header_limits.configure(self.settings.model_map)
        self.successes, self.drops = old.successes, old.drops

    def remove(self) -> None:
        """Stops taking requests; those in flight finish."""
        self.health.remove()

    def blocked(
        self,
        now: float,
        window: Window | None = None,
        limits: ModelLimits | None = None,
        *,
        express: bool = False,
    ) -> Blocked | None:
        """The reason why one more request must wait now; None if it may start.

        Args:
            window: the window of the request's model; None: no window.
            limits: the header limits of that model; None: none yet.
            express: the request may use `express_ratio` of the window on top of it.
        """
        if self.health.state is not OPEN:
            no = self.health.blocked(now)
            if no is not None and not (self._watches and no.reason is Reason.ACCOUNT_BACKOFF):
                return no
        if self._watches:
            return Blocked(Reason.PACER, self.pacer.free_s) if now < self.pacer.free_s else None
        if window is not None and window.inflight + 1 > window.value:
            size = self._widened(window)
            extra = ceil(self.balance.express_ratio * size) if express else 0
            if window.inflight + 1 > size + extra:
                return WINDOW_FULL
        if not self.limit.has_room(self.inflight):
            return LIMIT_FULL
        free_s = self.pacer.free_s
        if limits is not None and limits.free_s > free_s:
            free_s = limits.free_s
        return Blocked(Reason.PACER, free_s) if now < free_s else None

    def trust(self, share: float) -> None:
        """Sets how far forecasts are trusted, 0 to 1."""
        self.widening = 1.0 + WIDENING * (1.0 - share)

    def _widened(self, window: Window) -> float:
        """The window's size after widening, within the concurrency limit."""
        return max(window.value, min(window.value * self.widening, self.limit.value))

    def takes(self, now: float) -> bool:
        """True if nothing but a model's own window or header limits may hold a request back."""
        return (
            self.health.is_open(now)
            and self.limit.has_room(self.inflight)
            and now >= self.pacer.free_s
        )

    def score(self, window: Window | None) -> float:
        """Load after one more request, for comparing accounts; less is better."""
        room = self.limit.value
        if window is None:
            return (self.inflight + 1) / (room * self.settings.weight)
        inflight = max(window.inflight, self.inflight * window.value / room)
        return (inflight + 1) / (min(window.value, room) * self.settings.weight)

    @property
    def room(self) -> float:
        """Requests that may be in flight at once, over all models that are in use."""
        if self._watches:
            return ENDLESS
        used = [w.base for w in self.windows.values() if w.inflight or w.has_evidence]
        if not self.window_by_model or not used:
            return self.limit.value
        return min(self.limit.value, sum(used) * self.widening)

    def take(self, lease: int, tokens: float, now: float) -> None:
        """Counts one more request in flight and charges it."""
        self.inflight += 1
        self.last_lease = lease
        self.pacer.charge(tokens, now)
        self.health.begun(lease)

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
        """Counts one request less and learns from its verdict.

        `charged` and `actual` are tokens; `actual` is None where nothing was counted.
        """
        if (used := tokens_used(verdict, actual)) is not None:
            self.pacer.correct(used - charged, now)
        self._teach_limit(lease, verdict, next_lease)
        self.health.ended(lease, verdict, retry_after_s, next_lease, now)
        self.inflight -= 1
        assert self.inflight >= 0, self.settings.name

    def snapshot(self, now: float) -> AccountSnapshot:
        """State of the account and its windows, for display and metrics."""
        state, lasts_s = self.health.lasts(now)
        rpm, tpm = self.header_limits.lowest
        return AccountSnapshot(
            name=self.settings.name,
            limit=self.limit.value,
            inflight=self.inflight,
            state=state.value,
            state_until_s=lasts_s,
            successes=self.successes,
            drops=dict(self.drops),
            cuts=self.limit.cuts,
            rpm=least(self.settings.rpm, rpm),
            tpm=least(self.settings.tpm, tpm),
            windows=tuple(map(self._window_snapshot, self.windows.values()))
            if self.window_by_model
            else (),
            limits=self.header_limits.snapshot(now),
        )

    def _window_snapshot(self, window: Window) -> WindowSnapshot:
        rpm, tpm = self.header_limits.limits_of(window.model)
        return replace(window.snapshot(), window=self._widened(window), rpm=rpm, tpm=tpm)

    def to_save(self) -> SavedAccount:
        """State that the account has learned, for `restore`."""
        return SavedAccount(
            name=self.settings.name,
            limit=self.limit.value,
            ceiling=min(self.limit.ceiling, NO_CEILING),
            windows=tuple(w.to_save() for w in self.windows.values() if w.has_evidence),
            header_limits=self.header_limits.to_save(),
        )

    def restore(self, saved: SavedAccount) -> None:
        """Takes back saved state, with a smaller limit and windows. Unknown models are skipped."""
        ceiling = saved.ceiling if saved.ceiling < NO_CEILING else inf
        self.limit.restore(saved.limit * RESTORE_RATIO, ceiling)
        for saved_window in saved.windows:
            if (window := self.windows.get(saved_window.model)) is not None:
                window.restore(saved_window)
        self.header_limits.restore(saved.header_limits)

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        low, high = self.limit.bounds
        assert low <= self.limit.value <= high, (self.settings.name, self.limit.value)
        for window in self.windows.values():
            window.check()
        assert self.inflight >= 0
        self.health.check(self.inflight)

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


def tokens_used(verdict: Verdict, counted: float | None) -> float | None:
    """Tokens an attempt used: the count, 0 if it was not served, None if unknown."""
    return 0.0 if counted is None and verdict in UNSERVED else counted
