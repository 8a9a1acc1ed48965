"""A provider as a fluid: processor sharing, each of N streams 1/g(N) as fast as one alone.

One virtual time serves all streams at once: it runs 1/g(N) as fast as the clock, and a stream
ends when it has received its work. So an event costs O(log n), and thousands of requests a
fraction of a second.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from random import Random

from msgspec import Struct

from gateway.balance.inflight import Mark
from gateway.balance.window import Window

Slowdown = Callable[[float], float]


class Request(Struct):
    arrived_s: float
    prompt_tokens: float
    output_tokens: float
    work_s: float  # alone, noise included


class Provider(Struct):
    """The simulated provider. `slowdown` may be replaced while it runs: the capacity changes."""

    slowdown: Slowdown
    base_s: float
    prompt_token_s: float
    output_token_s: float
    noise: float

    def request(self, rng: Random, arrived_s: float) -> Request:
        output = min(max(round(rng.lognormvariate(math.log(150), 1.2)), 5), 1500)
        prompt = min(max(round(rng.lognormvariate(math.log(120), 1.0)), 5), 4000)
        size_s = self.base_s + self.prompt_token_s * prompt + self.output_token_s * output
        return Request(arrived_s, prompt, output, size_s * rng.lognormvariate(0, self.noise))

    def mean_work_s(self) -> float:
        rng = Random(1)
        return sum(self.request(rng, 0.0).work_s for _ in range(2000)) / 2000


class Gate:
    """The part that decides how many requests are in flight, asked as the scheduler asks."""

    def room(self, now: float) -> bool:
        raise NotImplementedError

    def take(self, request: Request, now: float) -> None:
        raise NotImplementedError

    def ended(self, request: Request, now: float) -> None:
        raise NotImplementedError


class Static(Gate):
    def __init__(self, window: int) -> None:
        self.window, self.inflight = window, 0

    def room(self, now: float) -> bool:
        return self.inflight < self.window

    def take(self, request: Request, now: float) -> None:
        self.inflight += 1

    def ended(self, request: Request, now: float) -> None:
        self.inflight -= 1


class Run(Struct):
    ended_s: list[float]
    work_s: list[float]
    sojourn_s: list[float]

    def throughput(self, first: int, last: int | None = None) -> float:
        """Work a second between these ends, in requests served at once at full speed."""
        ends = self.ended_s[first:last]
        return sum(self.work_s[first + 1 : last]) / (ends[-1] - ends[0])

    def mean_s(self, first: int) -> float:
        part = self.sojourn_s[first:]
        return sum(part) / len(part)


def run(
    provider: Provider,
    gate: Gate,
    seed: int,
    requests: int,
    rate: float | None = None,
    at: Callable[[int], None] | None = None,
) -> Run:
    """Plays `rate` arrivals a second, or a lasting backlog where it is None. `at(n)` is called
    before the n-th end and may change the world."""
    rng = Random(seed)
    now = virtual = 0.0
    running: list[tuple[float, int, Request]] = []
    waiting: deque[Request] = deque()
    made = 0
    arrival_s = 0.0 if rate is None else rng.expovariate(rate)
    result = Run([], [], [])
    while len(result.ended_s) < requests:
        if rate is None:
            while len(waiting) < 1:
                waiting.append(provider.request(rng, now))
        while waiting and gate.room(now):
            one = waiting.popleft()
            gate.take(one, now)
            made += 1
            heapq.heappush(running, (virtual + one.work_s, made, one))
            if rate is None:
                waiting.append(provider.request(rng, now))
        speed = 1.0 / provider.slowdown(len(running)) if running else 1.0
        end_s = now + (running[0][0] - virtual) / speed if running else float("inf")
        if rate is not None and arrival_s < end_s:
            virtual += (arrival_s - now) * speed
            now = arrival_s
            waiting.append(provider.request(rng, now))
            arrival_s = now + rng.expovariate(rate)
            continue
        virtual, now = running[0][0], end_s
        _, _, one = heapq.heappop(running)
        if at is not None:
            at(len(result.ended_s))
        gate.ended(one, now)
        result.ended_s.append(now)
        result.work_s.append(one.work_s)
        result.sojourn_s.append(now - one.arrived_s)
    return result


def linear(knee: float) -> Slowdown:
    return lambda n: 1 + n / knee


def saturating(knee: float) -> Slowdown:
    return lambda n: max(1.0, n / knee)


def power(knee: float) -> Slowdown:
    return lambda n: max(1.0, n / knee) ** 1.5


def quadratic(knee: float) -> Slowdown:
    return lambda n: 1 + (n / knee) ** 2


def usl(knee: float) -> Slowdown:
    sigma = 0.03
    kappa = (1 - sigma) / knee**2
    return lambda n: 1 + sigma * (n - 1) + kappa * n * (n - 1)


SHAPES: dict[str, Callable[[float], Slowdown]] = {
    "linear": linear,
    "saturating": saturating,
    "power": power,
    "quadratic": quadratic,
    "usl": usl,
}


class Windowed(Gate):
    """The window under test, used as `Accounts` uses it."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.trace: list[float] = []  # the window without probes, at each end
        self._leases: dict[int, tuple[int, Mark]] = {}
        self._next = 1

    def room(self, now: float) -> bool:
        return self.window.inflight + 1 <= self.window.value

    def take(self, request: Request, now: float) -> None:
        self._leases[id(request)] = (self._next, self.window.take(now))
        self._next += 1

    def ended(self, request: Request, now: float) -> None:
        lease, mark = self._leases.pop(id(request))
        self.window.learn(
            mark, lease, self._next, request.prompt_tokens, request.output_tokens, now
        )
        self.window.give_back(now)
        self.window.check()
        self.trace.append(self.window.base)


def window(initial: int = 16, high: int = 256) -> Window:
    it = Window("m", initial)
    it.configure(2, high)
    return it


def provider(shape: str, seed: int) -> tuple[Provider, int]:
    """A provider of this shape with parameters drawn by the seed, and its knee: 4 to 40 in
    flight, noise 0.1 to 0.4, base 0.05 to 2 s, 2 to 100 ms a token."""
    rng = Random(f"{shape} {seed}")
    knee = round(math.exp(rng.uniform(math.log(4), math.log(40))))
    made = Provider(
        SHAPES[shape](knee),
        base_s=math.exp(rng.uniform(math.log(0.05), math.log(2))),
        prompt_token_s=rng.choice([0.0, 1e-4, 5e-4]),
        output_token_s=math.exp(rng.uniform(math.log(0.002), math.log(0.1))),
        noise=rng.uniform(0.1, 0.4),
    )
    return made, knee


def best_window(slowdown: Slowdown, high: int = 256) -> tuple[int, float]:
    """The best static window and its throughput, in requests served at once at full speed."""
    best = max(range(1, high + 1), key=lambda n: (round(n / slowdown(n), 9), -n))
    return best, best / slowdown(best)
