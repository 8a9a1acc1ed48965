"""Plays the story that the log of a fault holds: the events a scheduler was fed before it raised.

    story = story_of(gateway.log)           # or of any list of decoded log lines
    play(story, Scheduler(settings, …))     # raises as the gateway's scheduler did

Members that are not logged get a stand-in: the error of a failed attempt, and changed settings
(the given core's own).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_type_hints

import msgspec

from gateway.errors import UpstreamFailed
from gateway.schedule import events
from gateway.schedule.scheduler import Scheduler

Story = list[dict[str, Any]]


def story_of(lines: Iterable[dict[str, Any]]) -> Story:
    """The events of the last story in these log lines."""
    story: Story = []
    for line in lines:
        if line.get("msg") == "events before the fault":
            story = [*story, *line["story"]] if line["first"] else line["story"]
    return story


def play(story: Story, core: Scheduler) -> None:
    """Feed the events to a core, each at its own time. Raises what the core raises."""
    for line in story:
        core.handle(event_of(line, core), line["at_s"])


def event_of(line: dict[str, Any], core: Scheduler) -> events.Event:
    """The event of one entry of a story."""
    kind = getattr(events, line["event"])
    stand_ins = {"error": UpstreamFailed("not logged"), "settings": core.settings}
    members = {
        name: msgspec.convert(line[name], hint) if name in line else stand_ins[name]
        for name, hint in get_type_hints(kind).items()
        if not name.startswith("__")
    }
    return kind(**members)  # type: ignore[no-any-return]
