"""Window of one model at one account: how many requests may be in flight, found online.

A provider that is given too much makes requests wait inside it, where none can overtake, or even
serves less. The window is where throughput stops rising: curve.py has the shapes of congestion,
evidence.py what is known of this provider. A round is as many completions as fit in the window.

1. After every half round the evidence gives the best N. The window falls there at once if it is in
   use or more was in flight than is best. It rises by `CLIMB`, only while it is in use and after
   requests that began under it have ended.
2. A new window starts slowly: it grows by up to `LEAP` every few completions until it reaches the
   best N, without waiting for requests that began under it, as the first answers are short ones.
   So it does later, too, while latencies are flat: to `FAR` times what was seen, in one step.
3. A provider that was never seen at ease has no reference for "slow". A window that has been full
   for `ANCHOR_AFTER` rounds without it falls to a third for a round.
4. Single rounds are probes: wider, if the curve expects that to cost little, and narrower, if it is
   free. A result better than expected is tried again at once, which finds capacity that returned.
5. Size has a price (curve.py), as a burst gains by what is held back. The longer a window is full,
   the lower its price and the faster it rises, until it has to shrink.
6. Time that was the gateway's or the client's is none of the provider's (`OWN_SHARE`).
"""

from __future__ import annotations

import math

import numpy as np

from gateway.balance.curve import MAX_WINDOW, PRICE, Posterior
from gateway.balance.evidence import Evidence, Sample
from gateway.balance.inflight import InFlight, Mark
from gateway.balance.saved_state import RESTORE_RATIO, SavedWindow
from gateway.snapshots import WindowSnapshot

# Constants count completions or rounds, not seconds, so slow providers are treated alike.
OWN_SHARE = 0.25  # of a latency that may be the gateway's own; with more it shows nothing
BATCH = (8, 64)  # bounds of the completions between two looks: half a window
FIRST_BATCH = 10  # the same in slow start
REST_S = 0.5  # between two looks but in slow start, as one costs as much as a request …
LARGEST_BATCH = 512  # … unless there are so many answers
LEAP = 2.5  # largest growth by one look in slow start
ARRIVED = 1.05  # slow start ends when the best N is below this factor of the window
FAR = 2.0  # the best N is sought up to this factor of what was seen (LEAP in slow start)
CLIMB = 1.25  # growth by one look after slow start; up to LEAP under a lasting backlog
DROP = 0.6  # smallest share of the window that one look leaves
WORTH = 0.004  # least gain of log throughput for which the window moves
ANCHOR = 1 / 3  # share of the window at which the provider is at ease
ANCHORED = 6  # smaller windows are always at ease
ANCHOR_AFTER = 60.0  # rounds without having seen the provider at ease
PATIENT = 1000.0  # answers under a full window after which its price is half and CLIMB double
LEAST_PRICE = 0.06  # of log throughput per e-fold
RELAXED = 0.9  # share of those answers that a look at a window not full leaves
WIDER = 1.4
NARROWER = 0.25
FREE = 0.03  # expected loss of log throughput by a free probe, at most
FREE_EVERY = 4.0  # rounds between free probes
COST = 0.12  # expected loss by a probe that costs, at most
COST_EVERY = 14.0  # rounds between probes that cost
LEAST_STEP = 1.12  # smallest factor of a probe


