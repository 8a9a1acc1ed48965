"""A moment: something that happens once, at a known time, and that anyone may await.

The scripted provider lives on a thread of its own while tests are sync or async, so
the usual events (asyncio's, threading's) each serve only half of the users. A Moment
serves both, remembers *when* it happened, and always has a time-out, so that no test
ever sleeps to wait for something.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable


class Moment:
    """Happens at most once. Thread-safe; `at` is monotonic seconds, None until then."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.at: float | None = None
        self._lock = threading.Lock()
        self._happened = threading.Event()
        self._listeners: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Moment {self.name}: {'not yet' if self.at is None else f'{self.at:.3f}'}>"

    def __bool__(self) -> bool:
        return self.at is not None

    def mark(self) -> None:
        """Set the moment to now; marking twice keeps the first time."""
        with self._lock:
            if self.at is not None:
                return
            self.at = time.monotonic()
            listeners, self._listeners = self._listeners, []
        self._happened.set()
        for tell in listeners:
            tell()

    def wait(self, timeout_s: float = 5.0) -> float:
        """Block the thread until it happened; its time. Raises TimeoutError."""
        if not self._happened.wait(timeout_s) or self.at is None:
            raise TimeoutError(f"{self.name}: not within {timeout_s} s")
        return self.at

    async def reached(self, timeout_s: float = 5.0) -> float:
        """As `wait`, on the running loop."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(woken.set)

        with self._lock:
            if self.at is not None:
                return self.at
            self._listeners.append(tell)
        try:
            async with asyncio.timeout(timeout_s):
                await woken.wait()
        except TimeoutError:
            raise TimeoutError(f"{self.name}: not within {timeout_s} s") from None
        finally:
            with self._lock:
                if tell in self._listeners:
                    self._listeners.remove(tell)
        assert self.at is not None
        return self.at
