"""`mode = "observe"`: every request is relayed at once, and noted with what would have been.

Beside the scheduler that relays (wide open, settings/effective.py) a second one, as configured,
is told the same arrivals and forecasts. Its dispatches start nothing; they say when the request
*would* have started. Two things it cannot see are estimated:

1. Its windows. Under naive load latencies are those of the crowd, so the shadow does not learn
   windows of its own: it gets, every `FOLLOW_S`, those that the real accounts learned from the
   real latencies, as plain ceilings.
2. How long the request would have taken: as long as it did, over the crowd's slowdown at the
   time. Within its window the provider would not have been crowded.

So `would` (start, refuse, or the reason to wait, at arrival) is the configured scheduler's own
decision on this traffic, and `would_wait_s` an estimate. `sagesched report` does better with
hindsight: it fits the provider to the whole journal and plays the traffic again.

A listener of the engine, on the loop. A fault in here is logged and ends the shadowing, never a
request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from heapq import heappop, heappush

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.schedule.events import (
    Action,
    Dispatch,
    Event,
    Finished,
    Recalibrated,
    Reforecast,
    Refuse,
    SettingsChanged,
    Submitted,
    Withdrawn,
    Woke,
)
from gateway.schedule.scheduler import Scheduler
from gateway.settings.schema import Settings
from gateway.snapshots import AccountSnapshot
from gateway.types import Blocked, Job, JobRecord, Listener, ObservedRow, Outcome, Verdict, Workload

logger = logging.getLogger("gateway.engine")
FOLLOW_S = 5.0
MOST_JOBS = 20_000
"""Known to the shadow at once; further ones are relayed and not noted."""

_encode = msgspec.msgpack.Encoder().encode


class _Seen(Struct):
    """One request's two lives."""

    job: Job
    last: Workload
    would: str = "start"
    would_start_s: float | None = None
    takes_s: float | None = None  # known when the real one has ended
    record: JobRecord | None = None


