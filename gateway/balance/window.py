"""How many requests of one model an account is given at once: the knee, found online.

A provider that is given more than it serves well makes everybody wait inside it, where nobody
can be overtaken, or even serves less. The window is where its throughput stops rising (curve.py
says for each shape of congestion where that is; evidence.py, how it is known). It moves so:

1. After every half round of completions the evidence names the best N. The window goes down
   there at once, where it is used or more was in flight than is best; up by `CLIMB`, and only
   while it is used and requests that *began* under it have ended.
2. A window nobody knows anything about starts slowly: after every few completions it widens by
   up to `LEAP`, until the evidence names a best N that it has reached. It does not wait for
   requests that began under it: the first answers are the short ones, and a burst that is held
   back until the long ones are there has lost more than a window that is too wide for a round.
3. Without having seen the provider at ease, "slow" has no meaning. Mostly its load falls now
   and then and shows that for nothing; a window full for `ANCHOR_AFTER` rounds that has not seen
   it goes down to a third for a round.
4. Resting at the best N would teach nothing, so single rounds are *probes*: wider, by what the
   curve expects to cost little; and narrower, where it expects that to be free, for far above a
   knee the curve looks like a straight line. What went better than expected is tried again at
   once: so capacity that came back is found, and slow start begins anew.
5. Its size has a price (curve.py), for a burst gains by what it holds back. A backlog that
   stays gains by throughput alone: the longer a window is full, the lower its price, and the
   faster it goes up until it has to shrink: then it is near its place.

Every constant counts completions or rounds (one round: as many completions as fit in the
window, about one service time), never seconds: a provider ten times as slow looks the same.
"""

from __future__ import annotations

import math

import numpy as np
from msgspec import Struct

from gateway.balance.curve import MAX_WINDOW, PRICE, Posterior
from gateway.balance.evidence import Evidence, Sample
from gateway.balance.saved_state import RESTORE_RATIO, SavedWindow
from gateway.snapshots import WindowSnapshot

BATCH = (8, 64)  # completions between two looks: half a window, within these
FIRST_BATCH = 10  # the same in slow start
LEAP = 2.5  # at most so much wider makes a look in slow start
ARRIVED = 1.05  # × the window: slow start ends where the best N is not above
FAR = 2.0  # × what was seen: the best N is not looked for further out, but in slow start
CLIMB = 1.25  # a look, after slow start; up to LEAP under a backlog that stays
DROP = 0.6  # at most so much of the window is left by one look
WORTH = 0.004  # of log throughput, for which the window moves
ANCHOR = 1 / 3  # of the window, where the provider is seen at ease
ANCHORED = 6  # smaller windows are at ease anyhow
ANCHOR_AFTER = 60.0  # rounds without having seen it so
PATIENT = 1000.0  # answers under a full window, after which its price is half and CLIMB double
LEAST_PRICE = 0.06  # of log throughput per e-fold, however long it is full
RELAXED = 0.9  # what a look that was not full leaves of them
WIDER = 1.4
NARROWER = 0.25
FREE = 0.03  # of log throughput, while a probe lasts
FREE_EVERY = 4.0  # rounds between probes that cost at most that
COST = 0.12
COST_EVERY = 14.0  # rounds between probes that cost at most that
LEAST_STEP = 1.12


class Mark(Struct, frozen=True, gc=False):
    """The beginning of a request: the time, and the integrals of the number in flight."""

    since_s: float
    area: float
    squares: float


