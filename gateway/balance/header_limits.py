"""Rate limits of one model at one account, as the provider's headers state them.

Providers limit each model on its own, so each (account, model) has its own limits here. (Limits
from the settings hold for the whole account: pacer.py.)

What may still be sent is what the header says is left, less what was sent since the request it
answers. A limit that a header states is remembered, may be spent at once, and paces requests
between two answers; each answer sets the level anew, up or down.

Headers can be wrong: "0 left" for ever, a limit of 1, a day's limit given as a minute's. So:

1. Limits below a floor are ignored.
2. "Nothing left" stops traffic for at most the cap: `FIRST_HOLD_S` at first, doubled up to
   `MAX_HOLD_S` by each answer that says that something is left, × `BORNE_OUT` by a 429.
3. A request sent after "nothing left" and served all the same contradicts the header and halves
   the cap; below `LEAST_HOLD_S` the header is ignored until it says that something is left, or a
   429 comes. Being served at the pace of the header's own limit is no contradiction until
   nothing but "nothing left" has come for the patience, which each 429 after that doubles.
4. Answers to requests sent before the latest "nothing left" neither contradict nor prolong it.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.balance.pacer import NEVER, Meter
from gateway.balance.saved_state import SavedLimits
from gateway.snapshots import LimitSnapshot
from gateway.types import RateLimits

BURST_S = 60.0
"""Seconds of a header limit's rate that may be spent at once: all of a minute's."""
LEAST = (10, 1000)
"""Requests and tokens a minute below which a header's limit is ignored."""
FIRST_HOLD_S = 2.0
MAX_HOLD_S = 15.0
LEAST_HOLD_S = 0.25
BORNE_OUT = 8.0
"""Factor by which a 429 raises the cap; its own header, read just before, may have halved it."""
PATIENCE_S = 4.0
"""Seconds of nothing but "nothing left" after which being served contradicts it at any pace."""
MOST_PATIENCE_S = 4096.0
RESET_S = 60.0
"""Time until a limit is full again, where the header does not say."""


