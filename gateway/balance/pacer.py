"""Rate limits of one account from the settings: requests and tokens a minute.

Each limit is a `Meter`, a leaky bucket kept as one time stamp (GCRA, ITU-T I.371): the time at
which everything charged so far will have drained. The next charge may come when that time is
ahead of the clock by no more than the burst.

Whether a request may start does not depend on its own size: the one that exceeds the limit is let
through, and those behind it wait. So small requests cannot starve a large one, and one number
answers both "may it start" and "when may it start".

These limits hold for all models of the account together.
Limits from a provider's headers are per model: header_limits.py.
"""

from __future__ import annotations

BURST_S = 1.0
"""Seconds of a limit's rate that may be spent at once. Some providers enforce a
minute's limit in slices of 1 to 10 s."""
NEVER = float("-inf")


class Meter:
    """One limit a minute; 0 means none.

    `free_s`: the time from which another charge may come (seconds on the caller's clock).
    `rate`: per second.
    """

    __slots__ = ("_burst_s", "_drained_s", "free_s", "rate")

    def __init__(self, per_minute: float, burst_s: float = BURST_S) -> None:
        self._drained_s = NEVER
        self._burst_s = burst_s
        self.configure(per_minute)

    def configure(self, per_minute: float) -> None:
        """Sets a new limit; the debt stays, in seconds."""
        self.rate = per_minute / 60.0
        self._update()

    def charge(self, amount: float, now: float) -> None:
        """Spends `amount`; a negative one corrects an earlier charge that was too large.

        An amount that has already drained is not given back.
        """
        if self.rate:
            self._drained_s = max(self._drained_s, now) + amount / self.rate
            self.free_s = self._drained_s - self._burst_s

    def set_level(self, level: float, now: float) -> None:
        """Lets `level`, at most the burst, be spent at once from `now` on.

        A level of 0 or less does not reduce a larger debt.
        """
        if self.rate:
            ahead_s = self._burst_s - min(max(level, 0.0) / self.rate, self._burst_s)
            owed_s = self._drained_s if level <= 0.0 else NEVER
            self._drained_s = max(owed_s, now + ahead_s)
            self._update()

    def release(self, free_s: float) -> None:
        """Forgives the debt that would keep the next charge waiting beyond `free_s`."""
        self._drained_s = min(self._drained_s, free_s + self._burst_s)
        self._update()

    def _update(self) -> None:
        self.free_s = self._drained_s - self._burst_s if self.rate else NEVER


class Pacer:
    """One account's requests and tokens a minute; 0 means no limit.

    A charge of tokens is prompt plus reserve, corrected when the request ends. `free_s`: the time
    from which another request may start.
    """

    __slots__ = ("free_s", "requests", "tokens")

    def __init__(self, rpm: int, tpm: int) -> None:
        self.requests = Meter(rpm)
        self.tokens = Meter(tpm)
        self.free_s = NEVER

    def configure(self, rpm: int, tpm: int) -> None:
        """Sets new limits; debts stay, in seconds."""
        self.requests.configure(rpm)
        self.tokens.configure(tpm)
        self._update()

    def charge(self, tokens: float, now: float) -> None:
        """Spends one request of `tokens`."""
        if self.requests.rate:
            self.requests.charge(1.0, now)
            self._update()
        self.correct(tokens, now)

    def correct(self, tokens: float, now: float) -> None:
        """Adds `tokens`, actual minus charged."""
        if self.tokens.rate:
            self.tokens.charge(tokens, now)
            self._update()

    def _update(self) -> None:
        self.free_s = max(self.requests.free_s, self.tokens.free_s)