class Window(InFlight):
    """The window of one (account, model). Times are seconds on the caller's clock.

    `value` is how many requests may be in flight now, `base` the same without a probe. `model` is
    the provider's name.
    """

    __slots__ = (
        "_batch",
        "_changed",
        "_counted",
        "_evidence",
        "_flat",
        "_fresh",
        "_full",
        "_high",
        "_low",
        "_pressed",
        "_probing",
        "_rests_s",
        "_slow_start",
        "_strained",
        "_unprobed",
        "_unseen",
        "_unshrunk",
        "_upward",
        "alone_s",
        "base",
        "model",
        "value",
    )

    def __init__(self, model: str, initial: float) -> None:
        super().__init__()
        self.model = model
        self.alone_s = 0.0  # unloaded seconds of a request of medium size; 0.0: unknown
        self._evidence = Evidence()
        self._batch: list[Sample] = []
        self._full = 0  # completions of the batch that found the window in use
        self._unseen = 0  # answers in slow start that showed nothing of the provider
        self._flat = 0.0  # as `Evidence.flat` was at the last look
        self._rests_s = 0.0  # the end of the rest after the last look
        self._counted = False  # some answer had its tokens counted
        self._fresh = 0  # completions of requests that began under the present window
        self._changed = 0  # the first lease under the present window
        self._pressed = 0.0  # recent answers under a full window
        self._unprobed = 0.0  # rounds since the last probe
        self._unshrunk = 0.0  # recent answers under a full window since it last shrank
        self._strained = 0.0  # rounds since the provider was last seen at ease
        self._probing = False
        self._upward = False  # direction of the last probe
        self._slow_start = True
        self._low, self._high = 1.0, MAX_WINDOW
        self.base = self.value = float(initial)

    def configure(self, low: float, high: float) -> None:
        """Sets new bounds and moves the window inside them. `high` wins over `low`."""
        self._high = min(float(high), math.floor(MAX_WINDOW))
        self._low = min(float(low), self._high)
        self.base = min(max(self.base, self._low), self._high)
        self.value = min(max(self.value, self._low), self._high)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest window."""
        return self._low, self._high

    def learn(
        self,
        mark: Mark,
        lease: int,
        next_lease: int,
        prompt_tokens: float | None,
        output_tokens: float | None,
        now: float,
        own_s: float = 0.0,
    ) -> None:
        """Learns from a request that was answered in full; to be called before `give_back`.

        Args:
            mark: as `take` returned it.
            lease: the request's number; `next_lease`: the number of the next one to begin.
            output_tokens: None where they were not counted. Such a request teaches only if no
                request of the model has counted tokens, as with embeddings.
            own_s: seconds since the mark that were the gateway's or the client's, at most.
        """
        if output_tokens is None:
            if self._counted:
                return
        else:
            self._counted = True
        if now <= mark.since_s:
            return
        used = self.inflight >= self.value
        if own_s > OWN_SHARE * (now - mark.since_s):
            self._outshone(used, next_lease)
            return
        self._batch.append(
            self.sample(mark, prompt_tokens or 0.0, output_tokens or 0.0, own_s, now)
        )
        self._full += used
        self._fresh += lease >= self._changed
        if self._is_due(now):
            self._rests_s = now + REST_S
            self._look(used, next_lease)

    def _is_due(self, now: float) -> bool:
        """True if the batch is to be looked at now."""
        answers = len(self._batch)
        if self._flat and self.base < self._high and self._full >= FIRST_BATCH:
            return True
        size = min(max(BATCH[0], self.value / 2.0), BATCH[1])
        if answers < (FIRST_BATCH if self._slow_start else size):
            return False
        starts = self._slow_start and 2 * self._full >= answers
        return starts or now >= self._rests_s or answers >= LARGEST_BATCH

    def _outshone(self, used: bool, next_lease: int) -> None:
        """Counts an answer whose latency may be the gateway's own. It shows nothing of the provider
        but that the gateway was slower, so slow start goes on."""
        self._unseen += used and self._slow_start
        if self._unseen >= FIRST_BATCH:
            self._unseen = 0
            self._move(min(self.base * LEAP, self._high), next_lease)

    # ---- moves

    def _look(self, used: bool, next_lease: int) -> None:
        batch, evidence = self._batch, self._evidence
        rounds = len(batch) / max(self.base, 1.0)
        self._unprobed += rounds
        self._strained += rounds
        self._slow_start |= evidence.look(batch, self.base)
        self.alone_s = evidence.alone_s
        self._flat = evidence.flat
        crowded = used and self._full >= FIRST_BATCH
        full = used and 2 * self._full >= len(batch)
        self._batch = []
        self._full = 0
        to = min(math.floor(FAR * self._flat), self._high)
        if crowded and to > self.base and not self._probing:
            self._move(to, next_lease)  # at once: nothing is slower with more in flight
        else:
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
        # A window that is not in use neither grows nor shrinks, for at a low load slowness has
        # other causes. But it may have had more in flight than is best.
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
        """Tries a round at ease if the provider was not seen so for long; True if it did."""
        to = math.ceil(self.base * ANCHOR)
        if self._evidence.has_evidence_below(1.5 * to):
            self._strained = 0.0
        if self.base < ANCHORED or to < self._low or self._strained < ANCHOR_AFTER:
            return False
        self._strained = 0.0
        return self._try(to, next_lease)

    def _probe(self, posterior: Posterior, next_lease: int) -> None:
        """Tries one round wider or, every other time, narrower.

        Often if the curve expects it to be free, seldom if it expects a cost.
        """
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
        """True once anything was learned of the provider."""
        return self._evidence.posterior is not None

    def snapshot(self) -> WindowSnapshot:
        """State and findings, for display and metrics."""
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
        """Size and evidence, for `restore`."""
        return self._evidence.to_save(self.model, self.base)

    def restore(self, saved: SavedWindow) -> None:
        """Takes back `RESTORE_RATIO` of a saved window and of its evidence.

        A saved window that cannot be read is ignored.
        """
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
    """The median of the numbers in flight."""
    return sorted(sample.inflight for sample in batch)[len(batch) // 2]


def _affordable(posterior: Posterior, base: float, width: float, cost: float) -> float:
    """The factor nearest to `width` at which the curve expects a loss of at most `cost` of log
    throughput; 0.0 if that is less than `LEAST_STEP`."""
    while posterior.gain(base * width, base) < -cost:
        width **= 0.8
        if abs(math.log(width)) < math.log(LEAST_STEP):
            return 0.0
    return width
