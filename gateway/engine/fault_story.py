"""The story of a fault: the last events that a scheduler was fed before it raised, for the log.

It holds no prompt, key or text of a provider, and keeps no error object, whose traceback would
hold whole frames. tests/kit/story.py plays it again.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from msgspec import to_builtins
from msgspec.structs import replace

from gateway.errors import UpstreamFailed
from gateway.schedule.events import AttemptFailed, Event

logger = logging.getLogger("gateway.engine")
STORY, STORY_PART = 200, 20  # events kept, events a log line

_UNLOGGED = frozenset({"error", "settings"})  # may hold a provider's text, or names of secrets
_NO_ERROR = UpstreamFailed("not kept")


class FaultStory:
    """The last `STORY` events that one scheduler was fed."""

    def __init__(self) -> None:
        self._events: deque[tuple[float, Event]] = deque(maxlen=STORY)

    def note(self, event: Event, now: float) -> None:
        """Keep an event, before the scheduler is fed it."""
        if isinstance(event, AttemptFailed):
            event = replace(event, error=_NO_ERROR)
        self._events.append((now, event))

    def clear(self) -> None:
        """Begin anew, with another scheduler."""
        self._events.clear()

    def log(self) -> None:
        """Write the events to the log, oldest first."""
        story = [_plain_values(event, at_s) for at_s, event in self._events]
        for first in range(0, len(story), STORY_PART):
            part = story[first : first + STORY_PART]
            logger.error("events before the fault", extra={"first": first, "story": part})


def _plain_values(event: Event, at_s: float) -> dict[str, Any]:
    """An event as plain values, without prompt, key or text."""
    members = [name for name in event.__struct_fields__ if name not in _UNLOGGED]
    values = {name: to_builtins(getattr(event, name), enc_hook=str) for name in members}
    return {"event": type(event).__name__, "at_s": at_s, **values}
