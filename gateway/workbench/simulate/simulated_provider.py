"""A provider on a virtual clock: processor sharing that slows down with the number in flight.

A provider batches its requests: each of N streams runs at 1/g(N) of full speed. What a scheduler
can gain depends on the shape of g, so all shapes that engines and published mocks show are here
(X(N) = N/g(N) is the throughput):

    linear     1 + N/k                   X rises to k for ever: holding back gains nothing
    knee       max(1, N/k)               X rises to k, then flat
    power      max(1, N/k)^p             X peaks at k and falls
    quadratic  1 + (N/k)²                X peaks at k
    usl        1 + σ(N−1) + κ(N−1)N      X peaks at k = √((1−σ)/κ) (Gunther's scalability law)
    fitted     (1 + (N/k)^s)^(p/s)       the fit of balance/curve.py to an observed provider

Virtual time V runs with dV/dt = 1/g(N). A request with work w that begins at V₀ ends at V₀ + w
whatever else comes and goes, so a heap of ends keeps the order and an event costs O(log n),
although every event changes everybody's speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from math import exp, log
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
from msgspec import Struct, structs

from gateway.demo.congestion import MinuteLimit
from gateway.errors import SettingsError
from gateway.types import RateLimits

Shape = Literal["linear", "knee", "power", "quadratic", "usl", "fitted"]
SHAPES = cast(tuple[Shape, ...], get_args(Shape))

MOST = 4096  # in flight, where the best throughput is looked for
NEAR_BEST = 0.95

# Of 16,629 timed calls of twelve hosted models (the BFCL results), by median regression: base
# 0.19–0.53 s in nine models, up to 3 s in the others; prompt token 0–0.8 ms in eleven; output
# token 5.5–41 ms; sigma of the log of what remains 0.10–0.44. Knee and power are our own choice:
# one H100 serves 21 streams interactively and the most tokens at 45, and an account is a share
# of such machines.
RANGES: dict[str, tuple[float, float]] = {
    "knee": (8.0, 32.0),
    "sigma": (0.01, 0.05),
    "base_s": (0.2, 0.8),
    "prompt_token_s": (0.00005, 0.0005),
    "output_token_s": (0.006, 0.03),
    "noise": (0.1, 0.4),
    "power": (1.2, 2.0),
}
"""Drawn per seed, log-uniform; no controller reads them."""


class ProviderTraits(Struct, frozen=True, kw_only=True):
    """Parameters of one provider.

    A request's work is (base + prompt + output time) × its noise, in seconds at full speed; all
    of it slows down. Limits answer 429 at once: `max_concurrency`, and requests and tokens
    (prompt + true output) a minute.
    """

    shape: Shape = "knee"
    knee: float = 16.0
    power: float = 1.5
    sigma: float = 0.03
    sharp: float = 4.0  # s of "fitted", whose p is `power`
    base_s: float = 0.3
    prompt_token_s: float = 0.0002
    output_token_s: float = 0.01
    noise: float = 0.2
    max_concurrency: int = 0  # 0: no limit, here and below
    rpm: int = 0
    tpm: int = 0
    tells_retry_after: bool = True
    reject_s: float = 0.05  # until a 429 arrives

    def slowness(self, n: float) -> float:
        """g(n): the factor on the work of each of n streams."""
        match self.shape:
            case "linear":
                return 1.0 + n / self.knee
            case "knee":
                return max(1.0, n / self.knee)
            case "power":
                return float(max(1.0, n / self.knee) ** self.power)
            case "quadratic":
                return float(1.0 + (n / self.knee) ** 2)
            case "usl":
                kappa = (1.0 - self.sigma) / self.knee**2
                return 1.0 + self.sigma * (n - 1.0) + kappa * n * (n - 1.0)
            case "fitted":
                bent = float((n / self.knee) ** self.sharp)
                return float((1.0 + bent) ** (self.power / self.sharp))

    @property
    def capacity(self) -> float:
        """Maximum of X(N), in seconds of work a second; of `linear` its limit."""
        if self.shape == "linear":
            return self.knee
        return max(n / self.slowness(n) for n in range(1, MOST))

    @property
    def best_window(self) -> int:
        """The fewest in flight that reach NEAR_BEST of capacity."""
        enough = NEAR_BEST * self.capacity
        return next(n for n in range(1, MOST) if n / self.slowness(n) >= enough)

    def work_s(self, prompt_tokens: int, output_tokens: int, z: float) -> float:
        """Seconds at full speed; `z` is the request's standard normal noise."""
        tokens_s = self.prompt_token_s * prompt_tokens + self.output_token_s * output_tokens
        return (self.base_s + tokens_s) * exp(self.noise * z)

    def alone_s(self, prompt_tokens: int, output_tokens: int, z: float) -> float:
        """Seconds with no other stream there."""
        return self.work_s(prompt_tokens, output_tokens, z) * self.slowness(1)


