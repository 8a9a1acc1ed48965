"""Server-sent events, pure: bytes in, whole events out, whatever the network cut.

Source: WHATWG HTML, "Server-sent events", parsing an event stream. The splitter keeps
each event's bytes exactly as they came, terminator included, so that what is relayed is
what was received.
"""

from __future__ import annotations

import re

_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINES = re.compile(rb"\r\n|\n|\r")


class Splitter:
    """Cuts a byte stream into events.

    An event longer than `max_bytes` is handed on in pieces: holding it whole would let a
    provider fill the memory. `whole` is False for such a piece.
    """

    __slots__ = ("_held", "_max_bytes")

    def __init__(self, max_bytes: int = 2**20) -> None:
        self._held = b""
        self._max_bytes = max_bytes

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes, each with its terminator."""
        data = self._held + chunk if self._held else chunk
        # The common case by far: one write of the provider is one or more whole events.
        if data.endswith(b"\n\n") and data.count(b"\n\n") == 1 and b"\r" not in data:
            self._held = b""
            return [data]
        events: list[bytes] = []
        start = 0
        for match in _END.finditer(data):
            if match.end() == len(data) and data.endswith(b"\r"):
                break  # its "\n" may come with the next chunk
            events.append(data[start : match.end()])
            start = match.end()
        self._held = data[start:]
        if len(self._held) > self._max_bytes:
            events.append(self._held)
            self._held = b""
        return events

    def rest(self) -> bytes:
        """What came after the last whole event; the splitter is empty afterwards."""
        held, self._held = self._held, b""
        return held


def data_of(event: bytes) -> bytes | None:
    """The event's data lines joined with a line feed; None for comments and field-only events."""
    if event.startswith(b"data: ") and event.find(b"\n") >= len(event) - 2:
        return event[6:].rstrip(b"\r\n")
    lines = []
    for line in _LINES.split(event):
        if line.startswith(b"data:"):
            value = line[5:]
            lines.append(value[1:] if value.startswith(b" ") else value)
        elif line == b"data":
            lines.append(b"")
    return b"\n".join(lines) if lines else None


def event_of(data: bytes) -> bytes:
    """One event that carries `data`, which holds no line break."""
    return b"data: " + data + b"\n\n"
