"""Lateness of the event loop, and with it the part of a latency that is the gateway's own.

What a provider has sent lies in its socket until the loop reads it. While the loop is busy that
takes long, more so the more requests are under way: taken for the provider's time, it would look
like congestion there. How long each byte lay is not known; a timer that is due now and then shows
it, as it has to wait for the loop just as bytes have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized

TICK_S = 0.02
COARSE_S = 0.001  # uvloop's timers are as late as this at any time
FADE = 0.8  # the worst lateness of recent ticks fades by this with each


class LoopLag:
    """Watches a loop while `busy` holds anything. `clock`: monotonic seconds."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float], busy: Sized
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._busy = busy
        self._ticks = False
        self._due_s = 0.0
        self._worst_s = 0.0

    def watch(self) -> None:
        """Begins to watch; to be called when there is something to do."""
        if not self._ticks:
            self._ticks = True
            self._worst_s = 0.0
            self._arm()

    def own_s(self, since_s: float, service_s: float) -> float:
        """Seconds since `since_s` that were not the provider's, at most; it took `service_s`.

        Bytes wait for the turn of the loop that is running and, in the next one, for those read
        before them, so twice the lateness of a timer. Between two ticks nothing is known: all of
        what was shorter may have been the gateway's.
        """
        now = self._clock()
        whole_s = now - since_s
        if service_s < TICK_S:
            return whole_s
        late_s = max(self._worst_s, now - self._due_s - COARSE_S)
        return min(whole_s - service_s + 2.0 * late_s, whole_s)

    def _arm(self) -> None:
        self._due_s = self._clock() + TICK_S
        self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        late_s = self._clock() - self._due_s - COARSE_S
        self._worst_s = max(late_s, FADE * self._worst_s)
        if self._busy:
            self._arm()
        else:
            self._ticks = False
