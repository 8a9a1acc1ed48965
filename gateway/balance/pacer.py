"""Requests and tokens a minute, spent before the provider has to say no.

Each limit is a `Meter`, a leaky bucket kept as one time stamp (GCRA, ITU-T I.371): the moment
at which everything charged so far will have drained. It may be ahead of the clock by at most
`BURST_S`; the moment it is no more than that, the next charge may come.

So whether a request may start never depends on its own size: the one that crosses the line is
let through and those behind it pay by waiting. A large request cannot be starved by small ones,
and "when may the next start" is the same number that "may it start" compares with the clock.
"""

from __future__ import annotations

BURST_S = 1.0
"""What may be spent at once, in seconds of the rate: some providers enforce a minute's limit in
slices of 1 to 10 s."""


class Meter:
    """One limit a minute; 0 means none.

    `free_s`: from then on another charge may come (seconds on the caller's clock).
    """

    __slots__ = ("_drained_s", "_rate", "free_s")

    def __init__(self, per_minute: int) -> None:
        self._drained_s = float("-inf")
        self.configure(per_minute)

    def configure(self, per_minute: int) -> None:
        """A new limit; the debt stays, in seconds."""
        self._rate = per_minute / 60.0
        self.free_s = self._drained_s - BURST_S if self._rate else float("-inf")

    def charge(self, amount: float, now: float) -> None:
        """Spends `amount`; a negative one gives back what an earlier charge was too large by.
        What has drained already cannot be given back: every charge starts from the clock."""
        if self._rate:
            self._drained_s = max(self._drained_s, now) + amount / self._rate
            self.free_s = self._drained_s - BURST_S


class Pacer:
    """One account's RPM and TPM. A charge of tokens is prompt + reserve, corrected at the end."""

    __slots__ = ("_requests", "_tokens", "free_s")

    def __init__(self, rpm: int, tpm: int) -> None:
        self._requests = Meter(rpm)
        self._tokens = Meter(tpm)
        self.free_s = float("-inf")  # from then on another request may start

    def configure(self, rpm: int, tpm: int) -> None:
        self._requests.configure(rpm)
        self._tokens.configure(tpm)
        self._update()

    def charge(self, tokens: float, now: float) -> None:
        self._requests.charge(1.0, now)
        self._tokens.charge(tokens, now)
        self._update()

    def correct(self, tokens: float, now: float) -> None:
        """`tokens` is actual minus charged."""
        self._tokens.charge(tokens, now)
        self._update()

    def _update(self) -> None:
        self.free_s = max(self._requests.free_s, self._tokens.free_s)
