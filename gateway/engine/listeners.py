"""The engine's listeners, called in one guarded place.

Rules:
1. A listener that raises stops nothing: the engine goes on, the next listener is called.
2. Each fault is counted (`sagesched_listener_faults_total`). The first of each method, and one
   every `QUIET_S` after it, is logged with its traceback and alarmed.
3. A method that a listener does not override is not called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from gateway.types import Job, JobRecord, Listener, Outcome, Verdict, Workload

logger = logging.getLogger("gateway.engine")
QUIET_S = 60.0
METHODS = tuple(name for name in vars(Listener) if not name.startswith("_"))


class Listeners(Listener):
    """Passes each call on to those of `listeners` that override the method, in their order.

    Args:
        clock: monotonic seconds.
        listeners: may be replaced at any time, from within a call too.
    """

    def __init__(self, clock: Callable[[], float], listeners: tuple[Listener, ...] = ()) -> None:
        self.faults = 0  # calls that raised, ever
        self._clock = clock
        self._quiet_until_s: dict[str, float] = {}  # by listener and method
        self.replace(listeners)

    def __repr__(self) -> str:
        names = sorted({_name(call).partition(".")[0] for c in self._calls.values() for call in c})
        return f"<Listeners {', '.join(names)}; {self.faults} faults>"

    def replace(self, listeners: tuple[Listener, ...]) -> None:
        """Call these from now on, and no others."""
        self._calls: dict[str, tuple[Callable[..., None], ...]] = {
            method: tuple(
                getattr(listener, method)
                for listener in listeners
                if getattr(type(listener), method) is not getattr(Listener, method)
            )
            for method in METHODS
        }

    def submitted(self, job: Job) -> None:
        self._call("submitted", job)

    def dispatched(self, job: Job, account: str, queue_s: float, attempt: int) -> None:
        self._call("dispatched", job, account, queue_s, attempt)

    def reforecast(self, job: Job, workload: Workload) -> None:
        self._call("reforecast", job, workload)

    def retried(self, job: Job, account: str, verdict: Verdict) -> None:
        self._call("retried", job, account, verdict)

    def refused(self, job: Job, outcome: Outcome, code: str | None) -> None:
        self._call("refused", job, outcome, code)

    def ended(self, record: JobRecord) -> None:
        self._call("ended", record)

    def alarm(self, event: str, reason: str) -> None:
        self._call("alarm", event, reason)

    def _call(self, method: str, *args: Any) -> None:
        for call in self._calls[method]:
            try:
                call(*args)
            except Exception as error:
                self._report(call, error, args)

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
