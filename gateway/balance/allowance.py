"""What a provider's headers say is left of one model's requests and tokens a minute.

Limits are per model, shared by some families of models, so each (account, model) has an
allowance of its own: what "gpt-4o" has used up says nothing of its neighbour on the same key.
(Limits of the settings are the account's: `pacer.py`.)

The level is what the header says is left, less what was sent since that answer's request (the
header cannot know of it). A limit that was told is learned, may be spent at once as the provider
would allow it, and paces between two answers; each answer then sets the level anew, both ways.

Headers lie: "0 left" for ever, a limit of 1, a day's limit given as a minute's. So:

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

LEARNED_BURST_S = 60.0
"""What may be spent at once of a learned limit, in seconds of its rate: all of a minute's, what
is left of it is told by each answer."""
LEAST = (10, 1000)
"""Requests and tokens a minute below which a header's limit is not believed."""
FIRST_HOLD_S = 2.0
MAX_HOLD_S = 15.0
LEAST_HOLD_S = 0.25
BORNE_OUT = 8.0
"""By how much a 429 lengthens the hold; its own header, heard just before, may have halved it."""
PATIENCE_S = 4.0
"""How long "nothing left" may come alone before being served contradicts it at any pace."""
MOST_PATIENCE_S = 4096.0
RESET_S = 60.0
"""When all of a limit a minute is there again, where the header does not say."""


class Told:
    """One limit as headers tell it: how much of it is left, and how far they are believed.

    `free_s`: from then on another charge may come (seconds on the caller's clock).
    `spent`: everything charged so far, corrections left out.
    `learned`: the limit a minute; 0: none was told.
    """

    __slots__ = (
        "_cap_s",
        "_hold_s",
        "_hold_spent",
        "_judged",
        "_judged_s",
        "_last",
        "_last_spent",
        "_least",
        "_meter",
        "_patience_s",
        "_refused",
        "_reset_s",
        "_run_s",
        "_wait_s",
        "free_s",
        "learned",
        "spent",
    )

    def __init__(self, least: int) -> None:
        self._least = least
        self._meter = Meter(0, LEARNED_BURST_S)
        self._hold_s = NEVER
        self._hold_spent = NEVER  # what the request of the word that set it had spent
        self._cap_s = FIRST_HOLD_S  # how long a word may stop traffic
        self._patience_s = PATIENCE_S
        self._run_s = NEVER  # since when "nothing left" comes alone, without a 429
        self._judged = NEVER  # spent when the last such word came; NEVER: something is left
        self._judged_s = NEVER
        self._wait_s = 0.0  # how long that word would stop traffic, were it believed
        self._refused = NEVER  # spent when the last 429 came
        self._last: int | None = None  # the last word, for people: what was left, ...
        self._last_spent = NEVER  # ... when so much had been spent, ...
        self._reset_s = NEVER  # ... and when it is out of date: all is there again
        self.learned = 0
        self.spent = 0.0
        self.free_s = NEVER

    @property
    def believed(self) -> bool:
        return self._cap_s >= LEAST_HOLD_S

    def charge(self, amount: float, now: float) -> None:
        self.spent += amount
        if self._meter.rate:
            self.correct(amount, now)

    def correct(self, amount: float, now: float) -> None:
        self._meter.charge(amount, now)
        self._tell()

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
        if limit is not None and limit != self.learned and limit >= self._least:
            self.learned = limit
            self._update()
        if remaining is None:
            return
        if spent >= self._last_spent:  # none that was sent later has answered yet
            self._last, self._last_spent = remaining, spent
            self._reset_s = now + (RESET_S if reset_s is None else reset_s)
        if remaining <= 0:
            if spent <= self._judged:  # case 4
                return
            self._judge(now)
        elif self._judged != NEVER or self._cap_s < MAX_HOLD_S:
            self._counts()
        if self.believed:
            self._heed(remaining, reset_s, spent, now)
            self._tell()

    def refused(self, spent: float, now: float) -> None:
        """A 429 to the request with which so much had been spent: the headers were right. Those
        of one episode, to requests that were under way together, count once."""
        if spent <= self._refused:
            return
        self._refused = self.spent
        if self._judged != NEVER and now - self._run_s > self._patience_s:
            self._patience_s = min(2.0 * self._patience_s, MOST_PATIENCE_S)
        self._run_s = now
        self._cap_s = min(BORNE_OUT * self._cap_s, MAX_HOLD_S)
        if self._judged != NEVER:  # the last word's hold was cut short, wrongly
            self._hold_s = max(self._hold_s, self._judged_s + min(self._wait_s, self._cap_s))
        self._update()

    def restore(self, saved: int) -> None:
        self.learned = saved
        self._update()

    def snapshot(self, model: str, kind: str, now: float) -> LimitSnapshot | None:
        """What headers said, for people; None where they said nothing. Once its reset has
        passed a word is out of date: all of the limit is there, less nothing known."""
        if self._last is None and not self.learned:
            return None
        left: float | None = None
        if self._last is not None and now < self._reset_s:
            left = max(0.0, self._last - (self.spent - self._last_spent))
        elif self._last is not None:
            left = float(max(self._last, self.learned))
        return LimitSnapshot(
            model=model,
            kind=kind,
            limit=self.learned,
            remaining=left,
            reset_s=max(0.0, self._reset_s - now),
            wait_s=max(0.0, self.free_s - now),
            believed=self.believed,
        )

    def _counts(self) -> None:
        """Something is left: the header is one that counts, the more so the oftener."""
        if self._judged == NEVER:
            self._cap_s = min(2.0 * self._cap_s, MAX_HOLD_S)
        elif not self.believed:
            self._cap_s = LEAST_HOLD_S
        self._judged = NEVER
        self._update()

    def _judge(self, now: float) -> None:
        """Nothing is left: case 3."""
        paced = self._meter.rate and self._wait_s <= self._cap_s
        if self._judged == NEVER:
            self._run_s = now
        elif not paced or now - self._run_s > self._patience_s:
            self._cap_s = max(self._cap_s / 2.0, LEAST_HOLD_S / 2.0)
        self._judged, self._judged_s = self.spent, now
        self._update()

    def _heed(self, remaining: int, reset_s: float | None, spent: float, now: float) -> None:
        meter = self._meter
        level = remaining - (self.spent - spent) if meter.rate else float(remaining)
        meter.set_level(level, now)
        if level >= 1.0:
            if spent > self._hold_spent:  # a later request found something left
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

    def _update(self) -> None:
        believed = self.believed
        self._meter.configure(self.learned if believed else 0.0)
        if not believed:
            self._hold_s = NEVER
        self._tell()

    def _tell(self) -> None:
        paced_s, held_s = self._meter.free_s, self._hold_s
        self.free_s = paced_s if paced_s > held_s else held_s