class Shadow(Listener):
    """The scheduler as configured, deciding for nobody.

    Args:
        settings: as configured, not wide open.
        build: a scheduler with accounts of its own.
        accounts: the real ones, now.
        clock: the engine's.
        noted: takes each row once both lives are over.
    """

    def __init__(
        self,
        settings: Settings,
        build: Callable[[Settings], Scheduler],
        accounts: Callable[[], tuple[AccountSnapshot, ...]],
        clock: Callable[[], float],
        noted: Callable[[ObservedRow], object],
    ) -> None:
        self._settings = settings
        self._accounts = accounts
        self._clock = clock
        self._noted = noted
        self._seen: dict[str, _Seen] = {}
        self._ends: list[tuple[float, str]] = []
        self._slowdowns: dict[str, float] = {}  # by account
        self._ceilings: dict[str, int] = {}
        self._followed_s = self._told_s = float("-inf")
        self._core = build(self._shadowed())
        self.broken = False

    # -- the engine's listener -----------------------------------------------------------------

    def submitted(self, job: Job) -> None:
        if not self.broken and len(self._seen) < MOST_JOBS:
            self._safely(lambda now: self._submit(job, now))

    def reforecast(self, job: Job, workload: Workload) -> None:
        seen = self._seen.get(job.id)
        if seen is not None and not self.broken:
            seen.last = workload
            self._safely(lambda now: self._tell(Reforecast(job.id, workload), now))

    def ended(self, record: JobRecord) -> None:
        if record.id in self._seen and not self.broken:
            self._safely(lambda now: self._end(record, now))

    def recalibrated(self, trust: float) -> None:
        """How far forecasts are trusted, as the scheduler that relays is told."""
        if not self.broken:
            self._safely(lambda now: self._tell(Recalibrated(trust), now))

    # -- the two lives -------------------------------------------------------------------------

    def tick(self) -> None:
        """Time has passed: ends that were due, windows that were learned."""
        if not self.broken:
            self._safely(lambda now: None)

    def close(self) -> None:
        """No more shadowing: what has really ended is noted, with the wait it would have had
        so far where it would still wait."""
        self.broken = True
        for job_id, seen in list(self._seen.items()):
            if seen.record is not None:
                if seen.would_start_s is None and seen.would != "refuse":
                    seen.would_start_s = self._clock()
                self._note(job_id)

    def _submit(self, job: Job, now: float) -> None:
        seen = self._seen[job.id] = _Seen(job, job.workload)
        self._tell(Submitted(job), now)
        if seen.would == "refuse" or seen.would_start_s is not None:
            return
        answer = self._core.fits(job.id, now)
        seen.would = answer.reason.value if isinstance(answer, Blocked) else "start"

    def _end(self, record: JobRecord, now: float) -> None:
        """The real life is over: now it is known how long the other takes."""
        seen = self._seen[record.id]
        seen.record = record
        crowd = self._slowdowns.get(record.account or "", 1.0)
        seen.takes_s = (record.upstream_s or 0.0) / max(1.0, crowd)
        if record.account is None or seen.would == "refuse":  # it never ran, there or here
            self._tell(Withdrawn(record.id), now)
            self._note(record.id)
        elif seen.would_start_s is not None:
            self._due(record.id, seen)

    def _due(self, job_id: str, seen: _Seen) -> None:
        assert seen.would_start_s is not None
        assert seen.takes_s is not None
        heappush(self._ends, (seen.would_start_s + seen.takes_s, job_id))

    def _advance(self, now: float) -> None:
        """Every end of the other life that was due, each at its own time."""
        while self._ends and self._ends[0][0] <= now:
            at_s, job_id = heappop(self._ends)
            seen = self._seen[job_id]
            usage = seen.record.usage if seen.record is not None else None
            tokens = None if usage is None else float(usage.output_tokens)
            self._tell(Finished(job_id, Outcome.OK, Verdict.SUCCESS, tokens), at_s)
            self._note(job_id)
        self._tell(Woke(), now)

    def _tell(self, event: Event, now: float) -> None:
        # An end is known late, when the real life is over: its time may be past by then.
        self._told_s = max(self._told_s, now)
        for action in self._core.handle(event, self._told_s):
            self._heed(action, now)

    def _heed(self, action: Action, now: float) -> None:
        seen = self._seen.get(action.job_id)
        if seen is None:
            return
        match action:
            case Dispatch():
                seen.would_start_s = max(now, seen.job.arrived_s)
                if seen.takes_s is not None:
                    self._due(action.job_id, seen)
            case Refuse():
                seen.would = "refuse"
                if seen.record is not None:
                    self._note(action.job_id)

    def _note(self, job_id: str) -> None:
        seen = self._seen.pop(job_id)
        record = seen.record
        assert record is not None
        start_s = seen.would_start_s
        self._noted(
            ObservedRow(
                arrived_wall_s=record.wall_s - record.total_s,
                tenant=record.tenant,
                model=record.model,
                account=record.account or "",
                outcome=record.outcome,
                status=record.status,
                n=record.n,
                prompt_tokens=record.usage.prompt_tokens if record.usage else 0,
                output_tokens=record.usage.output_tokens if record.usage else 0,
                first=_encode(seen.job.workload),
                last=_encode(seen.last),
                queue_s=record.queue_s,
                ttft_s=record.ttft_s or 0.0,
                upstream_s=record.upstream_s or 0.0,
                attempts=record.attempts,
                would=seen.would,
                would_wait_s=0.0 if start_s is None else start_s - seen.job.arrived_s,
            )
        )

    # -- what it follows -----------------------------------------------------------------------

    def _follow(self, now: float) -> None:
        """The learned windows as ceilings, the crowd's slowdown."""
        if now < self._followed_s + FOLLOW_S:
            return
        self._followed_s = now
        ceilings = {}
        for account in self._accounts():
            known = [w for w in account.windows if w.regime != "unknown"]
            if not known:
                continue
            self._slowdowns[account.name] = max(w.slowdown for w in known)
            ceilings[account.name] = max(1, round(sum(w.window for w in known)))
        if ceilings != self._ceilings:
            self._ceilings = ceilings
            self._tell(SettingsChanged(self._shadowed()), now)

    def _shadowed(self) -> Settings:
        accounts = [
            replace(account, initial_concurrency=ceiling, max_concurrency=ceiling)
            if (ceiling := self._ceilings.get(account.name))
            else account
            for account in self._settings.accounts
        ]
        balance = replace(self._settings.balance, window="off")
        return replace(self._settings, accounts=accounts, balance=balance)

    def _safely(self, call: Callable[[float], None]) -> None:
        now = self._clock()
        try:
            self._advance(now)
            self._follow(now)
            call(now)
        except Exception:
            self.broken = True
            self._seen.clear()
            logger.exception("observing ended: a fault of the gateway; requests are relayed on")
