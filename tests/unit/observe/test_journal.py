"""The ring of events: bounded, in order, and every loss is known."""

from __future__ import annotations

from itertools import count

import msgspec

from gateway.observe.journal import Journal
from gateway.types import Outcome, Rung, Verdict
from tests.unit.observe.records import job, record, workload


def journal(size: int = 10) -> Journal:
    ticks = count(1)
    return Journal(size, str, wall=lambda: float(next(ticks)))


def numbered(events: list[msgspec.Struct]) -> list[object]:
    return [event.detail["n"] for event in events]  # type: ignore[attr-defined]


def test_journal_keeps_the_newest_and_counts_the_rest() -> None:
    """Events kept and events dropped add up to all events."""
    ring = journal(10)
    for i in range(25):
        ring.add("tick", n=i)
    tail = ring.tail(100)()
    assert numbered(tail.events) == list(range(15, 25))
    assert ring.dropped + len(tail.events) == 25
    assert numbered(ring.tail(3)().events) == [22, 23, 24]
    assert ring.tail(0)().events == []


def test_journal_read_in_pages_misses_nothing() -> None:
    """Passing `next` back as `since` gives each event once, in order."""
    ring, seen, since = journal(10), [], 0
    for i in range(40):
        ring.add("tick", n=i)
        if i % 4 == 3:
            while (page := ring.tail(3, since)()).events:
                seen += numbered(page.events)  # type: ignore[arg-type]
                since = page.next
                assert page.dropped == 0
    assert seen == list(range(40))


def test_journal_read_too_late_says_how_many_were_missed() -> None:
    """The twin: a reader slower than the ring learns the exact number it did not see."""
    ring = journal(10)
    for i in range(25):
        ring.add("tick", n=i)
    page = ring.tail(4, since=2)()
    assert page.dropped == 13
    assert numbered(page.events) == [15, 16, 17, 18]
    assert page.next == 19


def test_journal_since_beyond_the_end_is_the_end() -> None:
    """A position that was never reached (another process's) gives nothing and no loss."""
    ring = journal()
    ring.add("tick", n=0)
    assert (ring.tail(5, since=999)().events, ring.tail(5, since=999)().next) == ([], 1)


def test_journal_resized_and_cleared_keeps_its_positions() -> None:
    """A shorter ring keeps the newest; clearing counts as dropped."""
    ring = journal(10)
    for i in range(10):
        ring.add("tick", n=i)
    ring.resize(4)
    assert numbered(ring.tail(100)().events) == [6, 7, 8, 9]
    assert ring.dropped == 6
    ring.clear()
    ring.add("tick", n=10)
    assert ring.dropped == 10
    assert ring.tail(5, since=10)().events == ring.tail(5)().events


def test_journal_has_an_event_for_each_step_of_a_job() -> None:
    """Each call of the engine's is one event of its kind, with its details."""
    ring = journal(20)
    ring.submitted(job())
    ring.reforecast(job(), workload(20.0, 40.0, Rung.GLOBAL_NEIGHBORS))
    ring.dispatched(job(), "a", 0.5, 1)
    ring.retried(job(), "a", Verdict.RATE_LIMITED)
    ring.refused(job(), Outcome.REJECTED, "queue_full")
    ring.refused(job(), Outcome.EVICTED, "deadline")
    ring.ended(record())
    events = ring.tail(20)().events
    assert [event.event for event in events] == [
        "submitted",
        "reforecast",
        "dispatched",
        "retried",
        "refused",
        "evicted",
        "finished",
    ]
    assert [event.wall_s for event in events] == [1, 2, 3, 4, 5, 6, 7]
    assert {(e.job, e.pool) for e in events[:-1]} == {("j-1", "p")}
    assert events[0].detail["rung"] == "model_only"
    assert (events[1].detail["p50_before"], events[1].detail["p50"]) == (80.0, 20.0)
    assert events[2].detail == {"account": "a", "queue_s": 0.5, "attempt": 1}
    assert events[3].detail == {"account": "a", "verdict": "rate_limited"}
    assert events[5].detail == {"tenant": "demo", "outcome": "evicted", "code": "deadline"}
    assert events[6].job == "req-1"
    assert events[6].detail["output_tokens"] == 90


def test_journal_has_a_kind_for_each_event_of_the_process() -> None:
    """Reloads, resets, rebuilds and the drain have their kinds."""
    ring = journal(20)
    ring.reloaded(4)
    ring.reloaded(4, "accounts: expected at least one")
    ring.reloaded(4, changed=False)
    ring.reset("stats")
    ring.alarm("rebuilt", "KeyError")
    ring.draining(running=3, waiting=2)
    events = ring.tail(20)().events
    assert [event.event for event in events] == [
        "reloaded", "reloaded", "reloaded", "reset", "rebuilt", "draining",
    ]  # fmt: skip
    assert events[0].detail == {"generation": 4, "ok": 1}
    assert events[1].detail["ok"] == 0
    assert events[2].detail == {"generation": 4, "ok": 1, "unchanged": 1}


def test_journal_events_are_json() -> None:
    """An event is JSON as it is, without the details that are None."""
    ring = journal()
    ring.refused(job(), Outcome.REJECTED, None)
    line = msgspec.json.decode(msgspec.json.encode(ring.tail(1)().events[0]))
    assert line == {
        "wall_s": 1.0,
        "event": "refused",
        "job": "j-1",
        "pool": "p",
        "detail": {"tenant": "demo", "outcome": "rejected"},
    }