class Allowance:
    """Requests and tokens of one (account, model). A charge of tokens is prompt + reserve,
    corrected at the end."""

    __slots__ = ("free_s", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = Told(LEAST[0])
        self.tokens = Told(LEAST[1])
        self.free_s = NEVER  # from then on another request may start

    def charge(self, tokens: float, now: float) -> None:
        self.requests.charge(1.0, now)
        self.tokens.charge(tokens, now)
        self._update()

    def correct(self, tokens: float, now: float) -> None:
        """`tokens` is actual minus charged."""
        self.tokens.correct(tokens, now)
        self._update()

    def told(self, limits: RateLimits, requests: float, tokens: float, now: float) -> None:
        """The headers of an answer, to a request with which so much had been spent."""
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

    def refused(self, requests: float, tokens: float, now: float) -> None:
        self.requests.refused(requests, now)
        self.tokens.refused(tokens, now)
        self._update()

    def restore(self, rpm: int, tpm: int) -> None:
        """Limits that headers taught before."""
        self.requests.restore(rpm)
        self.tokens.restore(tpm)
        self._update()

    def _update(self) -> None:
        self.free_s = max(self.requests.free_s, self.tokens.free_s)


class Allowances:
    """Those of one account, begun when a model is first used.

    `of`: by the client's name of a model. Names that the provider knows as one share one.
    """

    __slots__ = ("_named", "_names", "of")

    def __init__(self, names: dict[str, str]) -> None:
        self._named: dict[str, Allowance] = {}
        self.configure(names)

    def configure(self, names: dict[str, str]) -> None:
        """The models served from now on, client's name → provider's; those kept stay as they
        are."""
        self._names = names
        served = set(names.values())
        self._named = {name: one for name, one in self._named.items() if name in served}
        self.of = {m: self._named[name] for m, name in names.items() if name in self._named}

    def open(self, model: str) -> Allowance | None:
        """That of the client's `model`; None where it is not served (any more)."""
        found = self.of.get(model)
        if found is None and (name := self._names.get(model)) is not None:
            self._named[name] = found = Allowance()
            self.configure(self._names)
        return found

    @property
    def limits(self) -> tuple[int, int]:
        """The least requests and tokens a minute that were told of any model; 0: none."""
        every = self._named.values()
        return least(*(a.requests.learned for a in every)), least(
            *(a.tokens.learned for a in every)
        )

    def limits_of(self, name: str) -> tuple[int, int]:
        """The same of one model, by the provider's name."""
        one = self._named.get(name)
        return (one.requests.learned, one.tokens.learned) if one else (0, 0)

    def snapshot(self, now: float) -> tuple[LimitSnapshot, ...]:
        """What headers said of each model: at most two for each that is served."""
        both = [
            told.snapshot(name, kind, now)
            for name, one in self._named.items()
            for kind, told in (("requests", one.requests), ("tokens", one.tokens))
        ]
        return tuple(shot for shot in both if shot is not None)

    def to_save(self) -> tuple[SavedLimits, ...]:
        told = [SavedLimits(name, *self.limits_of(name)) for name in self._named]
        return tuple(one for one in told if one.rpm or one.tpm)

    def restore(self, saved: Iterable[SavedLimits]) -> None:
        """To be called before the first request. Models that are not served are passed over."""
        for one in saved:
            self._named[one.model] = allowance = Allowance()
            allowance.restore(one.rpm, one.tpm)
        self.configure(self._names)


def least(*limits: int) -> int:
    """The smallest of the limits that there are; 0: none."""
    return min((limit for limit in limits if limit), default=0)
