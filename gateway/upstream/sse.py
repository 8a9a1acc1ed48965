"""Server-sent events: bytes in, whole events out, wherever the network cut them. Pure.

Source: WHATWG HTML, "Server-sent events", parsing an event stream. Each event keeps its bytes
exactly, terminator included, so what is relayed is what was received.

1. A line ends with CRLF, LF or CR, so a chunk that ends in CR may end in half a line end: the
   event waits for one more byte.
2. An event too large to hold is passed on in pieces of type `Piece`, so that a piece that begins
   with `data:` is not taken for an event.
3. Blank lines between events belong to the event after them.
"""

from __future__ import annotations

import re

_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINES = re.compile(rb"\r\n|\n|\r")
_TAIL = 3  # bytes at the end of a chunk that may be part of an event's end: CR LF CR
BOM = b"\xef\xbb\xbf"


class Piece(bytes):
    """A part of an event that is too long to hold; all parts joined are the event."""

    __slots__ = ()


class Splitter:
    """Splitter of a byte stream into events.

    Args:
        max_bytes: a longer event comes in pieces (`Piece`), so that a provider cannot fill the
            memory. At most `max_bytes` and one chunk are held.
    """

    __slots__ = ("_held", "_long", "_max_bytes", "_searched")

    def __init__(self, max_bytes: int = 2**20) -> None:
        self._held = b""
        self._searched = 0  # bytes of `_held` in which no end begins
        self._long = False  # pieces of the event under way were passed on
        self._max_bytes = max_bytes

    def takes_whole(self, chunk: bytes) -> bool:
        """True where `chunk` is one plain event and nothing is held before it: `feed` would give
        it back."""
        return (
            not self._held and not self._long and len(chunk) <= self._max_bytes and is_plain(chunk)
        )

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes, each with its terminator, and pieces."""
        data = self._held + chunk if self._held else chunk
        if not self._long and len(data) <= self._max_bytes and b"\r" not in data:
            return self._lf_events(data)
        events: list[bytes] = []
        start = 0
        for match in _END.finditer(data, self._searched):
            end = match.end()
            if end == len(data) and data.endswith(b"\r"):
                break  # its "\n" may come with the next chunk
            event = data[start:end]
            events.append(Piece(event) if self._long or end - start > self._max_bytes else event)
            self._long = False
            start = end
        held = data[start:]
        if len(held) > self._max_bytes:
            events.append(Piece(held[:-_TAIL]))
            held = held[-_TAIL:]
            self._long = True
        self._held, self._searched = held, max(len(held) - _TAIL, 0)
        return events

    def _lf_events(self, data: bytes) -> list[bytes]:
        """`feed` where lines end with LF and no event is too long."""
        events: list[bytes] = []
        if data.find(b"\n\n", self._searched) >= 0:
            events = data.split(b"\n\n")
            data = events.pop()
            events = [event + b"\n\n" for event in events]
        self._held, self._searched = data, max(len(data) - _TAIL, 0)
        return events

    def rest(self) -> bytes:
        """The bytes after the last whole event; the splitter is empty afterwards."""
        held = Piece(self._held) if self._long else self._held
        self._held, self._searched, self._long = b"", 0, False
        return held


def is_plain(event: bytes) -> bool:
    """True of one `data: ` line alone, ended by LF LF, as nearly every event is."""
    return (
        event.startswith(b"data: ")
        and event.find(b"\n") == len(event) - 2
        and event.endswith(b"\n")
        and b"\r" not in event
    )


def data_of(event: bytes) -> bytes | None:
    """The event's data lines joined with a line feed; None for comments and field-only events.

    A byte order mark before the first line is skipped.
    """
    if is_plain(event):
        return event[6:-2]
    lines = []
    body = event.removeprefix(BOM)
    for line in _LINES.split(body) if b"\r" in body else body.split(b"\n"):
        if line.startswith(b"data:"):
            value = line[5:]
            lines.append(value[1:] if value.startswith(b" ") else value)
        elif line == b"data":
            lines.append(b"")
    return b"\n".join(lines) if lines else None


def event_of(data: bytes) -> bytes:
    """An event that carries `data`, which has no line break."""
    return b"data: " + data + b"\n\n"


def with_data(event: bytes, data: bytes) -> bytes:
    """`event` with `data`, which has no line break, in place of its data lines.

    Other lines and line ends are kept.
    """
    if is_plain(event):
        return event_of(data)
    lines: list[bytes] = []
    written = False
    position = 0
    mark = BOM if event.startswith(BOM) else b""
    body = event.removeprefix(BOM)
    for match in _LINES.finditer(body):
        line, end = body[position : match.start()], match[0]
        position = match.end()
        if line != b"data" and not line.startswith(b"data:"):
            lines.append(line + end)
        elif not written:
            lines.append(b"data: " + data + end)
            written = True
    last = body[position:]  # the last event of a stream may lack its end
    if last == b"data" or last.startswith(b"data:"):
        last = b"" if written else b"data: " + data
    return mark + b"".join(lines) + last
