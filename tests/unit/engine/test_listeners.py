"""A listener that raises stops neither the engine nor the other listeners."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from gateway.balance.accounts import Accounts
from gateway.engine.engine import Engine
from gateway.engine.listeners import BATCH, QUIET_S, Listeners
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


def at_once(call: Callable[[], None]) -> None:
    call()


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
    listeners = Listeners(lambda: 0.0, at_once, (Raising(), noting))
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
    listeners = Listeners(lambda: now, at_once, (Raising(), noting))
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
    listeners = Listeners(lambda: 0.0, at_once, (Loud(),))
    listeners.submitted(job("j"))
    listeners.refused(job("j"), Outcome.EVICTED, None)
    listeners.ended(record())
    assert (ended, listeners.faults) == (["req-1"], 0)


def test_batched_listener_is_called_at_a_flush_in_order() -> None:
    """Records wait for a flush, while the other listeners have them at once; each is handed on
    once, in the order of their ends."""
    noting, batched = Noting(), Noting()
    listeners = Listeners(lambda: 0.0, at_once)
    listeners.replace((noting,), batched=(batched.ended,))
    names = [f"r{n}" for n in range(3)]
    for name in names:
        listeners.ended(record(id=name))
    assert (noting.ends, batched.ends) == (names, [])
    listeners.flush()
    listeners.flush()
    assert batched.ends == names


def test_batch_is_flushed_after_the_turn_that_fills_it() -> None:
    """The record that fills a batch asks once for a flush later in the loop; those that end
    meanwhile go with it, and the next batch is counted from zero."""
    later: list[Callable[[], None]] = []
    batched = Noting()
    listeners = Listeners(lambda: 0.0, later.append)
    listeners.replace((), batched=(batched.ended,))
    for n in range(BATCH + 5):
        listeners.ended(record(id=f"r{n}"))
    assert (batched.ends, len(later)) == ([], 1)
    later.pop()()
    assert batched.ends == [f"r{n}" for n in range(BATCH + 5)]
    for n in range(BATCH - 1):
        listeners.ended(record(id=f"s{n}"))
    assert later == []
    listeners.ended(record(id="last"))
    assert later == [listeners.flush]


def test_batched_listener_that_raises_loses_its_own_call_alone() -> None:
    """One record that a batched listener raises on is lost to it, and to no other listener; the
    fault is counted and alarmed as any other."""

    class Choosy(Noting):
        def ended(self, record: JobRecord) -> None:
            if record.id == "bad":
                raise KeyError("bad")
            super().ended(record)

    choosy, noting, alarmed = Choosy(), Noting(), Noting()
    listeners = Listeners(lambda: 0.0, at_once)
    listeners.replace((alarmed,), batched=(choosy.ended, noting.ended))
    for name in ("one", "bad", "two"):
        listeners.ended(record(id=name))
    listeners.flush()
    assert choosy.ends == ["one", "two"]
    assert noting.ends == ["one", "bad", "two"]
    assert listeners.faults == 1
    assert [reason.split(":")[0] for _, reason in alarmed.alarms] == ["Choosy.ended"]


def test_listeners_that_are_replaced_have_all_that_ended_before() -> None:
    """Requests that ended under the old listeners are theirs, later ones the new listeners'."""
    old, new = Noting(), Noting()
    listeners = Listeners(lambda: 0.0, at_once)
    listeners.replace((), batched=(old.ended,))
    listeners.ended(record(id="before"))
    listeners.replace((), batched=(new.ended,))
    listeners.ended(record(id="after"))
    listeners.flush()
    assert (old.ends, new.ends) == (["before"], ["after"])


def test_engine_hands_on_what_ended_before_it_shows_figures_and_at_its_close() -> None:
    """A snapshot, and the engine's close, flush."""

    async def play() -> None:
        batched = Noting()
        one = engine(settings({"a": {}}))
        one.listeners.replace((), batched=(batched.ended,))
        one.ended(record(id="shown"))
        assert batched.ends == []
        one.snapshot()
        assert batched.ends == ["shown"]
        one.ended(record(id="last"))
        one.close()
        assert batched.ends == ["shown", "last"]

    on_a_loop(play)
