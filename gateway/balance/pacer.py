"""Requests and tokens a minute, spent before the provider has to say no.

Each limit is a `Meter`, a leaky bucket kept as one time stamp (GCRA, ITU-T I.371): the moment
at which everything charged so far will have drained. It may be ahead of the clock by at most
the burst; the moment it is no more than that, the next charge may come.

So whether a request may start never depends on its own size: the one that crosses the line is
let through and those behind it pay by waiting. A large request cannot be starved by small ones,
and "when may the next start" is the same number that "may it start" compares with the clock.

The limits here are the account's own, from the settings, and hold for all its models together.
Limits from a provider's headers are per model: header_limits.py.
"""

from __future__ import annotations

BURST_S = 1.0
"""What may be spent at once of a limit of the settings, in seconds of its rate: some providers
enforce a minute's limit in slices of 1 to 10 s."""
NEVER = float("-inf")


class Meter:
    """One limit a minute; 0 means none.

    `free_s`: from then on another charge may come (seconds on the caller's clock).
    """

    __slots__ = ("_burst_s", "_drained_s", "free_s", "rate")

    def __init__(self, per_minute: float, burst_s: float = BURST_S) -> None:
        self._drained_s = NEVER
        self._burst_s = burst_s
        self.configure(per_minute)

    def configure(self, per_minute: float) -> None:
        """A new limit; the debt stays, in seconds."""
        self.rate = per_minute / 60.0
        self._update()

    def charge(self, amount: float, now: float) -> None:
        """Spends `amount`; a negative one gives back what an earlier charge was too large by.
        What has drained already cannot be given back: every charge starts from the clock."""
        if self.rate:
            self._drained_s = max(self._drained_s, now) + amount / self.rate
            self.free_s = self._drained_s - self._burst_s

    def set_level(self, level: float, now: float) -> None:
        """So much may be spent at once from `now` on, at most the burst. A level of 0 or less
        forgives no debt that is larger."""
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
    """One account's RPM and TPM. A charge of tokens is prompt + reserve, corrected at the end."""

    __slots__ = ("free_s", "requests", "tokens")

    def __init__(self, rpm: int, tpm: int) -> None:
        self.requests = Meter(rpm)
        self.tokens = Meter(tpm)
        self.free_s = NEVER  # from then on another request may start

    def configure(self, rpm: int, tpm: int) -> None:
        self.requests.configure(rpm)
        self.tokens.configure(tpm)
        self._update()

    def charge(self, tokens: float, now: float) -> None:
        self.requests.charge(1.0, now)
        self.tokens.charge(tokens, now)
        self._update()

    def correct(self, tokens: float, now: float) -> None:
        """`tokens` is actual minus charged."""
        self.tokens.charge(tokens, now)
        self._update()

    def _update(self) -> None:
        self.free_s = max(self.requests.free_s, self.tokens.free_s)
