"""Relaying without a core that raised, and the story of the fault in the log."""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from gateway.balance.accounts import Accounts
from gateway.engine.failsafe import Failsafe
from gateway.engine.fault_story import STORY, STORY_PART
from gateway.errors import GatewayError, UpstreamRefused
from gateway.observe.lines import encode_line
from gateway.schedule.events import (
    Action,
    Answered,
    AttemptFailed,
    DrainStarted,
    Event,
    Finished,
    Reforecast,
    SettingsChanged,
    Submitted,
    Woke,
)
from gateway.schedule.scheduler import Scheduler
from gateway.settings.schema import Settings
from gateway.types import Outcome, RateLimits, Verdict
from tests.kit.ledger import Live
from tests.kit.story import play, story_of
from tests.unit.schedule.build import job, refused, settings, started, workload

GIVEN = settings({"a": {"initial_concurrency": 2}, "b": {"initial_concurrency": 1}})


class Faulty(Scheduler):
    """Raises when a job is forecast anew while two run and one has failed an attempt."""

    failed = False

    def handle(self, event: Event, now: float) -> list[Action]:
        actions = super().handle(event, now)
        self.failed |= isinstance(event, AttemptFailed)
        running = sum(entry.account is not None for entry in self.jobs.values())
        if isinstance(event, Reforecast) and running >= 2 and self.failed:
            raise RuntimeError(f"{running} run")
        return actions


def build(kind: type[Scheduler]) -> Callable[[Settings, Scheduler | None], Scheduler]:
    def core(given: Settings, old: Scheduler | None) -> Scheduler:
        fresh = kind if old is None else Scheduler  # what replaces it does not raise
        return fresh(given, Accounts(given.accounts, given.balance))

    return core


def failsafe(kind: type[Scheduler]) -> Failsafe:
    core = build(kind)
    return Failsafe(core(GIVEN, None), core, {}, lambda reason: None)


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The log's lines as the process writes them: JSON, decoded again."""
    return [
        json.loads(encode_line("error", r.getMessage(), {"first": r.first, "story": r.story}))
        for r in caplog.records
        if hasattr(r, "story")
    ]


def to_the_fault(safe: Failsafe) -> None:
    """Events that make `Faulty` raise, beside some that have no part in it."""
    now = 100.0
    for event in (
        Submitted(job("one", accounts=("a", "b"), at=100.0), 12),
        Submitted(job("two", accounts=("a", "b"), at=100.0)),
        Woke(),
        Answered("one", RateLimits(remaining_requests=3)),
        AttemptFailed("one", Verdict.SERVER_ERROR, UpstreamRefused(500, b"the secret")),
        SettingsChanged(GIVEN),
        Submitted(job("three", accounts=("b",), at=103.0)),
        Finished("three", Outcome.OK, Verdict.SUCCESS, 10.0, 5.0),
        Reforecast("two", workload(30)),
    ):
        safe.handle(event, now)
        now += 0.5


def test_story_in_the_log_reproduces_the_fault(caplog: pytest.LogCaptureFixture) -> None:
    """The logged events alone, fed to a core of the same kind, make it raise the same error at
    the last of them; a sound core takes them all."""
    with caplog.at_level(logging.ERROR, "gateway.engine"):
        safe = failsafe(Faulty)
        to_the_fault(safe)
    assert safe.rebuilds == 1
    story = story_of(logged(caplog))
    assert story[-1]["event"] == "Reforecast"
    core = build(Faulty)
    play(story[:-1], core(GIVEN, None))
    with pytest.raises(RuntimeError, match="2 run"):
        play(story, core(GIVEN, None))
    sound = build(Scheduler)(GIVEN, None)
    play(story, sound)
    sound.check()


def test_story_holds_no_text_and_no_settings(caplog: pytest.LogCaptureFixture) -> None:
    """A provider's error and the settings, which name secrets, stay out of the log."""
    with caplog.at_level(logging.ERROR, "gateway.engine"):
        to_the_fault(failsafe(Faulty))
    text = json.dumps(logged(caplog))
    assert "AttemptFailed" in text
    assert "SettingsChanged" in text
    for word in ("the secret", "api_key", "env:KEY", "base_url"):
        assert word not in text


def test_story_is_bounded_and_begins_anew_with_each_core(caplog: pytest.LogCaptureFixture) -> None:
    """The story has the last `STORY` events, `STORY_PART` to a line; after a rebuild it has those
    fed to the new core."""

    class Once(Scheduler):
        def handle(self, event: Event, now: float) -> list[Action]:
            actions = super().handle(event, now)
            if isinstance(event, Reforecast):
                raise RuntimeError("reforecast")
            return actions

    def core(given: Settings, old: Scheduler | None) -> Scheduler:
        return Once(given, Accounts(given.accounts, given.balance))

    live = job("lives", accounts=("a",))
    ledger = {"lives": Live(live, live.workload, "a", 1)}
    safe = Failsafe(core(GIVEN, None), core, ledger, lambda reason: None)
    with caplog.at_level(logging.ERROR, "gateway.engine"):
        for second in range(1000):
            safe.handle(Woke(), float(second))
        safe.handle(Reforecast("lives", workload(30)), 1000.0)
    lines = logged(caplog)
    assert [len(line["story"]) for line in lines] == [STORY_PART] * (STORY // STORY_PART)
    caplog.clear()
    with caplog.at_level(logging.ERROR, "gateway.engine"):
        safe.handle(Reforecast("lives", workload(20)), 1001.0)
    assert [entry["event"] for entry in story_of(logged(caplog))] == ["Adopted", "Reforecast"]


def test_core_that_cannot_drain_is_left_out() -> None:
    """A fault in the drain itself raises nothing either: jobs go around the core, and new ones
    are refused."""

    class Undrained(Scheduler):
        def handle(self, event: Event, now: float) -> list[Action]:
            if isinstance(event, DrainStarted):
                raise RuntimeError("drain")
            return super().handle(event, now)

    def core(given: Settings, old: Scheduler | None) -> Scheduler:
        return Undrained(given, Accounts(given.accounts, given.balance))

    waits = job("waits", accounts=("a",))
    safe = Failsafe(core(GIVEN, None), core, {"waits": Live(waits, waits.workload)}, lambda _: None)
    assert started(safe.handle(DrainStarted(), 0.0)) == ["waits"]
    assert refused(safe.handle(Submitted(job("new")), 1.0)) == {
        "new": ("draining", Outcome.REJECTED)
    }


def test_story_keeps_no_error_alive() -> None:
    """The story holds no error object, whose frames would keep the request's body alive."""

    class Forgetful(Scheduler):
        def handle(self, event: Event, now: float) -> list[Action]:
            return []

    error = GatewayError("broken")
    gone = weakref.ref(error)
    safe = failsafe(Forgetful)
    safe.handle(AttemptFailed("one", Verdict.SERVER_ERROR, error), 1.0)
    del error
    assert gone() is None
