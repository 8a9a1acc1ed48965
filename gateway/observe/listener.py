"""For those who only want to know how a request ended: metrics, the log, learning."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gateway.types import Job, JobRecord, Outcome, Verdict, Workload

log = logging.getLogger("sagesched.observe")


class AtEnd:
    """A listener of the engine that passes the end on to each of `hearers`, in order.

    A hearer that raises is logged and the next one is told: no chart is worth a request.
    """

    def __init__(self, *hearers: Callable[[JobRecord], None]) -> None:
        self._hearers = hearers
        self.failed = 0

    def ended(self, record: JobRecord) -> None:
        for hear in self._hearers:
            try:
                hear(record)
            except Exception:
                self.failed += 1
                log.exception("a listener failed", extra={"request_id": record.id})

    def submitted(self, job: Job) -> None:
        """Not of interest, like all that follows."""

    def dispatched(self, job: Job, account: str, queue_s: float, attempt: int) -> None: ...

    def reforecast(self, job: Job, workload: Workload) -> None: ...

    def retried(self, job: Job, account: str, verdict: Verdict) -> None: ...

    def refused(self, job: Job, outcome: Outcome, code: str | None) -> None: ...
