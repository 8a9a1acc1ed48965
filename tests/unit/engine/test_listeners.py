"""A listener that raises stops neither the engine nor the other listeners."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from gateway.balance.accounts import Accounts
from gateway.engine.engine import Engine
from gateway.engine.listeners import QUIET_S, Listeners
from gateway.schedule.events import SettingsChanged
from gateway.schedule.scheduler import Scheduler
from gateway.settings.schema import Settings
from gateway.types import Job, JobRecord, Listener, Outcome, Verdict
from tests.unit.observe.records import record
from tests.unit.schedule.build import job, settings


class Raising(Listener):
    """Raises in each method that the tests let be called."""

    def submitted(self, job: Job) -> None:
        raise KeyError("submitted")

    def dispatched(self, job: Job, account: str, queue_s: float, attempt: int) -> None:
        raise KeyError("dispatched")

    def retried(self, job: Job, account: str, verdict: Verdict) -> None:
        raise KeyError("retried")

    def ended(self, record: JobRecord) -> None:
        raise KeyError("ended")

    def alarm(self, event: str, reason: str) -> None:
        raise KeyError("alarm")


class Noting(Listener):
    """Notes the ends and the alarms."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.alarms: list[tuple[str, str]] = []

    def ended(self, record: JobRecord) -> None:
        self.ends.append(record.id)

    def alarm(self, event: str, reason: str) -> None:
        self.alarms.append((event, reason))


def engine(given: Settings, *listeners: Listener) -> Engine:
    """An engine on the running loop, its core's accounts limited as the settings say."""

    def build(given: Settings, old: Scheduler | None) -> Scheduler:
        return Scheduler(given, Accounts(given.accounts, given.balance))

    return Engine(build(given, None), build, listeners)


def on_a_loop(play: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(5.0):
            await play()

    asyncio.run(bounded())


def test_feed_carries_out_every_action_when_a_listener_raises() -> None:
    """Two jobs that one event starts both get their account, and the event is not reported as
    failed to whoever fed it."""

    async def play() -> None:
        one = engine(settings({"a": {"initial_concurrency": 1}}), Raising())
        permits = [one.submit(job(f"j{n}", at=one.clock()), 0) for n in range(3)]
        assert [permit.account for permit in permits] == ["a", None, None]
        wider = {"a": {"initial_concurrency": 1}, "b": {"initial_concurrency": 2}}
        assert one.feed(SettingsChanged(settings(wider))) == 2
        assert [permit.account for permit in permits] == ["a", "b", "b"]
        for permit in permits:
            permit.end(Outcome.OK, Verdict.SUCCESS)
        one.check()
        assert one.jobs == 0
        one.close()

    on_a_loop(play)


def test_feed_arms_the_timer_when_a_listener_raises() -> None:
    """A job that the account's pace holds back is started by the timer alone, although the
    listener raised on the job that the same event started before it."""

    async def play() -> None:
        one = engine(settings({"a": {"initial_concurrency": 1}}), Raising())
        permits = [one.submit(job(f"j{n}", at=one.clock()), 0) for n in range(3)]
        paced = {"a": {"initial_concurrency": 1}, "b": {"initial_concurrency": 2, "rpm": 55}}
        assert one.feed(SettingsChanged(settings(paced))) == 1
        assert [permit.account for permit in permits] == ["a", "b", None]
        assert await permits[2].granted() == "b"
        one.close()

    on_a_loop(play)


def test_listener_that_raises_is_counted_and_alarmed_and_the_next_is_called() -> None:
    """The fault is counted, the alarm names the listener, its method and the error, and the next
    listener is called."""
    noting = Noting()
    listeners = Listeners(lambda: 0.0, (Raising(), noting))
    listeners.ended(record())
    assert noting.ends == ["req-1"]
    assert noting.alarms == [("listener_failed", "Raising.ended: KeyError: 'ended'")]
    assert listeners.faults == 2  # the alarm raised as well


def test_listener_that_always_raises_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every fault is counted; the log and the alarms get the first of each method, and another
    one after `QUIET_S`."""
    now = 0.0
    noting = Noting()
    listeners = Listeners(lambda: now, (Raising(), noting))
    with caplog.at_level(logging.ERROR, "gateway.engine"):
        for _ in range(100):
            listeners.submitted(job("j"))
        listeners.retried(job("j"), "a", Verdict.TIMEOUT)
        now = QUIET_S
        listeners.submitted(job("j"))
    methods = [reason.split(":")[0] for _, reason in noting.alarms]
    assert methods == ["Raising.submitted", "Raising.retried", "Raising.submitted"]
    lines = [r.getMessage() for r in caplog.records if "Raising.alarm" not in r.getMessage()]
    assert len(lines) == 3
    assert lines[0] == "listener Raising.submitted raised; the request goes on"
    assert len(noting.alarms) == 3
    assert listeners.faults == 102 + 3


def test_listeners_call_only_what_a_listener_overrides() -> None:
    """An empty method of the base class is not called for every request."""

    class Loud(Listener):
        def __getattribute__(self, name: str) -> object:
            assert name not in ("submitted", "reforecast", "refused"), "looked up"
            return super().__getattribute__(name)

        def ended(self, record: JobRecord) -> None:
            ended.append(record.id)

    ended: list[str] = []
    listeners = Listeners(lambda: 0.0, (Loud(),))
    listeners.submitted(job("j"))
    listeners.refused(job("j"), Outcome.EVICTED, None)
    listeners.ended(record())
    assert (ended, listeners.faults) == (["req-1"], 0)