class HeaderLimit:
    """One limit a minute of one model: requests or tokens.

    `free_s`: the time from which another charge may come (seconds on the caller's clock).
    `spent`: everything charged so far, without corrections. It orders requests: an answer is
    newer than another if its request had spent more.
    `limit`: per minute, as the header stated it; 0 where it stated none.
    """

    __slots__ = (
        "_cap_s",
        "_empty_s",
        "_empty_since_s",
        "_empty_spent",
        "_hold_s",
        "_hold_spent",
        "_least",
        "_meter",
        "_patience_s",
        "_refused_spent",
        "_remaining",
        "_remaining_spent",
        "_reset_s",
        "_wait_s",
        "free_s",
        "limit",
        "spent",
    )

    def __init__(self, least: int) -> None:
        self._least = least
        self._meter = Meter(0, BURST_S)
        self._hold_s = NEVER  # no charge before this time
        self._hold_spent = NEVER  # `spent` of the request whose answer set the hold
        self._cap_s = FIRST_HOLD_S
        self._patience_s = PATIENCE_S
        self._empty_since_s = NEVER  # start of the present run of "nothing left" without a 429
        self._empty_s = NEVER  # time of the latest "nothing left"
        self._empty_spent = NEVER  # `spent` at that time; NEVER: something is left
        self._wait_s = 0.0  # how long that answer would stop traffic without the cap
        self._refused_spent = NEVER  # `spent` when the latest 429 came
        self._remaining: int | None = None  # by the newest answer
        self._remaining_spent = NEVER  # `spent` of its request
        self._reset_s = NEVER  # time at which that answer is out of date
        self.limit = 0
        self.spent = 0.0
        self.free_s = NEVER

    @property
    def believed(self) -> bool:
        """False while the header is ignored (case 3)."""
        return self._cap_s >= LEAST_HOLD_S

    def charge(self, amount: float, now: float) -> None:
        """Spends `amount`."""
        self.spent += amount
        self.correct(amount, now)

    def correct(self, amount: float, now: float) -> None:
        """Adds `amount`, which may be negative, to an earlier charge."""
        if self._meter.rate:
            self._meter.charge(amount, now)
            self._set_free()

    def update(
        self,
        limit: int | None,
        remaining: int | None,
        reset_s: float | None,
        spent: float,
        now: float,
    ) -> None:
        """Takes in an answer's headers; None for those that are absent.

        Args:
            limit: per minute.
            remaining: how much of it was left when the provider took the request.
            reset_s: seconds until all of it is there again.
            spent: `self.spent` just after the request was charged.
        """
        if limit is not None and limit != self.limit and limit >= self._least:
            self.limit = limit
            self._configure()
        if remaining is None:
            return
        if spent >= self._remaining_spent:
            self._remaining, self._remaining_spent = remaining, spent
            self._reset_s = now + (RESET_S if reset_s is None else reset_s)
        if remaining <= 0:
            if spent <= self._empty_spent:  # case 4
                return
            self._nothing_left(now)
        elif self._empty_spent != NEVER or self._cap_s < MAX_HOLD_S:
            self._something_left()
        if self.believed:
            self._hold(remaining, reset_s, spent, now)
            self._set_free()

    def refused(self, spent: float, now: float) -> None:
        """Takes in a 429: the header was right.

        429s to requests that were under way together count once. `spent` is the request's.
        """
        if spent <= self._refused_spent:
            return
        self._refused_spent = self.spent
        empty = self._empty_spent != NEVER
        if empty and now - self._empty_since_s > self._patience_s:
            self._patience_s = min(2.0 * self._patience_s, MOST_PATIENCE_S)
        self._empty_since_s = now
        self._cap_s = min(BORNE_OUT * self._cap_s, MAX_HOLD_S)
        if empty:  # the cap ended the hold too early
            self._hold_s = max(self._hold_s, self._empty_s + min(self._wait_s, self._cap_s))
        self._configure()

    def restore(self, limit: int) -> None:
        """Takes back a limit that was saved; 0: none."""
        self.limit = limit
        self._configure()

    def snapshot(self, model: str, kind: str, now: float) -> LimitSnapshot | None:
        """The header's statement, for display; None where there was none.

        After its reset an answer is out of date: the whole limit is left, or, without a limit,
        as much as the answer said.
        """
        if self._remaining is None and not self.limit:
            return None
        left: float | None = None
        if self._remaining is not None and now < self._reset_s:
            left = max(0.0, self._remaining - (self.spent - self._remaining_spent))
        elif self._remaining is not None:
            left = float(max(self._remaining, self.limit))
        return LimitSnapshot(
            model=model,
            kind=kind,
            limit=self.limit,
            remaining=left,
            reset_s=max(0.0, self._reset_s - now),
            wait_s=max(0.0, self.free_s - now),
            believed=self.believed,
        )

    def _something_left(self) -> None:
        if self._empty_spent == NEVER:
            self._cap_s = min(2.0 * self._cap_s, MAX_HOLD_S)
        elif not self.believed:
            self._cap_s = LEAST_HOLD_S
        self._empty_spent = NEVER
        self._configure()

    def _nothing_left(self, now: float) -> None:
        """Takes in one more "nothing left"; halves the cap where it contradicts (case 3)."""
        paced = self._meter.rate and self._wait_s <= self._cap_s
        if self._empty_spent == NEVER:
            self._empty_since_s = now
        elif not paced or now - self._empty_since_s > self._patience_s:
            self._cap_s = max(self._cap_s / 2.0, LEAST_HOLD_S / 2.0)
        self._empty_spent, self._empty_s = self.spent, now
        self._configure()

    def _hold(self, remaining: int, reset_s: float | None, spent: float, now: float) -> None:
        """Sets the level, and where less than one is left, the hold."""
        meter = self._meter
        level = remaining - (self.spent - spent) if meter.rate else float(remaining)
        meter.set_level(level, now)
        if level >= 1.0:
            if spent > self._hold_spent:
                self._hold_s = NEVER
            return
        self._hold_spent = spent
        wait_s = (1.0 - level) / meter.rate if meter.rate else MAX_HOLD_S
        if reset_s is not None:
            wait_s = min(wait_s, reset_s)
        if remaining > 0:
            self._hold_s = now + min(wait_s, MAX_HOLD_S)
            return
        self._wait_s = min(max(wait_s, meter.free_s - now), MAX_HOLD_S)
        self._hold_s = now + min(self._wait_s, self._cap_s)
        meter.release(self._hold_s)

    def _configure(self) -> None:
        """Applies the limit, or none while the header is ignored."""
        believed = self.believed
        self._meter.configure(self.limit if believed else 0.0)
        if not believed:
            self._hold_s = NEVER
        self._set_free()

    def _set_free(self) -> None:
        paced_s, held_s = self._meter.free_s, self._hold_s
        self.free_s = paced_s if paced_s > held_s else held_s


