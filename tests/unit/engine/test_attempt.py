"""One attempt: the client's error for a failed one, and the time limits of its body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.engine.attempt import CUT_SHORT, TimedBody, error_of
from gateway.errors import UpstreamFailed, UpstreamRefused, UpstreamTimeout
from gateway.upstream.http_client import BROKEN, SLOW_NEXT_BYTE, AttemptError
from gateway.upstream.providers import target
from tests.unit.schedule.build import settings

UNUSED: Any = None


def test_error_of_a_failure_is_a_sentence_with_its_code() -> None:
    """A time-out is a 504; a failure without words of the provider is otherwise a 502."""
    error = error_of(replace(CUT_SHORT, retry_after_s=3.0))
    assert type(error) is UpstreamFailed
    assert (error.status, error.code, error.retry_after_s) == (502, "upstream_broken", 3.0)
    assert error.message == "The provider's stream ended before its end."
    assert type(error_of(SLOW_NEXT_BYTE)) is UpstreamTimeout


def test_error_of_a_refusal_is_the_providers_own() -> None:
    """A refusal keeps its status and its body."""
    error = error_of(replace(CUT_SHORT, status=400, body=b'{"error":{}}'))
    assert isinstance(error, UpstreamRefused)
    assert (error.status, error.body) == (400, b'{"error":{}}')


class Timer:
    """A timer handle; its callback is called when the clock passes `at_s`."""

    def __init__(self, at_s: float, callback: Callable[[], None]) -> None:
        self.at_s, self.callback = at_s, callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class World:
    """A loop with a clock of its own, and the two ends of a body in place of real ones."""

    def __init__(self, idle_s: float, write_s: float) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.aborted = self.was_stalled = False
        account = settings({"a": {"idle_timeout_s": idle_s}}).accounts[0]
        ends: Any = self
        self.body = TimedBody(ends, target(account, "key"), UNUSED, ends, write_s, ends)

    # as the loop
    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay_s, callback))
        return self.timers[-1]

    # as the answer and the response
    def read_some(self) -> None: ...

    def abort(self) -> None:
        self.aborted = True

    def write(self, body: bytes) -> bool:
        return False

    def drained(self) -> None: ...

    def stalled(self) -> None:
        self.was_stalled = True

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [t for t in self.timers if not t.cancelled and t.at_s <= end]:
            first = min(due, key=lambda timer: timer.at_s)
            self.timers.remove(first)
            self.now = first.at_s
            first.callback()
        self.now = end


def test_timed_body_waits_for_each_chunk_anew() -> None:
    """A body that comes in many chunks may take longer than the time-out of one wait, whether
    the chunks are held or sent on between the reads."""
    world = World(idle_s=10.0, write_s=10.0)
    with world.body as body:
        for held in (True, False) * 5:
            body.read()
            world.pass_time(7.0)
            if not held and not body.write(b"x"):
                body.drained()
                world.pass_time(7.0)
        assert not world.aborted
        assert not world.was_stalled
    assert world.timers == [] or all(timer.cancelled for timer in world.timers)


def end_of(world: World, seconds: float, *, writing: bool) -> AttemptError:
    """The failure of a body that breaks off, in the wait for one end, after so long."""
    try:
        with world.body as body:
            body.read()
            body.write(b"x")
            body.drained()
            if not writing:
                body.read()
            world.pass_time(seconds)
            raise AttemptError(BROKEN)
    except AttemptError as error:
        return error


@pytest.mark.parametrize("write_s", [1.0, 30.0])
def test_timed_body_fails_a_provider_that_falls_silent(write_s: float) -> None:
    """After the idle time-out of one wait the answer is dropped, and what breaks off with that
    counts as too slow."""
    world = World(idle_s=10.0, write_s=write_s)
    assert end_of(world, 9.9, writing=False).failure is BROKEN
    assert not world.aborted
    world = World(idle_s=10.0, write_s=write_s)
    assert end_of(world, 10.1, writing=False).failure is SLOW_NEXT_BYTE
    assert (world.aborted, world.was_stalled) == (True, False)


@pytest.mark.parametrize("idle_s", [1.0, 30.0])
def test_timed_body_reports_a_client_that_takes_nothing(idle_s: float) -> None:
    """A write that lasts longer than the time-out stalls the response; the provider is not
    blamed."""
    world = World(idle_s=idle_s, write_s=10.0)
    assert end_of(world, 9.9, writing=True).failure is BROKEN
    assert not world.was_stalled
    world = World(idle_s=idle_s, write_s=10.0)
    assert end_of(world, 10.1, writing=True).failure is BROKEN
    assert (world.aborted, world.was_stalled) == (False, True)