def draw_traits(
    shape: Shape, chance: np.random.Generator, fixed: Mapping[str, float]
) -> ProviderTraits:
    """Parameters drawn from RANGES; `fixed` overrides them by name.

    Raises:
        SettingsError: `fixed` names no parameter.
    """
    for name in fixed:
        if name not in ProviderTraits.__struct_fields__ or name == "shape":
            names = ", ".join(ProviderTraits.__struct_fields__[1:])
            raise SettingsError(f"simulate: no provider parameter {name!r}; there are {names}")
    drawn = {name: exp(chance.uniform(log(a), log(b))) for name, (a, b) in RANGES.items()}
    types = {"max_concurrency": int, "rpm": int, "tpm": int, "tells_retry_after": bool}
    given = {name: types.get(name, float)(value) for name, value in fixed.items()}
    return structs.replace(ProviderTraits(shape=shape), **(drawn | given))


class Rejection(NamedTuple):
    """The provider answered 429; seconds of Retry-After, None where it tells none."""

    retry_after_s: float | None


class Step(NamedTuple):
    """A stream's first byte, or its end."""

    id: str
    ended: bool  # False: its first byte


class SimulatedProvider:
    """One account at one provider, on a virtual clock.

    `share` is the part of its machines that is up: with half of them N streams crowd as 2N did.
    """

    def __init__(self, traits: ProviderTraits, now: float = 0.0) -> None:
        self.traits = traits
        self.inflight = 0
        self.done_s = 0.0  # work done so far, in seconds at full speed
        self.rejected = 0
        self.share = 1.0
        self._ends: list[tuple[float, int, str, bool]] = []
        self._virtual = 0.0
        self._at = now
        self._order = 0
        self._slowness: dict[int, float] = {}
        self._gone: set[str] = set()  # cancelled, their steps still in the heap
        self._requests = MinuteLimit(traits.rpm, now)
        self._tokens = MinuteLimit(traits.tpm, now)

    def __repr__(self) -> str:
        traits = self.traits
        return f"<SimulatedProvider {traits.shape} {traits.knee:.1f}: {self.inflight} in flight>"

    def offer(
        self, id: str, prompt_tokens: int, output_tokens: int, z: float, now: float
    ) -> Rejection | None:
        """Begin a stream; a Rejection where a limit forbids it."""
        rejection = self._rejection(prompt_tokens + output_tokens, now)
        if rejection is not None:
            self.rejected += 1
            return rejection
        self._advance(now)
        traits = self.traits
        for tokens, ended in ((0, False), (output_tokens, True)):
            work_s = traits.work_s(prompt_tokens, tokens, z)
            self._order += 1
            heappush(self._ends, (self._virtual + work_s, self._order, id, ended))
        self.inflight += 1
        return None

    def cancel(self, id: str, now: float) -> None:
        """End a stream whose client left; its place is free at once."""
        self._advance(now)
        self.inflight -= 1
        self._gone.add(id)
        self._sweep()

    def _sweep(self) -> None:
        """Remove cancelled streams from the head of the heap."""
        while self._ends and self._ends[0][2] in self._gone:
            _, _, id, ended = heappop(self._ends)
            if ended:
                self._gone.discard(id)

    @property
    def next_s(self) -> float:
        """Time of the next step, if nothing else happens before; infinite without streams."""
        if not self._ends:
            return float("inf")
        return self._at + max(0.0, self._ends[0][0] - self._virtual) * self._g

    def step(self, now: float) -> Step:
        """The step that is due at `now`, which is `next_s`."""
        self._advance(now)
        due, _, id, ended = heappop(self._ends)
        if due > self._virtual:  # by rounding
            self.done_s += (due - self._virtual) * self.inflight
            self._virtual = due
        if ended:
            self.inflight -= 1
        if self._gone:
            self._sweep()
        return Step(id, ended)

    def limits(self, now: float) -> RateLimits | None:
        """Limits as in response headers; None where the provider limits nothing."""
        if not self.traits.rpm and not self.traits.tpm:
            return None
        self._requests.lacks_s(0.0, now)
        self._tokens.lacks_s(0.0, now)
        return RateLimits(*self._requests.state(), *self._tokens.state())

    def change(self, share: float, now: float) -> None:
        """Set the share of the machines that is up from now on."""
        self._advance(now)
        self.share = share
        self._slowness.clear()

    @property
    def _g(self) -> float:
        slowness = self._slowness.get(self.inflight)
        if slowness is None:
            slowness = self.traits.slowness(self.inflight / self.share)
            self._slowness[self.inflight] = slowness
        return slowness

    def _advance(self, now: float) -> None:
        if self.inflight:
            served = (now - self._at) / self._g
            self._virtual += served
            self.done_s += served * self.inflight
        self._at = now

    def _rejection(self, tokens: int, now: float) -> Rejection | None:
        wait_s = max(self._requests.lacks_s(1.0, now), self._tokens.lacks_s(tokens, now))
        if 0 < self.traits.max_concurrency <= self.inflight:
            wait_s = max(wait_s, 1.0)
        if wait_s > 0:
            return Rejection(wait_s if self.traits.tells_retry_after else None)
        self._requests.take(1.0)
        self._tokens.take(tokens)
        return None
