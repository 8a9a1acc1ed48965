"""The journal: the last events of the gateway's life, for `GET /events`.

A ring: the newest stay, the oldest fall off. Every event has a position, counted from the
start of the process. A reader that comes back with its last position learns how many events
fell off in between, so nothing is lost silently. For the loop's thread only, but for the wording.

One method per kind of event: those of the engine's listeners, and those of the process itself.
Most events are never read, so the details of one are made when it is (`_DETAILS`): from jobs and
records, which do not change. An event holds ids, names and numbers, never a prompt, key or answer
text: texts are masked, since a provider's error code may echo a key.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from msgspec import Struct

from gateway.types import Job, JobRecord, LifeEvent, Listener, Outcome, Verdict, Workload

Detail = str | float | int | None
_Kept = tuple[float, str, tuple[Any, ...]]
"""An event's Unix time, its kind, and what the method of its kind was given, or its details."""


class Tail(Struct, frozen=True):
    """A stretch of the journal.

    `next` is the `since` for the next call; `dropped` counts the events after `since` that had
    already fallen off.
    """

    events: list[LifeEvent]
    next: int
    dropped: int


class Journal(Listener):
    """A ring of `size` life-cycle records. `masked` masks keys, `wall` gives Unix seconds."""

    def __init__(
        self,
        size: int,
        masked: Callable[[str], str],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._ring: deque[_Kept] = deque(maxlen=size)
        self._masked = masked
        self._wall = wall
        self._count = 0  # events ever

    def __repr__(self) -> str:
        return f"Journal({len(self._ring)} of {self._count} events)"

    @property
    def dropped(self) -> int:
        """Events that have fallen off the ring, ever."""
        return self._count - len(self._ring)

    def resize(self, size: int) -> None:
        """Change the length, keeping the newest."""
        if size != self._ring.maxlen:
            self._ring = deque(self._ring, maxlen=size)

    def clear(self) -> None:
        """Drop all events; positions go on."""
        self._ring.clear()

    def tail(self, n: int, since: int | None = None) -> Callable[[], Tail]:
        """The newest `n` events; or, with `since`, the first `n` that came after it. What is
        returned words them, on any thread: a microsecond or two an event."""
        first = self.dropped  # position of the ring's oldest
        if since is None:
            start, missed = max(first, self._count - n), 0
        else:
            since = min(max(since, 0), self._count)
            start, missed = max(first, since), max(0, first - since)
        kept = list(islice(self._ring, start - first, start - first + n))
        return lambda: Tail(
            events=[self._worded(*one) for one in kept],
            next=start + len(kept),
            dropped=missed,
        )

    # — the kinds of events —

    def submitted(self, job: Job) -> None:
        """A job was handed to the scheduler, with its first forecast."""
        self._keep("submitted", job)

    def reforecast(self, job: Job, workload: Workload) -> None:
        """A better forecast, `workload`, replaces the job's first one."""
        self._keep("reforecast", job, workload)

    def dispatched(self, job: Job, account: str, queue_s: float, attempt: int) -> None:
        """An attempt on `account` begins."""
        self._keep("dispatched", job, account, queue_s, attempt)

    def retried(self, job: Job, account: str, verdict: Verdict) -> None:
        """An attempt on `account` came to `verdict`; another may follow."""
        self._keep("retried", job, account, verdict)

    def refused(self, job: Job, outcome: Outcome, code: str | None) -> None:
        """A job was turned away (`refused`) or removed from its queue (`evicted`)."""
        self._keep("evicted" if outcome is Outcome.EVICTED else "refused", job, outcome, code)

    def ended(self, record: JobRecord) -> None:
        """A request is over (`finished`)."""
        self._keep("finished", record)

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

    # — the ring —

    def add(self, event: str, **detail: Detail) -> None:
        """Append an event that is of no job; details that are None are left out."""
        self._keep(event, detail)

    def _keep(self, event: str, *given: Any) -> None:
        self._ring.append((self._wall(), event, given))
        self._count += 1

    def _worded(self, wall_s: float, event: str, given: tuple[Any, ...]) -> LifeEvent:
        details = _DETAILS[event](*given) if event in _DETAILS else given[0]
        return LifeEvent(
            wall_s=wall_s,
            event=event,
            job=getattr(given[0], "id", None),
            pool=getattr(given[0], "pool", None),
            detail={
                name: self._masked(value) if isinstance(value, str) else value
                for name, value in details.items()
                if value is not None
            },
        )


def _forecast(forecast: Workload) -> dict[str, Detail]:
    return {
        "p50": forecast.p50,
        "p90": forecast.p90,
        "p_short": forecast.p_short,
        "rung": forecast.rung,
    }


_DETAILS: Mapping[str, Callable[..., Mapping[str, Detail]]] = {
    "submitted": lambda job: {
        "tenant": job.tenant,
        "model": job.model,
        "job_class": job.job_class,
        **_forecast(job.workload),
        "prompt_tokens": job.workload.prompt_tokens,
        "n": job.n,
    },
    "reforecast": lambda job, workload: {
        "p50_before": job.workload.p50,
        **_forecast(workload),
        "job_class": job.class_override or workload.job_class,
    },
    "dispatched": lambda job, account, queue_s, attempt: {
        "account": account,
        "queue_s": queue_s,
        "attempt": attempt,
    },
    "retried": lambda job, account, verdict: {"account": account, "verdict": verdict},
    "refused": lambda job, outcome, code: {"tenant": job.tenant, "outcome": outcome, "code": code},
    "evicted": lambda job, outcome, code: {"tenant": job.tenant, "outcome": outcome, "code": code},
    "finished": lambda record: {
        "outcome": record.outcome,
        "status": record.status,
        "account": record.account,
        "attempts": record.attempts,
        "output_tokens": None if record.usage is None else record.usage.output_tokens,
        "queue_s": record.queue_s,
        "ttft_s": record.ttft_s,
        "total_s": record.total_s,
        "cost_usd": record.cost_usd,
        "error_code": record.error_code,
    },
}
"""By kind, the details of an event of a job: of what its method was given."""
