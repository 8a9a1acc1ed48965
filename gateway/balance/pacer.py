"""Requests and tokens a minute, spent before the provider has to say no.

Each limit is a `Meter`, a leaky bucket kept as one time stamp (GCRA, ITU-T I.371): the moment
at which everything charged so far will have drained. It may be ahead of the clock by at most
the burst; the moment it is no more than that, the next charge may come.

So whether a request may start never depends on its own size: the one that crosses the line is
let through and those behind it pay by waiting. A large request cannot be starved by small ones,
and "when may the next start" is the same number that "may it start" compares with the clock.

Where an answer's headers say what is left, the level is the smaller of that and our own, less
what was sent since that answer's request (the header cannot know of it). A limit that is not in
the settings is learned from them, and may be spent at once, as the provider would allow it; what
is left of such a one is the header's word alone.

Headers lie: a remaining of 0 for ever, a limit of 1, one of a day told as of a minute. So they
are believed within bounds: limits below a floor teach nothing, a header holds traffic for at
most `MAX_HOLD_S`, and when requests after such holds are served `PATIENCE` times while the
header still says "nothing left", each hold is half as long as the one before, until headers
are not listened to. A 429 gives them their full say again.
"""

from __future__ import annotations

from gateway.types import RateLimits

BURST_S = 1.0
"""What may be spent at once of a limit of the settings, in seconds of its rate: some providers
enforce a minute's limit in slices of 1 to 10 s."""
LEARNED_BURST_S = 60.0
"""The same of a learned limit: what is left of it is told by each answer."""
LEAST = (10, 1000)
"""Requests and tokens a minute below which a header's limit is not believed."""
MAX_HOLD_S = 15.0
PATIENCE = 4
LEAST_TRUST = 0.1
NEVER = float("-inf")


class Meter:
    """One limit a minute; 0 means none.

    `free_s`: from then on another charge may come (seconds on the caller's clock).
    `spent`: everything charged so far, corrections left out.
    """

    __slots__ = (
        "_burst_s",
        "_drained_s",
        "_given",
        "_hold_s",
        "_judged",
        "_least",
        "_nothing",
        "_rate",
        "_trust",
        "free_s",
        "learned",
        "spent",
    )

    def __init__(self, per_minute: int, least: int = LEAST[0]) -> None:
        self._drained_s = NEVER
        self._hold_s = NEVER
        self._least = least
        self._trust = 1.0
        self._nothing = 0  # answers in a row, each after a hold, that left nothing
        self._judged = 0.0  # what was spent when the last of them came
        self.learned = 0  # a minute, from headers
        self.spent = 0.0
        self.configure(per_minute)

    def configure(self, per_minute: int) -> None:
        """A new limit; the debt stays, in seconds."""
        self._given = per_minute
        self._update()

    def charge(self, amount: float, now: float) -> None:
        """Spends `amount`."""
        self.spent += amount
        self.correct(amount, now)

    def correct(self, amount: float, now: float) -> None:
        """Spends more, or with a negative amount gives back what an earlier charge was too
        large by. What has drained already cannot be given back: every charge starts from the
        clock."""
        if self._rate:
            self._drained_s = max(self._drained_s, now) + amount / self._rate
            self.free_s = max(self._drained_s - self._burst_s, self._hold_s)

    def told(
        self,
        limit: int | None,
        remaining: int | None,
        reset_s: float | None,
        spent: float,
        now: float,
    ) -> None:
        """A header's word: `remaining` as the provider saw it when `spent` was what had been
        spent here, `reset_s` until all of it is there again."""
        if limit is not None and limit >= self._least and limit != self.learned:
            self.learned = limit
            self._update()
        if remaining is None:
            return
        self._judge(remaining, spent)
        self._update()
        if self._trust < LEAST_TRUST:
            return
        level = remaining - (self.spent - spent) if self._rate else float(remaining)
        if level >= 1.0 and self._rate:
            ahead_s = self._burst_s - min(level / self._rate, self._burst_s)
            # Where the limit itself is the header's, its word on what is left goes both ways: it
            # may not count what we charge (cached tokens), or be another model's.
            own_s = self._drained_s if self._given else NEVER
            self._drained_s = max(own_s, now + ahead_s)
        elif level < 1.0:
            self._hold(level, reset_s, now)
        self._update()

    @property
    def given_free_s(self) -> float:
        """`free_s` by the limit of the settings, whatever headers say."""
        return self._drained_s - self._burst_s if self._given else NEVER

    def refused(self) -> None:
        """A 429: whatever the headers said, they were right to."""
        self._trust, self._nothing = 1.0, 0
        self._update()

    def restore(self, learned: int) -> None:
        self.learned = learned
        self._update()

    def _judge(self, remaining: int, spent: float) -> None:
        if remaining > 0:
            self._nothing = 0
            self._trust = min(1.0, 2.0 * self._trust)
        elif spent > self._judged:  # sent after the last such word, and served
            self._judged = self.spent
            self._nothing += 1
            if self._nothing > PATIENCE:
                self._trust /= 2.0

    def _hold(self, level: float, reset_s: float | None, now: float) -> None:
        wait_s = (1.0 - level) / self._rate if self._rate else MAX_HOLD_S
        if reset_s is not None:
            wait_s = min(wait_s, reset_s)
        self._hold_s = now + min(wait_s, MAX_HOLD_S) * self._trust
        if self._rate:
            self._drained_s = max(self._drained_s, now + self._burst_s)

    def _update(self) -> None:
        believed = self.learned if self._trust >= LEAST_TRUST else 0
        self._rate = (self._given or believed) / 60.0
        self._burst_s = BURST_S if self._given else LEARNED_BURST_S
        if self._trust < LEAST_TRUST:
            self._hold_s = NEVER
        own_s = self._drained_s - self._burst_s if self._rate else NEVER
        self.free_s = max(own_s, self._hold_s)


class Pacer:
    """One account's RPM and TPM. A charge of tokens is prompt + reserve, corrected at the end."""

    __slots__ = ("free_s", "requests", "tokens")

    def __init__(self, rpm: int, tpm: int) -> None:
        self.requests = Meter(rpm, LEAST[0])
        self.tokens = Meter(tpm, LEAST[1])
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
        self.tokens.correct(tokens, now)
        self._update()

    def told(self, limits: RateLimits, requests: float, tokens: float, now: float) -> None:
        """The headers of an answer, to a request after which so much had been spent."""
        self.requests.told(
            limits.limit_requests,
            limits.remaining_requests,
            limits.reset_requests_s,
            requests,
            now,
        )
        self.tokens.told(
            limits.limit_tokens, limits.remaining_tokens, limits.reset_tokens_s, tokens, now
        )
        self._update()

    def refused(self) -> None:
        self.requests.refused()
        self.tokens.refused()
        self._update()

    @property
    def given_free_s(self) -> float:
        """As `free_s`, of the limits that stand in the settings alone."""
        return max(self.requests.given_free_s, self.tokens.given_free_s)

    def restore(self, rpm: int, tpm: int) -> None:
        """Limits that headers taught before."""
        self.requests.restore(rpm)
        self.tokens.restore(tpm)
        self._update()

    def _update(self) -> None:
        self.free_s = max(self.requests.free_s, self.tokens.free_s)
