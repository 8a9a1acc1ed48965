"""The engine's listeners, called in one guarded place.

Rules:
1. A listener that raises stops nothing: the engine goes on, the next listener is called.
2. Each fault is counted (`sagesched_listener_faults_total`). The first of each method, and one
   every `QUIET_S` after it, is logged with its traceback and alarmed.
3. A method that a listener does not override is not called.
4. What only counts or writes down the ends of requests (`batched`) is called later, with all
   the records that wait: once there are `BATCH`, at each tick of the gateway, and before
   whatever shows figures. That is cheaper, and no reply waits for it. What decides about the
   next request is called at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from gateway.types import JobRecord, Listener

logger = logging.getLogger("gateway.engine")
QUIET_S = 60.0
BATCH = 32  # records, whose work is too short to hold up a reply
METHODS = tuple(name for name in vars(Listener) if not name.startswith("_"))


class Listeners(Listener):
    """Passes each call on to those of `listeners` that override the method, in their order.

    Args:
        clock: monotonic seconds.
        soon: makes a call after the present turn of the loop.
        listeners: may be replaced at any time, from within a call too.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        soon: Callable[[Callable[[], None]], object],
        listeners: tuple[Listener, ...] = (),
    ) -> None:
        self.faults = 0  # calls that raised, ever
        self._clock = clock
        self._soon = soon
        self._quiet_until_s: dict[str, float] = {}  # by listener and method
        self._records: list[JobRecord] = []  # that `batched` has not been called with
        self.replace(listeners)

    def __repr__(self) -> str:
        return f"<Listeners, {len(self._records)} records wait; {self.faults} faults>"

    def replace(
        self,
        listeners: tuple[Listener, ...],
        batched: tuple[Callable[[JobRecord], None], ...] = (),
    ) -> None:
        """Call these from now on, and no others; `batched` with records, at a flush."""
        self.flush()
        self._call_batched = self._guarded(batched)
        for method in METHODS:
            calls = [
                getattr(listener, method)
                for listener in listeners
                if getattr(type(listener), method) is not getattr(Listener, method)
            ]
            if method == "ended" and batched:
                calls.append(self._put_off)
            setattr(self, method, self._guarded(tuple(calls)))

    def flush(self) -> None:
        """Call `batched` with the records that wait."""
        records, self._records = self._records, []
        for record in records:
            self._call_batched(record)

    def _put_off(self, record: JobRecord) -> None:
        self._records.append(record)
        if len(self._records) == BATCH:
            self._soon(self.flush)

    def _guarded(self, calls: tuple[Callable[..., None], ...]) -> Callable[..., None]:
        """A call of each of `calls`, whatever becomes of the others."""

        def call_each(*args: Any) -> None:
            for call in calls:
                try:
                    call(*args)
                except Exception as error:
                    self._report(call, error, args)

        return call_each

    def _report(self, call: Callable[..., None], error: Exception, args: tuple[Any, ...]) -> None:
        self.faults += 1
        name, now = _name(call), self._clock()
        if now < self._quiet_until_s.get(name, 0.0):
            return
        self._quiet_until_s[name] = now + QUIET_S
        logger.error(
            "listener %s raised; the request goes on",
            name,
            exc_info=error,
            extra={"faults": self.faults, "request_id": getattr(args[0], "id", None)},
        )
        if call.__name__ != "alarm":
            self.alarm("listener_failed", f"{name}: {type(error).__name__}: {error}"[:200])


def _name(call: Callable[..., None]) -> str:
    """The listener's class and its method."""
    return call.__qualname__.rpartition(".<locals>.")[2]
