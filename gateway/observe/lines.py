"""Lines to a file descriptor, without waiting for its reader.

Writing must not hold up the loop, yet a line should be out before a crash, so there is no
queue and no second thread. Before each write the descriptor is polled: a pipe or a socket that
is writable takes CHUNK_BYTES at once (pipe(7): PIPE_BUF), a file always does. While the reader
does not read, lines wait in a bounded backlog. Lines beyond it are lost and counted, and a
line of its own reports the loss as soon as there is room.
"""

from __future__ import annotations

import collections
import os
import select
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

CHUNK_BYTES = 4096
HOLD_BYTES = 16 * 1024
BACKLOG_BYTES = 2**20

_encoder = msgspec.json.Encoder(enc_hook=str)


@lru_cache(maxsize=4)
def _second(wall_s: int) -> str:
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def utc(wall_s: float) -> str:
    """RFC 3339 in UTC, to the millisecond (cut, not rounded)."""
    whole = int(wall_s)
    return f"{_second(whole)}.{int((wall_s - whole) * 1000):03d}Z"


def encode_line(
    level: str, message: str, fields: dict[str, Any], wall_s: float | None = None
) -> bytes:
    """One JSON object and a newline; values of other types are written as their `str`."""
    head = {"ts": utc(time.time() if wall_s is None else wall_s), "level": level, "msg": message}
    try:
        return _encoder.encode(head | fields) + b"\n"
    except (TypeError, ValueError, RecursionError):
        plain = {str(key): str(value) for key, value in fields.items()}
        return _encoder.encode(head | plain) + b"\n"


class LineWriter:
    """Writer of lines to a descriptor. Not thread-safe: the handler's lock guards it."""

    def __init__(self, fd: int, backlog_bytes: int = BACKLOG_BYTES) -> None:
        self.lost = 0  # lines, ever
        self._fd = fd
        self._bound = backlog_bytes
        self._waiting: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._unreported = 0
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, line: bytes) -> None:
        """Write the line, keep it for later, or lose it; a line is never cut."""
        if self._bytes + len(line) > self._bound:
            self.pump()
        if self._bytes + len(line) > self._bound:
            self.lost += 1
            self._unreported += 1
            return
        self._append(line)
        self.pump()

    def hold(self, line: bytes) -> None:
        """Keep the line for the next `pump` while there is little to write: one system call for
        many lines, and none on a request's way."""
        if self._bytes + len(line) > HOLD_BYTES:
            self.write(line)
        else:
            self._append(line)

    def pump(self, wait_s: float = 0.0) -> bool:
        """Write as much as the reader takes within `wait_s`. True when all is out."""
        end = time.monotonic() + wait_s if wait_s else 0.0
        while self._waiting:
            if not self._poll.poll(max(0.0, end - time.monotonic()) * 1000 if wait_s else 0):
                return False
            if not self._write_some():
                return False
            if not self._waiting and self._unreported:
                unreported, self._unreported = self._unreported, 0
                self._append(encode_line("warning", "log lines lost", {"lines": unreported}))
        return True

    def _append(self, line: bytes) -> None:
        self._waiting.append(line)
        self._bytes += len(line)

    def _next_chunk(self) -> bytes:
        """The oldest line, with the next ones that fit into the same write."""
        lines = [self._waiting.popleft()]
        size = len(lines[0])
        while self._waiting and size + len(self._waiting[0]) <= CHUNK_BYTES:
            lines.append(self._waiting.popleft())
            size += len(lines[-1])
        head = lines[0] if len(lines) == 1 else b"".join(lines)
        self._waiting.appendleft(head)
        return head

    def _write_some(self) -> bool:
        """Write one chunk. False where the descriptor took nothing after all."""
        head = self._next_chunk()
        try:
            taken = os.write(self._fd, head[:CHUNK_BYTES])
        except BlockingIOError:  # non-blocking, and another writer was faster
            return False
        except OSError:  # the reader has gone
            taken = len(head)
            self.lost += head.count(b"\n")
        self._bytes -= taken
        if taken < len(head):
            self._waiting[0] = head[taken:]
        else:
            self._waiting.popleft()
        return True
