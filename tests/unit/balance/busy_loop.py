"""A gateway whose one thread is busy, between clients in a closed loop and a provider.

Time is virtual. The loop turns as an event loop does: it takes all that is due, works through it,
and sees only then what has come meanwhile; so what it adds to latencies grows with the requests
under way. What it adds is handed to the window as the engine hands it (engine/loop_lag.py).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from gateway.balance.inflight import Mark
from gateway.balance.window import Window

TICK_S = 0.02


class BusyLoop:
    """Args: `work_s`: the thread's time for one request, a quarter each to read it and its answer
    and half to start it; `told`: the window is told what was the gateway's own."""

    def __init__(self, window: Window, work_s: float, *, told: bool = True) -> None:
        self.window = window
        self.trace: list[float] = []  # the window at each answer
        self.waited_s: list[float] = []  # for the window, of each request
        self._work_s = work_s
        self._told = told
        self._now = 0.0
        self._lease = 1
        self._late_s = deque([0.0], maxlen=4)
        self._due_s = 0.0
        self._events: list[tuple[float, int, str, Any]] = []
        self._waiting: deque[float] = deque()

    def run(
        self, clients: int, seconds: float, latency_s: Callable[[float], float], noise: float = 0.0
    ) -> None:
        """So many clients ask again as soon as they are answered; the provider takes `latency_s`
        of the number in flight. Then all that is under way ends."""
        rng = Random(1)
        until_s = self._now + seconds
        self.trace, self.waited_s = [], []
        for _ in range(clients):
            self._push(self._now, "asked")
        self._push(self._now + TICK_S, "tick")
        self._due_s = self._now + TICK_S
        while self._events:
            self._now = max(self._now, self._events[0][0])
            turn = []
            while self._events and self._events[0][0] <= self._now:
                turn.append(heapq.heappop(self._events))
            for _, _, kind, data in turn:
                if kind == "tick":
                    self._tick(again=self._now < until_s)
                elif kind == "asked":
                    if self._now < until_s:
                        self._now += self._work_s / 4
                        self._waiting.append(self._now)
                else:
                    self._answered(*data)
                    self._push(self._now, "asked")
                self._start(latency_s, rng, noise)

    def _push(self, at_s: float, kind: str, data: Any = None) -> None:
        heapq.heappush(self._events, (at_s, len(self.trace) + self._lease, kind, data))
        self._lease += 1

    def _tick(self, *, again: bool) -> None:
        self._late_s.append(self._now - self._due_s)
        if again:
            self._due_s = self._now + TICK_S
            self._push(self._due_s, "tick")

    def _start(self, latency_s: Callable[[float], float], rng: Random, noise: float) -> None:
        window = self.window
        while self._waiting and window.inflight + 1 <= window.value:
            self.waited_s.append(self._now - self._waiting.popleft())
            lease, mark = self._lease, window.take(self._now)
            self._now += self._work_s / 2
            took_s = latency_s(window.inflight) * rng.lognormvariate(0.0, noise)
            self._push(self._now + took_s, "answered", (lease, mark, self._now))

    def _answered(self, lease: int, mark: Mark, sent_s: float) -> None:
        whole_s = self._now - mark.since_s
        late_s = max(*self._late_s, self._now - self._due_s, 0.0)
        own_s = min(sent_s - mark.since_s + 2 * late_s, whole_s) if whole_s > TICK_S else whole_s
        self.window.learn(
            mark, lease, self._lease, 12.0, 20.0, self._now, own_s if self._told else 0.0
        )
        self.window.give_back(self._now)
        self.window.check()
        self._now += self._work_s / 4
        self.trace.append(self.window.value)