class Window:
    """One (account, model). Times are seconds on the caller's clock.

    `value` is how many may be in flight now, `base` the same without a probe. `model` is the
    provider's name.
    """

    __slots__ = (
        "_area",
        "_batch",
        "_changed",
        "_counted",
        "_evidence",
        "_fresh",
        "_full",
        "_high",
        "_low",
        "_moved_s",
        "_pressed",
        "_probing",
        "_slow_start",
        "_squares",
        "_strained",
        "_unprobed",
        "_unshrunk",
        "_upward",
        "alone_s",
        "base",
        "inflight",
        "model",
        "value",
    )

    def __init__(self, model: str, initial: float) -> None:
        self.model = model
        self.inflight = 0
        self.alone_s = 0.0  # a request of middling size, unloaded; 0.0 while it is not known
        self._area = 0.0  # integral of the number in flight
        self._squares = 0.0  # and of its square
        self._moved_s = 0.0
        self._evidence = Evidence()
        self._batch: list[Sample] = []
        self._full = 0  # its completions that found the window in use
        self._counted = False  # some answer told its tokens
        self._fresh = 0  # completions of requests that began under the present window
        self._changed = 0  # the first lease under it
        self._pressed = 0.0  # answers of late under a full window
        self._unprobed = 0.0  # rounds since the last probe
        self._unshrunk = 0.0  # of those answers, since it last shrank
        self._strained = 0.0  # rounds since it was last seen at ease
        self._probing = False
        self._upward = False  # the last probe's direction
        self._slow_start = True
        self._low, self._high = 1.0, MAX_WINDOW
        self.base = self.value = float(initial)

    def configure(self, low: float, high: float) -> None:
        """New bounds; what was learned stays, moved inside them. `high` wins over `low`."""
        self._high = min(float(high), math.floor(MAX_WINDOW))
        self._low = min(float(low), self._high)
        self.base = min(max(self.base, self._low), self._high)
        self.value = min(max(self.value, self._low), self._high)

    @property
    def bounds(self) -> tuple[float, float]:
        return self._low, self._high

    def take(self, now: float) -> Mark:
        """One more in flight; the mark that `learn` wants."""
        self._pass(now)
        self.inflight += 1
        return Mark(now, self._area, self._squares)

    def give_back(self, now: float) -> None:
        """One less in flight."""
        self._pass(now)
        self.inflight -= 1

    def learn(
        self,
        mark: Mark,
        lease: int,
        next_lease: int,
        prompt_tokens: float | None,
        output_tokens: float | None,
        now: float,
    ) -> None:
        """The request that `mark` began was answered in full; call it before its `give_back`.

        Without tokens (None) its size is unknown: it teaches only where no request tells its
        size, as with embeddings.
        """
        if output_tokens is None:
            if self._counted:
                return
        else:
            self._counted = True
        latency_s = now - mark.since_s
        if latency_s <= 0.0:
            return
        self._pass(now)
        mean = (self._area - mark.area) / latency_s
        variance = (self._squares - mark.squares) / latency_s - mean * mean
        self._batch.append(
            Sample(
                mean,
                math.sqrt(max(variance, 0.0)),
                latency_s,
                prompt_tokens or 0.0,
                output_tokens or 0.0,
            )
        )
        used = self.inflight >= self.value
        self._full += used
        self._fresh += lease >= self._changed
        whole = min(max(BATCH[0], self.value / 2.0), BATCH[1])
        if len(self._batch) >= (FIRST_BATCH if self._slow_start else whole):
            self._look(used, next_lease)

    def _pass(self, now: float) -> None:
        load = self.inflight * (now - self._moved_s)
        self._area += load
        self._squares += load * self.inflight
        self._moved_s = now

    # ---- what the batch says, and what follows

    def _look(self, used: bool, next_lease: int) -> None:
        batch, evidence = self._batch, self._evidence
        rounds = len(batch) / max(self.base, 1.0)
        self._unprobed += rounds
        self._strained += rounds
        self._slow_start |= evidence.look(batch, self.base)
        self.alone_s = evidence.alone_s
        full = used and 2 * self._full >= len(batch)
        self._batch = []
        self._full = 0
        self._steer(full, len(batch), _middle(batch), next_lease)

    def _steer(self, full: bool, answers: int, inflight: float, next_lease: int) -> None:
        posterior = self._evidence.posterior
        assert posterior is not None
        settled = self._fresh >= max(BATCH[0], self.value / 2.0)
        self._pressed = self._pressed + answers if full else self._pressed * RELAXED
        self._unshrunk = self._unshrunk + answers if full else self._unshrunk * RELAXED
        price = max(PRICE / (1.0 + self._pressed / PATIENT), LEAST_PRICE)
        climb = min(CLIMB * (1.0 + self._unshrunk / PATIENT), LEAP)
        far, step = (LEAP, LEAP) if self._slow_start else (FAR, climb)
        reach = max(far * self._evidence.explored(), self.base)
        best = posterior.best(self._low, min(self._high, reach), price)
        if best < ARRIVED * self.base:
            self._slow_start = False
        if self._probing:
            if full and not settled:
                return
            self._probing = False
        if full and settled and not self._slow_start and self._anchor(next_lease):
            return
        worth = posterior.worth(np.array([best, self.base]), price)
        # What is not in use neither grows nor shrinks: at a low load slowness is not the load's.
        # But one that was not full may have had more in flight than is best.
        may_grow = full and (settled or self._slow_start)
        may_shrink = full or inflight > best
        if worth[0] - worth[1] <= WORTH or not (may_grow if best > self.base else may_shrink):
            best = self.base
        if best < self.base:
            self._move(max(best, self.base * DROP), next_lease)
        elif best > self.base:
            self._move(min(best, self.base * step), next_lease)
        elif self.value != self.base:
            self._move(self.base, next_lease)
        if full and settled and not self._slow_start:
            self._probe(posterior, next_lease)

    def _anchor(self, next_lease: int) -> bool:
        """A round at ease, where the provider was not seen so for long."""
        to = math.ceil(self.base * ANCHOR)
        if self._evidence.known_below(1.5 * to):
            self._strained = 0.0
        if self.base < ANCHORED or to < self._low or self._strained < ANCHOR_AFTER:
            return False
        self._strained = 0.0
        return self._try(to, next_lease)

    def _probe(self, posterior: Posterior, next_lease: int) -> None:
        """One round wider or, every other time, narrower. Often where the curve says it is
        free, now and then where it says that it costs."""
        hopeful = self._evidence.hopeful
        upward = hopeful or not self._upward
        width = _affordable(posterior, self.base, WIDER if upward else NARROWER, FREE)
        if not width and self._unprobed >= COST_EVERY:
            upward = True
            width = _affordable(posterior, self.base, WIDER, COST) or LEAST_STEP
        if not width or (self._unprobed < FREE_EVERY and not hopeful):
            return
        self._upward = upward
        to = self.base * width
        self._try(max(math.floor(to), self.base + 1.0) if upward else math.ceil(to), next_lease)

    def _try(self, to: float, next_lease: int) -> bool:
        if not self._low <= to <= self._high or to == self.base:
            return False
        self.value = float(to)
        self._probing = True
        self._unprobed = 0.0
        self._fresh, self._changed = 0, next_lease
        return True

    def _move(self, to: float, next_lease: int) -> None:
        if to < self.base:
            self._unshrunk = 0.0
        self.base = self.value = min(max(math.floor(to + 0.5), self._low), self._high)
        self._fresh, self._changed = 0, next_lease

    # ---- for others

    @property
    def has_evidence(self) -> bool:
        return self._evidence.posterior is not None

    def snapshot(self) -> WindowSnapshot:
        base_s, prompt_s, output_s = self._evidence.coefficients
        curve = self._evidence.curve
        return WindowSnapshot(
            model=self.model,
            window=self.value,
            inflight=self.inflight,
            regime=curve.regime,
            knee=curve.knee,
            base_s=base_s,
            prompt_token_s=prompt_s,
            output_token_s=output_s,
            curve=curve.parameters,
            slowdown=self._evidence.slowdown,
        )

    def to_save(self) -> SavedWindow:
        return self._evidence.to_save(self.model, self.base)

    def restore(self, saved: SavedWindow) -> None:
        """Begins at `RESTORE_RATIO` of a window saved before, with as much of the evidence.
        One that cannot be read is left alone."""
        try:
            to = math.floor(saved.window * RESTORE_RATIO + 0.5)
            self._evidence.restore(saved, RESTORE_RATIO)
        except (ValueError, OverflowError):
            return
        self.alone_s = self._evidence.alone_s
        self._slow_start = False
        self._move(to, 0)

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        assert self._low <= self.base <= self._high, (self.model, self.base)
        assert self._low <= self.value <= self._high, (self.model, self.value)
        assert self.inflight >= 0, self.model


def _middle(batch: list[Sample]) -> float:
    """The median number in flight."""
    return sorted(sample.inflight for sample in batch)[len(batch) // 2]


def _affordable(posterior: Posterior, base: float, width: float, cost: float) -> float:
    """The factor nearest to `width` at which the curve expects to lose at most `cost` of log
    throughput; 0.0 where it is hardly a step."""
    while posterior.gain(base * width, base) < -cost:
        width **= 0.8
        if abs(math.log(width)) < math.log(LEAST_STEP):
            return 0.0
    return width
