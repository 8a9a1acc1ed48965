"""The pace of a pool, measured on the jobs that it finished.

Old measurements fade by completions, never by seconds: so a provider whose answers take a second
and one whose answers take a minute are learned alike, and a night without requests fades nothing.

Pace is the speed of one stream (seconds per output token, from dispatch to end) and the number of
streams at work. Both can be measured at low load, where the tokens per second of the whole pool
measure the demand, not the capacity.
"""

from __future__ import annotations

MEMORY = 64  # completions after which an observation counts for 1/e
KEEP = 1.0 - 1.0 / MEMORY
HOPE = 1.1  # factor by which a completion takes back a doubt
SURE = 8  # completions before which a prediction refuses nobody


class Pace:
    """One pool's pace. Tokens are output tokens."""

    __slots__ = (
        "_hope", "_jobs", "_service_s", "_streams", "_tokens", "_wait_s", "attempts", "completions",
        "drops", "mean_ln_short", "mean_reserve", "starts",
    )  # fmt: skip

    def __init__(self) -> None:
        self._jobs = 0.0  # faded number of completions, which the four sums below are over
        self._tokens = 0.0
        self._service_s = 0.0
        self._wait_s = 0.0
        self._streams = 0.0
        self._hope = 1.0  # factor on token_s, for refusals by a job's own length
        self.completions = 0
        self.attempts = 0.0  # faded
        self.drops = 0.0
        self.mean_reserve = 0.0
        self.mean_ln_short = 0.0  # of ordering.ln_short
        self.starts = 0

    def finished(self, tokens: float, service_s: float, wait_s: float, streams: int) -> None:
        """Note a job that made `tokens` in `service_s`, one of `streams`, after `wait_s`."""
        self._jobs = self._jobs * KEEP + 1.0
        self._tokens = self._tokens * KEEP + tokens
        self._service_s = self._service_s * KEEP + service_s
        self._wait_s = self._wait_s * KEEP + wait_s
        self._streams = self._streams * KEEP + streams
        self.completions += 1
        self._hope = min(1.0, self._hope * HOPE)

    def doubted(self) -> None:
        """Note a job that was refused because its answer alone would take too long. Refused jobs
        never complete, so they cannot correct an estimate that is wrong by now: each refusal makes
        the estimate more optimistic, until a job is let through."""
        self._hope *= KEEP

    @property
    def hopeful_token_s(self) -> float | None:
        """`token_s` after doubts, by which a job is refused for its own length; None: unknown."""
        token_s = self.token_s
        return None if token_s is None else token_s * self._hope

    def attempted(self, dropped: bool) -> None:
        """Note the end of an attempt. `dropped`: the provider refused it for its load."""
        self.attempts = self.attempts * KEEP + 1.0
        self.drops = self.drops * KEEP + dropped

    def started(self, reserve: int, ln_short: float) -> None:
        """Note a job that left the queue, with its reserve and the logarithm of P(short)."""
        self.starts += 1
        weight = 1.0 / min(self.starts, MEMORY)
        self.mean_reserve += weight * (reserve - self.mean_reserve)
        self.mean_ln_short += weight * (ln_short - self.mean_ln_short)

    @property
    def sure(self) -> bool:
        """True once enough jobs have completed to refuse a job by prediction."""
        return self.completions >= SURE

    @property
    def token_s(self) -> float | None:
        """Seconds per token on one stream; None before anything was measured."""
        if self._tokens <= 0.0 or self._service_s <= 0.0:
            return None
        return self._service_s / self._tokens

    @property
    def drop_ratio(self) -> float:
        """Attempts that the provider refused for its load, as a share of all of late."""
        return self.drops / self.attempts if self.attempts > SURE else 0.0

    @property
    def slowdown(self) -> float:
        """(wait + service) / service of the jobs that finished lately; 1 where none has."""
        if self._service_s <= 0.0:
            return 1.0
        return 1.0 + self._wait_s / self._service_s

    def streams(self, running: int) -> float:
        """Streams at work while there is enough to do: as many as lately, or as now, at least 1."""
        return max(self._streams / self._jobs if self._jobs else 0.0, float(running), 1.0)

    def clear_s(self, tokens: float, running: int) -> float | None:
        """Seconds that the pool takes for `tokens` of work; None where its speed is not known."""
        token_s = self.token_s
        return None if token_s is None else tokens * token_s / self.streams(running)
