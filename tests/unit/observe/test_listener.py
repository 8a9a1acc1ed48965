"""Those who only hear the end."""

from __future__ import annotations

from gateway.observe.listener import AtEnd
from gateway.types import JobRecord
from tests.unit.observe.records import job, record


def test_at_end_tells_everybody_even_when_one_fails() -> None:
    """A hearer that raises is counted; the next is told all the same."""
    heard: list[str] = []

    def broken(record: JobRecord) -> None:
        raise KeyError("label")

    listener = AtEnd(lambda r: heard.append("first"), broken, lambda r: heard.append(r.id))
    listener.ended(record())
    assert heard == ["first", "req-1"]
    assert listener.failed == 1


def test_at_end_hears_nothing_before_the_end() -> None:
    """A job's way is not its end."""
    heard: list[JobRecord] = []
    listener = AtEnd(heard.append)
    listener.submitted(job())
    listener.dispatched(job(), "a", 0.1, 1)
    assert heard == []
    listener.ended(record())
    assert heard == [record()]
