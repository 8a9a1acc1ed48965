from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any, cast

import pytest

from gateway.engine.loop_lag import COARSE_S, FADE, TICK_S, LoopLag

pytestmark = pytest.mark.anyio

WHOLE_S = 10.0


class LateLoop:
    """A loop that calls its one timer as late as it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers = 0
        self._call: Callable[[], None] | None = None

    def clock(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        assert (delay_s, self._call) == (TICK_S, None)
        self.timers += 1
        self._call = call

    def tick(self, late_s: float = 0.0) -> None:
        """The timer's call, `late_s` after it was due by a clock as coarse as uvloop's."""
        call, self._call = self._call, None
        assert call is not None
        self.now_s += TICK_S + COARSE_S + late_s
        call()


def watched(busy: list[int] | None = None) -> tuple[LateLoop, LoopLag]:
    loop = LateLoop()
    lag = LoopLag(cast(Any, loop), loop.clock, [1] if busy is None else busy)
    lag.watch()
    return loop, lag


def late_s(loop: LateLoop, lag: LoopLag, service_s: float = 8.0) -> float:
    """Seconds that `own_s` adds to those that were surely not the provider's."""
    return lag.own_s(loop.now_s - WHOLE_S, service_s) - (WHOLE_S - service_s)


def test_loop_lag_adds_twice_the_worst_recent_lateness() -> None:
    """The worst lateness of recent ticks counts twice, and fades by each tick."""
    loop, lag = watched()
    assert late_s(loop, lag) == 0.0
    loop.tick(0.5)
    assert late_s(loop, lag) == pytest.approx(1.0)
    loop.tick(0.1)
    assert late_s(loop, lag) == pytest.approx(FADE)
    loop.tick(0.9)
    assert late_s(loop, lag) == pytest.approx(1.8)


def test_loop_lag_counts_a_tick_that_is_overdue() -> None:
    """The present turn of the loop counts before its tick could."""
    loop, lag = watched()
    loop.now_s += TICK_S + COARSE_S + 0.3
    assert late_s(loop, lag) == pytest.approx(0.6)


def test_loop_lag_is_at_most_the_whole_and_all_of_what_is_shorter_than_a_tick() -> None:
    """Own time is never more than the whole; what took the provider less than a tick may all be
    the gateway's."""
    loop, lag = watched()
    assert late_s(loop, lag, TICK_S) == 0.0
    assert late_s(loop, lag, 0.99 * TICK_S) == pytest.approx(0.99 * TICK_S)
    loop.tick(50.0)
    assert lag.own_s(loop.now_s - WHOLE_S, 8.0) == WHOLE_S


def test_loop_lag_ticks_only_while_there_is_something_to_watch() -> None:
    """One timer however often it is asked; none once nothing is under way, and a new beginning
    knows nothing of before."""
    busy = [1]
    loop, lag = watched(busy)
    lag.watch()
    loop.tick(0.5)
    lag.watch()
    assert loop.timers == 2
    busy.clear()
    loop.tick()
    assert loop.timers == 2
    lag.watch()
    assert loop.timers == 3
    assert late_s(loop, lag) == 0.0


async def test_loop_lag_covers_the_time_that_bytes_lay_unread() -> None:
    """On a real loop: bytes that lay in a socket while the loop was busy are no service time."""
    loop = asyncio.get_running_loop()
    lag = LoopLag(loop, monotonic, [1])
    near, far = socket.socketpair()
    with near, far:
        heard = loop.create_future()
        near.setblocking(False)
        loop.add_reader(near, lambda: heard.done() or heard.set_result(monotonic()))
        lag.watch()
        far.send(b"an answer, at once")
        sent_s = monotonic()
        while monotonic() < sent_s + 0.06:
            pass
        heard_s = await heard
        loop.remove_reader(near)
        assert lag.own_s(sent_s, heard_s - sent_s) >= 0.06
