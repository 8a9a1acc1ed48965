"""`mode = "observe"`: requests are relayed at once, and a second scheduler decides beside.

The scheduler that relays is wide open (settings/effective.py). The shadow's, as configured, gets
the same arrivals and forecasts. Its dispatches start nothing; they give the time at which a
request *would* have started. Two things are estimated:

1. Windows. Without limits the latencies are those of a crowded provider, so the shadow learns no
   windows of its own: every `FOLLOW_S` it takes those that the real accounts have learned, as
   plain ceilings.
2. The time a request would have taken: the time it took, divided by the slowdown of its account.
   Within its window the provider would not have been crowded.

So `would` (start, refuse, or the reason to wait, at arrival) is the configured scheduler's own
decision on this traffic, and `would_wait_s` an estimate. `sagesched report` fits the provider to
the whole journal and plays the traffic again, which is more exact.

A fault in here is logged and ends the shadowing, never a request.
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
MOST_JOBS = 20_000  # at a time; further ones are relayed and not recorded

_encode = msgspec.msgpack.Encoder().encode


class ShadowJob(Struct):
    """A job's course in the shadow, and its real one."""

    job: Job
    last: Workload  # the latest forecast
    would: str = "start"
    would_start_s: float | None = None
    takes_s: float | None = None  # once it has really ended
    record: JobRecord | None = None


class Shadow(Listener):
    """A scheduler as configured whose decisions are recorded and not carried out.

    Args:
        settings: as configured, not wide open.
        build: makes a scheduler with accounts of its own.
        accounts: snapshots of the real accounts.
        clock: the engine's.
        store: takes the row of each job that has ended, really and here.
    """

    def __init__(
        self,
        settings: Settings,
        build: Callable[[Settings], Scheduler],
        accounts: Callable[[], tuple[AccountSnapshot, ...]],
        clock: Callable[[], float],
        store: Callable[[ObservedRow], object],
    ) -> None:
        self._settings = settings
        self._accounts = accounts
        self._clock = clock
        self._store = store
        self._jobs: dict[str, ShadowJob] = {}
        self._ends: list[tuple[float, str]] = []
        self._slowdowns: dict[str, float] = {}  # by account
        self._ceilings: dict[str, int] = {}
        self._followed_s = self._latest_s = float("-inf")
        self._core = build(self._shadow_settings())
        self.broken = False

    # -- the engine's listener -----------------------------------------------------------------

    def submitted(self, job: Job) -> None:
        if not self.broken and len(self._jobs) < MOST_JOBS:
            self._safely(lambda now: self._submit(job, now))

    def reforecast(self, job: Job, workload: Workload) -> None:
        entry = self._jobs.get(job.id)
        if entry is not None and not self.broken:
            entry.last = workload
            self._safely(lambda now: self._feed(Reforecast(job.id, workload), now))

    def ended(self, record: JobRecord) -> None:
        if record.id in self._jobs and not self.broken:
            self._safely(lambda now: self._end(record, now))

    def recalibrated(self, trust: float) -> None:
        """Take the trust in forecasts, 0 to 1, that the scheduler that relays goes by."""
        if not self.broken:
            self._safely(lambda now: self._feed(Recalibrated(trust), now))

    # -- what would have been ------------------------------------------------------------------

    def tick(self) -> None:
        """Let time pass: end the jobs that are due, follow the learned windows."""
        if not self.broken:
            self._safely(lambda now: None)

    def close(self) -> None:
        """End the shadowing. Jobs that have really ended are recorded, those that would still
        wait with their wait so far."""
        self.broken = True
        for job_id, entry in list(self._jobs.items()):
            if entry.record is not None:
                if entry.would_start_s is None and entry.would != "refuse":
                    entry.would_start_s = self._clock()
                self._record(job_id)

    def _submit(self, job: Job, now: float) -> None:
        entry = self._jobs[job.id] = ShadowJob(job, job.workload)
        self._feed(Submitted(job), now)
        if entry.would == "refuse" or entry.would_start_s is not None:
            return
        answer = self._core.fits(job.id, now)
        entry.would = answer.reason.value if isinstance(answer, Blocked) else "start"

    def _end(self, record: JobRecord, now: float) -> None:
        """Take in a job's real end, from which its end in the shadow is computed."""
        entry = self._jobs[record.id]
        entry.record = record
        slowdown = self._slowdowns.get(record.account or "", 1.0)
        entry.takes_s = (record.upstream_s or 0.0) / max(1.0, slowdown)
        if record.account is None or entry.would == "refuse":  # it never ran, really or here
            self._feed(Withdrawn(record.id), now)
            self._record(record.id)
        elif entry.would_start_s is not None:
            self._due(record.id, entry)

    def _due(self, job_id: str, entry: ShadowJob) -> None:
        assert entry.would_start_s is not None
        assert entry.takes_s is not None
        heappush(self._ends, (entry.would_start_s + entry.takes_s, job_id))

    def _advance(self, now: float) -> None:
        """End every job that is due, each at its own time."""
        while self._ends and self._ends[0][0] <= now:
            at_s, job_id = heappop(self._ends)
            entry = self._jobs[job_id]
            usage = entry.record.usage if entry.record is not None else None
            tokens = None if usage is None else float(usage.output_tokens)
            self._feed(Finished(job_id, Outcome.OK, Verdict.SUCCESS, tokens), at_s)
            self._record(job_id)
        self._feed(Woke(), now)

    def _feed(self, event: Event, now: float) -> None:
        # The time of an end is known only once the job has really ended: it may be past by then.
        self._latest_s = max(self._latest_s, now)
        for action in self._core.handle(event, self._latest_s):
            self._carry_out(action, now)

    def _carry_out(self, action: Action, now: float) -> None:
        entry = self._jobs.get(action.job_id)
        if entry is None:
            return
        match action:
            case Dispatch():
                entry.would_start_s = max(now, entry.job.arrived_s)
                if entry.takes_s is not None:
                    self._due(action.job_id, entry)
            case Refuse():
                entry.would = "refuse"
                if entry.record is not None:
                    self._record(action.job_id)

    def _record(self, job_id: str) -> None:
        entry = self._jobs.pop(job_id)
        record = entry.record
        assert record is not None
        start_s = entry.would_start_s
        self._store(
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
                first=_encode(entry.job.workload),
                last=_encode(entry.last),
                queue_s=record.queue_s,
                ttft_s=record.ttft_s or 0.0,
                upstream_s=record.upstream_s or 0.0,
                attempts=record.attempts,
                would=entry.would,
                would_wait_s=0.0 if start_s is None else start_s - entry.job.arrived_s,
            )
        )

    # -- what is taken from the real accounts --------------------------------------------------

    def _follow(self, now: float) -> None:
        """Take the learned windows as ceilings, and the accounts' slowdowns."""
        if now < self._followed_s + FOLLOW_S:
            return
        self._followed_s = now
        ceilings = {}
        for account in self._accounts():
            learned = [w for w in account.windows if w.regime != "unknown"]
            if not learned:
                continue
            self._slowdowns[account.name] = max(w.slowdown for w in learned)
            ceilings[account.name] = max(1, round(sum(w.window for w in learned)))
        if ceilings != self._ceilings:
            self._ceilings = ceilings
            self._feed(SettingsChanged(self._shadow_settings()), now)

    def _shadow_settings(self) -> Settings:
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
            self._jobs.clear()
            logger.exception("observing ended: a fault of the gateway; requests are relayed on")