class ModelLimits:
    """Limits of requests and of tokens of one (account, model).

    `free_s`: the time from which another request may start. A charge of tokens is prompt plus
    reserve, corrected when the request ends.
    """

    __slots__ = ("free_s", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = HeaderLimit(LEAST[0])
        self.tokens = HeaderLimit(LEAST[1])
        self.free_s = NEVER

    def charge(self, tokens: float, now: float) -> None:
        """Spends one request of `tokens`."""
        self.requests.charge(1.0, now)
        self.tokens.charge(tokens, now)
        self._set_free()

    def correct(self, tokens: float, now: float) -> None:
        """Adds `tokens`, actual minus charged."""
        self.tokens.correct(tokens, now)
        self._set_free()

    def update(self, limits: RateLimits, requests: float, tokens: float, now: float) -> None:
        """Takes in an answer's headers.

        `requests` and `tokens` are what had been spent when its request had been charged.
        """
        self.requests.update(
            limits.limit_requests,
            limits.remaining_requests,
            limits.reset_requests_s,
            requests,
            now,
        )
        self.tokens.update(
            limits.limit_tokens, limits.remaining_tokens, limits.reset_tokens_s, tokens, now
        )
        self._set_free()

    def refused(self, requests: float, tokens: float, now: float) -> None:
        """Takes in a 429; arguments as of `update`."""
        self.requests.refused(requests, now)
        self.tokens.refused(tokens, now)
        self._set_free()

    def restore(self, rpm: int, tpm: int) -> None:
        """Takes back limits that were saved; 0: none."""
        self.requests.restore(rpm)
        self.tokens.restore(tpm)
        self._set_free()

    def _set_free(self) -> None:
        self.free_s = max(self.requests.free_s, self.tokens.free_s)


class AccountLimits:
    """Limits of every model of one account, each begun when its model is first used.

    `by_model`: by the client's name of a model. Names that the provider knows as one share one.
    """

    __slots__ = ("_by_upstream", "_names", "by_model")

    def __init__(self, names: dict[str, str]) -> None:
        self._by_upstream: dict[str, ModelLimits] = {}
        self.configure(names)

    def configure(self, names: dict[str, str]) -> None:
        """Sets the models served from now on, client's name → provider's name.

        Limits of models that stay are kept, also where the client's name changed.
        """
        self._names = names
        served = set(names.values())
        self._by_upstream = {n: one for n, one in self._by_upstream.items() if n in served}
        self.by_model = {
            model: self._by_upstream[name]
            for model, name in names.items()
            if name in self._by_upstream
        }

    def open(self, model: str) -> ModelLimits | None:
        """The limits of the client's `model`; None where it is not served (any more)."""
        found = self.by_model.get(model)
        if found is None and (name := self._names.get(model)) is not None:
            self._by_upstream[name] = found = ModelLimits()
            self.configure(self._names)
        return found

    @property
    def lowest(self) -> tuple[int, int]:
        """The lowest requests and tokens a minute stated for any model; 0: none."""
        every = self._by_upstream.values()
        return least(*(one.requests.limit for one in every)), least(
            *(one.tokens.limit for one in every)
        )

    def limits_of(self, name: str) -> tuple[int, int]:
        """Requests and tokens a minute of one model, by the provider's name; 0: none."""
        one = self._by_upstream.get(name)
        return (one.requests.limit, one.tokens.limit) if one else (0, 0)

    def snapshot(self, now: float) -> tuple[LimitSnapshot, ...]:
        """The headers' statements, at most two per model."""
        both = [
            limit.snapshot(name, kind, now)
            for name, one in self._by_upstream.items()
            for kind, limit in (("requests", one.requests), ("tokens", one.tokens))
        ]
        return tuple(shot for shot in both if shot is not None)

    def to_save(self) -> tuple[SavedLimits, ...]:
        """The limits that headers stated, for `restore`."""
        every = [SavedLimits(name, *self.limits_of(name)) for name in self._by_upstream]
        return tuple(one for one in every if one.rpm or one.tpm)

    def restore(self, saved: Iterable[SavedLimits]) -> None:
        """Takes back saved limits, before the first request. Models not served are skipped."""
        for one in saved:
            self._by_upstream[one.model] = limits = ModelLimits()
            limits.restore(one.rpm, one.tpm)
        self.configure(self._names)


def least(*limits: int) -> int:
    """The smallest limit, without those that are 0 (none); 0 where there is no limit."""
    return min((limit for limit in limits if limit), default=0)
