from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from gateway.errors import GatewayError
from gateway.schedule import overload
from gateway.schedule.overload import (
    CONGESTED_ABOVE,
    DROP_RATIO,
    HYSTERESIS,
    MODERATE_ABOVE,
    RETRY_MAX_S,
    RETRY_UNKNOWN_S,
    SLOWDOWN,
    Grade,
    backlog_severity,
    deferred_from,
    next_mode,
    no_account,
    pressure,
    rejected_from,
    retry_after_s,
    severity,
)
from gateway.types import Mode, SizeBucket
from tests.unit.schedule.build import settings

GIVEN = settings(schedule={"reject_above": 2.0}).schedule


def walk(*saturations: float) -> list[Mode]:
    mode, seen = Mode.FREE, []
    for saturation in saturations:
        mode = next_mode(mode, saturation)
        seen.append(mode)
    return seen


def test_mode_rises_at_its_entry() -> None:
    """The mode rises at the entry, also past a mode in one step."""
    assert walk(0.69, 0.7, 1.19, 1.2) == [
        Mode.FREE,
        Mode.MODERATE,
        Mode.MODERATE,
        Mode.CONGESTED,
    ]
    assert walk(5.0) == [Mode.CONGESTED]


def test_mode_falls_only_well_below_its_entry() -> None:
    """The mode falls at (1 − HYSTERESIS) × the entry, so that a hovering number does not flap."""
    assert walk(1.2, 1.1, 1.03, 1.01) == [Mode.CONGESTED] * 3 + [Mode.MODERATE]
    assert walk(0.7, 0.6, 0.59) == [Mode.MODERATE, Mode.MODERATE, Mode.FREE]
    assert walk(1.5, 0.1) == [Mode.CONGESTED, Mode.FREE]


def test_pressure_grows_between_the_modes_entries() -> None:
    """Pressure is 1 when free and 2 when congested."""
    found = [pressure(s) for s in (0.0, 0.7, 0.95, 1.2, 9.0)]
    assert found == pytest.approx([1.0, 1.0, 1.5, 2.0, 2.0])


def test_grade_is_by_what_is_reserved() -> None:
    """A job is short by its forecast, whatever it reserves; beyond that grades go in powers of
    four."""
    grades = [Grade.of(n, SizeBucket.MEDIUM) for n in (200, 256, 257, 1024, 1025)]
    assert grades == [Grade.MEDIUM, Grade.MEDIUM, Grade.LONG, Grade.LONG, Grade.HUGE]
    assert Grade.of(5000, SizeBucket.SHORT) is Grade.SHORT


def test_severity_is_the_worst_of_three() -> None:
    """Backlog, drops and slowdown are each 1 where overload begins; the worst counts."""
    assert severity(0.5, 0.0, 1.0) == 0.5
    assert severity(0.0, DROP_RATIO, 1.0) == 1.0
    assert severity(0.0, 0.0, 2 * SLOWDOWN) == 2.0


def test_backlog_is_measured_against_the_shortest_patience() -> None:
    """The backlog is measured against clear_s, or a default deadline where that is shorter."""
    assert backlog_severity(30.0, GIVEN) == 0.5
    given = settings(schedule={"heavy_deadline_s": 15.0, "interactive_deadline_s": 0.0}).schedule
    assert backlog_severity(30.0, given) == 2.0
    given = settings(schedule={"heavy_deadline_s": 15.0, "interactive_deadline_s": 0.5}).schedule
    assert backlog_severity(30.0, given) == 60.0
    given = settings(schedule={"heavy_deadline_s": 90.0, "interactive_deadline_s": 90.0}).schedule
    assert backlog_severity(30.0, given) == 0.5


def test_ladder_sheds_the_dearest_first_and_shorts_never() -> None:
    """The steps are: defer huge, defer long, reject huge, reject long, reject medium."""
    levels = (0.9, 1.0, 1.5, 2.0, 3.0, 4.0, 1e9)
    deferred = [deferred_from(Grade.NONE, level, GIVEN) for level in levels]
    rejected = [rejected_from(Grade.NONE, level, GIVEN) for level in levels]
    none, huge, long = Grade.NONE, Grade.HUGE, Grade.LONG
    assert deferred == [none, huge, long, long, long, long, long]
    assert rejected == [none, none, none, huge, long, Grade.MEDIUM, Grade.MEDIUM]


def test_ladder_steps_down_only_well_below_an_entry() -> None:
    """A step is left at (1 − HYSTERESIS) × its entry."""
    assert deferred_from(Grade.HUGE, 0.86, GIVEN) is Grade.HUGE
    assert deferred_from(Grade.HUGE, 0.84, GIVEN) is Grade.NONE
    assert deferred_from(Grade.LONG, 1.3, GIVEN) is Grade.LONG
    assert deferred_from(Grade.LONG, 1.2, GIVEN) is Grade.HUGE
    assert rejected_from(Grade.HUGE, 1.75, GIVEN) is Grade.HUGE
    assert rejected_from(Grade.NONE, 1.75, GIVEN) is Grade.NONE


