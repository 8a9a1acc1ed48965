"""The last N things that happened, for `GET /events`.

A ring: the newest stay, the oldest fall off. Every event has a position, counted from the
start of the process, so a reader that comes back with the position it got last learns exactly
how many fell off unseen in between: nothing is lost silently. Belongs to the loop.

What the engine tells (its Listener: submitted … ended) and what the shell tells, the journal
words: one method per kind, and that is the whole list of kinds. No prompt, key or answer text:
ids, names, numbers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import islice

from msgspec import Struct

from gateway.types import Job, JobRecord, LifeEvent, Listener, Mode, Outcome, Verdict, Workload

Detail = str | float | int | None


class Tail(Struct, frozen=True):
    """A stretch of the journal.

    `next` is what to pass as `since` the next time; `dropped` counts the events after `since`
    that had fallen off before they were asked for.
    """

    events: list[LifeEvent]
    next: int
    dropped: int


class Journal(Listener):
    """A ring of `size` life-cycle records. `wall` gives Unix seconds."""

    def __init__(self, size: int, wall: Callable[[], float] = time.time) -> None:
        self._ring: deque[LifeEvent] = deque(maxlen=size)
        self._wall = wall
        self._count = 0  # events ever

    @property
    def dropped(self) -> int:
        """Events that have fallen off the ring, ever."""
        return self._count - len(self._ring)

    def resize(self, size: int) -> None:
        """A new length, keeping the newest."""
        if size != self._ring.maxlen:
            self._ring = deque(self._ring, maxlen=size)

    def clear(self) -> None:
        """Forgets all; positions go on, and what was there counts as dropped."""
        self._ring.clear()

    def tail(self, n: int, since: int | None = None) -> Tail:
        """The newest `n` events; or, with `since`, the first `n` that came after it."""
        first = self.dropped  # position of the ring's oldest
        if since is None:
            start, missed = max(first, self._count - n), 0
        else:
            since = min(max(since, 0), self._count)
            start, missed = max(first, since), max(0, first - since)
        events = list(islice(self._ring, start - first, start - first + n))
        return Tail(events=events, next=start + len(events), dropped=missed)

    # — what can happen —

    def submitted(self, job: Job) -> None:
        forecast = job.workload
        self._of(
            "submitted",
            job,
            tenant=job.tenant,
            model=job.model,
            job_class=job.job_class,
            p50=forecast.p50,
            p90=forecast.p90,
            p_short=forecast.p_short,
            rung=forecast.rung,
            prompt_tokens=forecast.prompt_tokens,
            n=job.n,
        )

    def reforecast(self, job: Job, workload: Workload) -> None:
        """`job` as it was; `workload` is the better forecast."""
        self._of(
            "reforecast",
            job,
            p50_before=job.workload.p50,
            p50=workload.p50,
            p90=workload.p90,
            p_short=workload.p_short,
            rung=workload.rung,
            job_class=job.class_override or workload.job_class,
        )

    def dispatched(self, job: Job, account: str, queue_s: float, attempt: int) -> None:
        self._of("dispatched", job, account=account, queue_s=queue_s, attempt=attempt)

    def retried(self, job: Job, account: str, verdict: Verdict) -> None:
        """An attempt on `account` came to `verdict`; another may follow."""
        self._of("retried", job, account=account, verdict=verdict)

    def refused(self, job: Job, outcome: Outcome, code: str | None) -> None:
        """Turned away (`refused`), or removed from its queue (`evicted`)."""
        event = "evicted" if outcome is Outcome.EVICTED else "refused"
        self._of(event, job, tenant=job.tenant, outcome=outcome, code=code)

    def ended(self, record: JobRecord) -> None:
        """The whole request is over."""
        usage = record.usage
        self.add(
            "finished",
            job=record.id,
            outcome=record.outcome,
            status=record.status,
            account=record.account,
            attempts=record.attempts,
            output_tokens=None if usage is None else usage.output_tokens,
            queue_s=record.queue_s,
            ttft_s=record.ttft_s,
            total_s=record.total_s,
            cost_usd=record.cost_usd,
            error_code=record.error_code,
        )

    def mode(self, pool: str, before: Mode, after: Mode, saturation_ratio: float) -> None:
        self.add("mode", pool=pool, before=before, mode=after, saturation_ratio=saturation_ratio)

    def account(self, name: str, before: str, after: str, *, limit: float) -> None:
        """An account changed its state (open, backoff, ejected, …)."""
        self.add("account", account=name, before=before, state=after, limit=limit)

    def limited(self, name: str, verdict: Verdict, *, before: float, limit: float) -> None:
        """An account's concurrency limit was cut."""
        self.add("limited", account=name, verdict=verdict, before=before, limit=limit)

    def reloaded(self, generation: int, error: str | None = None, *, changed: bool = True) -> None:
        """A reload or admin patch: applied, equal to what was in force, or refused (`error`)."""
        unchanged = None if changed else 1
        ok = int(error is None)
        self.add("reloaded", generation=generation, ok=ok, unchanged=unchanged, error=error)

    def reset(self, scope: str) -> None:
        """An operator's `POST /reset`."""
        self.add("reset", scope=scope)

    def alarm(self, event: str, reason: str) -> None:
        """A fault of the gateway: `rebuilt` (the scheduler's core), `listener_failed`."""
        self.add(event, reason=reason)

    def draining(self, running: int, waiting: int) -> None:
        """The stop has begun."""
        self.add("draining", running=running, waiting=waiting)

    # — how it is written down —

    def _of(self, event: str, job: Job, **detail: Detail) -> None:
        self.add(event, job=job.id, pool=job.pool, **detail)

    def add(
        self, event: str, *, job: str | None = None, pool: str | None = None, **detail: Detail
    ) -> None:
        """An event with what is known of it; None is left out."""
        known: dict[str, Detail] = {k: v for k, v in detail.items() if v is not None}
        self._ring.append(LifeEvent(self._wall(), event, job, pool, known))
        self._count += 1
