"""A transport without a socket, for connections whose other end is a test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Wire(asyncio.Transport):
    """Keeps what was written; closes and pauses when told.

    `unsent` is what it says is still in its write buffer; `on_write` is called after each write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.writes = 0
        self.on_write: Callable[[], None] | None = None
        self.unsent = 0
        self.paused = False
        self.aborted = False
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)
        self.writes += 1
        if self.on_write is not None:
            self.on_write()

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.aborted or self.closed

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