def test_ladder_can_be_off() -> None:
    """With shed = false nothing is deferred or rejected."""
    given = settings(schedule={"shed": False}).schedule
    assert deferred_from(Grade.NONE, 99.0, given) is Grade.NONE
    assert rejected_from(Grade.NONE, 99.0, given) is Grade.NONE


def test_retry_after_is_the_drain_jittered_and_bounded() -> None:
    """Retry-After varies by 25 %, is at least most of a second and at most a minute, and a guess
    where nothing is known."""
    random = Random(1)
    found = [retry_after_s(20.0, random) for _ in range(500)]
    assert 15.0 <= min(found) < 15.5
    assert 24.5 < max(found) <= 25.0
    assert all(45.0 <= retry_after_s(1e9, random) <= RETRY_MAX_S for _ in range(50))
    assert all(0.75 <= retry_after_s(0.0, random) <= 1.25 for _ in range(50))
    assert retry_after_s(None, random) == pytest.approx(RETRY_UNKNOWN_S, rel=0.25)


def test_no_account_says_whether_a_retry_can_help() -> None:
    """A retry cannot help where only the operator can."""
    never = no_account(float("inf"))
    assert (never.should_retry, never.retry_after_s) == (False, None)
    soon = no_account(12.0)
    assert (soon.should_retry, soon.retry_after_s) == (None, 12.0)


@pytest.mark.parametrize(
    ("refusal", "status", "code", "text"),
    [
        (overload.queue_full, 429, "queue_full", "the queue is full"),
        (overload.tenant_queue_full, 429, "queue_full", "too many of your requests are waiting"),
        (overload.overloaded, 429, "overloaded", "too much work is waiting for a request of this"),
        (overload.hopeless, 429, "deadline_unreachable", "cannot be answered before its deadline"),
        (overload.queue_timeout, 503, "queue_timeout", "waited too long for a free slot"),
        (overload.no_account, 503, "no_account", "no account can serve this model in time"),
        (overload.draining, 503, "draining", "the gateway is shutting down"),
    ],
)
def test_refusal_says_what_why_and_when_to_come_again(
    refusal: Callable[[float], GatewayError], status: int, code: str, text: str
) -> None:
    """A refusal has a status and code for programs, a sentence for people, a Retry-After for
    SDKs."""
    error = refusal(12.0)
    assert (error.status, error.code, error.retry_after_s) == (status, code, 12.0)
    assert text in str(error)
    assert error.should_retry is None


def test_no_account_gives_a_retry_after_that_sdks_heed() -> None:
    """The time is one second to a minute; for ever is not a time."""
    assert [no_account(s).retry_after_s for s in (0.0, 0.5, 59.0, 3600.0)] == [1.0, 1.0, 59.0, 60.0]
    never = no_account(float("inf"))
    assert (never.status, never.code, str(never)) == (
        503,
        "no_account",
        "no account can serve this model",
    )


def test_retry_after_is_plain_without_jitter() -> None:
    """Without jitter Retry-After is bounded at both ends all the same."""
    assert [retry_after_s(s, None) for s in (None, 0.0, 20.0, 1e9)] == [5.0, 1.0, 20.0, 60.0]


def test_ladder_rejects_in_steps_of_its_first() -> None:
    """Long jobs are rejected at one and a half times, medium at twice the backlog that rejects the
    huge."""
    edges = (1.99, 2.0, 2.99, 3.0, 3.99, 4.0)
    none, huge, long = Grade.NONE, Grade.HUGE, Grade.LONG
    assert [rejected_from(none, level, GIVEN) for level in edges] == [
        none, huge, huge, long, long, Grade.MEDIUM,
    ]  # fmt: skip
    assert rejected_from(Grade.MEDIUM, 3.45, GIVEN) is Grade.MEDIUM
    assert rejected_from(Grade.MEDIUM, 3.35, GIVEN) is Grade.LONG


def test_ladder_stays_at_a_step_to_its_last_level() -> None:
    """A step is kept at exactly (1 − HYSTERESIS) × its entry, the lowest one included."""
    stay = 1.0 - HYSTERESIS
    none, huge, long = Grade.NONE, Grade.HUGE, Grade.LONG
    assert deferred_from(huge, GIVEN.defer_above * stay, GIVEN) is huge
    assert deferred_from(none, GIVEN.defer_above * stay, GIVEN) is none
    assert deferred_from(long, 1.5 * stay, GIVEN) is long
    assert rejected_from(huge, GIVEN.reject_above * stay, GIVEN) is huge
    assert rejected_from(long, 1.5 * GIVEN.reject_above * stay, GIVEN) is long
    assert next_mode(Mode.CONGESTED, CONGESTED_ABOVE * stay) is Mode.CONGESTED
    assert next_mode(Mode.MODERATE, MODERATE_ABOVE * stay) is Mode.MODERATE
