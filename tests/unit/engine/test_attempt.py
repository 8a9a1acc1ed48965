"""One attempt: the client's error for a failed one, and the time limits of its body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.engine.attempt import CUT_SHORT, TimedBody, error_of
from gateway.errors import UpstreamFailed, UpstreamRefused, UpstreamTimeout
from gateway.upstream.http_client import BROKEN, SLOW_FIRST_BYTE, SLOW_NEXT_BYTE, AttemptError
from gateway.upstream.providers import Failure, target
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

    def __init__(self, first_s: float = 10.0, idle_s: float = 10.0, write_s: float = 10.0) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.aborted = self.was_stalled = self.complete = False
        limits = {"first_byte_timeout_s": first_s, "idle_timeout_s": idle_s}
        account = settings({"a": limits}).accounts[0]
        ends: Any = self
        self.body = TimedBody(ends, target(account, "key"), UNUSED, ends, write_s, ends)
        self.heard_s = 0.0

    # as the loop
    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay_s, callback))
        return self.timers[-1]

    # as the answer and the response
    def pour(self, sink: Callable[[bytes], bool]) -> None: ...

    def read_some(self) -> None: ...

    def abort(self) -> None:
        self.aborted = True

    def drained(self) -> None: ...

    def stalled(self) -> None:
        self.was_stalled = True

    def hear(self) -> None:
        """Some bytes of the provider."""
        self.heard_s = self.now

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [t for t in self.timers if not t.cancelled and t.at_s <= end]:
            first = min(due, key=lambda timer: timer.at_s)
            self.timers.remove(first)
            self.now = first.at_s
            first.callback()
        self.now = end

    def end(self) -> Failure:
        """The failure of the body, which breaks off now."""
        try:
            with self.body:
                raise AttemptError(BROKEN)
        except AttemptError as error:
            return error.failure


def test_timed_body_waits_for_each_chunk_anew() -> None:
    """A body that comes in many chunks may take longer than the time-out of one wait, whether the
    chunks are read one by one, poured, or sent on between."""
    world = World()
    with world.body as body:
        for _ in range(5):
            body.read()
            world.pass_time(7.0)
            body.drained()
            world.pass_time(7.0)
        body.pour(lambda _: True)
        for _ in range(5):
            world.pass_time(7.0)
            world.hear()
        assert not world.aborted
        assert not world.was_stalled
    assert all(timer.cancelled for timer in world.timers)


@pytest.mark.parametrize("other_s", [1.0, 30.0])
def test_timed_body_fails_a_provider_that_falls_silent(other_s: float) -> None:
    """After the idle time-out of one wait the answer is dropped, and what breaks off with that
    counts as too slow."""
    for late in (False, True):
        world = World(first_s=other_s, write_s=other_s)
        world.body.pour(lambda _: True)
        world.pass_time(8.0)
        world.hear()
        world.pass_time(10.1 if late else 9.9)
        assert (world.aborted, world.was_stalled) == (late, False)
        assert world.end() is (SLOW_NEXT_BYTE if late else BROKEN)


def test_timed_body_gives_the_first_event_one_limit() -> None:
    """Bytes before the first event do not begin the wait for it anew."""
    for seconds, failure in ((9.9, BROKEN), (10.1, SLOW_FIRST_BYTE)):
        world = World(idle_s=1.0, write_s=1.0)
        world.body.pour_first(lambda _: True)
        for _ in range(2):
            world.pass_time(seconds / 2)
            world.hear()
        assert world.end() is failure


@pytest.mark.parametrize("other_s", [1.0, 30.0])
def test_timed_body_reports_a_client_that_takes_nothing(other_s: float) -> None:
    """A wait for the client longer than the time-out stalls the response; the provider is not
    blamed."""
    for late in (False, True):
        world = World(first_s=other_s, idle_s=other_s)
        world.body.drained()
        world.pass_time(10.1 if late else 9.9)
        assert (world.aborted, world.was_stalled) == (False, late)
        assert world.end() is BROKEN


def test_timed_body_that_is_here_sets_no_timer() -> None:
    """Nobody waits for a provider whose answer is whole; the client is waited for all the same."""
    world = World()
    world.complete = True
    with world.body as body:
        body.pour_first(lambda _: True)
        body.pour(lambda _: True)
        body.read()
        assert not world.timers
        body.drained()
        assert world.timers
