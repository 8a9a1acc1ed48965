"""The one writer of the scheduler: feeds it events, carries out its actions, hands out permits.

Rules:
1. One event at a time, on the loop's thread; nothing is awaited between deciding and doing.
2. A permit is settled exactly once, synchronously, whatever ends it: its own `end`, a
   refusal of the core, or leaving its `with` block by cancellation. A permit granted while
   its waiter is being cancelled goes back the same way.
3. The engine keeps a ledger of the permits in force, beside the core's own state. A core that
   raised is built anew from it (failsafe.py).
4. One timer, armed for the core's next deadline; no polling.
5. Listeners are called after the event's change, some of them later; one that raises loses
   nothing (listeners.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType

from gateway.engine.failsafe import Build, Failsafe
from gateway.engine.listeners import Listeners
from gateway.engine.loop_lag import LoopLag
from gateway.errors import GatewayError, Unavailable
from gateway.schedule import events
from gateway.schedule.scheduler import Scheduler
from gateway.snapshots import QueuePosition, SchedulerSnapshot
from gateway.types import Job, JobRecord, Listener, Outcome, RateLimits, Usage, Verdict, Workload


class Permit:
    """One job's permission to run, from `Engine.submit`; a context manager that always settles."""

    __slots__ = (
        "_dispatched_s",
        "_engine",
        "_refusal",
        "_waiter",
        "account",
        "attempts",
        "body_bytes",
        "job",
        "outcome",
        "queue_s",
        "workload",
    )

    def __init__(self, engine: Engine, job: Job, body_bytes: int) -> None:
        self._engine = engine
        self.job = job
        self.body_bytes = body_bytes  # held while it waits
        self.workload = job.workload  # the latest forecast
        self.account: str | None = None  # the present attempt's; None while the job waits
        self.attempts = 0
        self.queue_s = 0.0  # arrival → first dispatch
        self._dispatched_s = 0.0  # the last attempt's begin, the engine's clock
        self.outcome: Outcome | None = None  # how it was settled; None while it waits or runs
        self._refusal: GatewayError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = self.outcome or (f"on {self.account}" if self.account else "waiting")
        return f"<Permit {self.job.id} {state}, {self.attempts} attempts>"

    @property
    def settled(self) -> bool:
        """True once the job neither waits nor runs."""
        return self.outcome is not None

    def age_s(self) -> float:
        """Seconds since the job arrived."""
        return self._engine.clock() - self.job.arrived_s

    def attempt_s(self) -> float:
        """Seconds since the last attempt began."""
        return self._engine.clock() - self._dispatched_s

    async def granted(self) -> str:
        """Wait until the job may start; the account to use. Raises the error of a refusal."""
        if self.account is None and self._refusal is None:
            self._waiter = self._engine.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._refusal is not None:
            raise self._refusal
        assert self.account is not None
        return self.account

    def answered(self, limits: RateLimits) -> None:
        """Report an answer's headers, which give the account's remaining rate limits."""
        if not self.settled:
            self._engine.feed(events.Answered(job_id=self.job.id, limits=limits))

    def failed(
        self,
        verdict: Verdict,
        retry_after_s: float | None,
        error: GatewayError,
        *,
        outcome: Outcome,
        retryable: bool,
    ) -> None:
        """Report a failed attempt; `granted` then gives the next account or raises `error`.

        Args:
            retry_after_s: the provider's wish, None where it has none.
            outcome: the job's, where no account is left to try.
            retryable: False where another attempt cannot help or must not be made.
        """
        account, self.account = self.account, None
        assert account is not None
        self._engine.listeners.retried(self.job, account, verdict)
        self._engine.feed(
            events.AttemptFailed(
                job_id=self.job.id,
                verdict=verdict,
                retry_after_s=retry_after_s,
                error=error,
                retryable=retryable,
                outcome=outcome,
            )
        )

    def end(
        self,
        outcome: Outcome,
        verdict: Verdict,
        usage: Usage | None = None,
        service_s: float | None = None,
    ) -> None:
        """Settle: reserve and lease go back, the account learns. Only the first call counts.

        Args:
            usage: None where tokens were not counted.
            service_s: the last attempt's seconds that were the provider's; None: all of them.
        """
        if self.outcome is not None:
            return
        self.outcome = outcome
        own_s = 0.0
        if service_s is not None:
            own_s = self._engine.lag.own_s(self._dispatched_s, service_s)
        self._engine._settle(self.job, outcome, verdict, usage, own_s)

    def __enter__(self) -> Permit:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
        self.end(Outcome.CANCELLED if cancelled else Outcome.FAILED, Verdict.IGNORED)
        self._refusal = None  # its traceback holds this permit

    def _dispatch(self, account: str, now: float) -> None:
        self.account = account
        self.attempts += 1
        self._dispatched_s = now
        if self.attempts == 1:
            self.queue_s = now - self.job.arrived_s
        self._wake()

    def _refuse(self, error: GatewayError, outcome: Outcome) -> None:
        self.outcome = outcome  # the core has forgotten the job
        self._refusal = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Engine:
    """The asyncio shell around a scheduler. One per process, bound to the running loop.

    Args:
        core: the scheduler, built from the settings in force.
        build: makes another one after a fault.
        listeners: those that the life of each job is reported to.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        core: Scheduler,
        build: Build,
        listeners: tuple[Listener, ...] = (),
        clock: Callable[[], float] = time.monotonic,  # uvloop's own has milliseconds only
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = clock
        self.listeners = Listeners(clock, self.loop.call_soon, listeners)
        self._ledger: dict[str, Permit] = {}
        self.lag = LoopLag(self.loop, clock, self._ledger)
        self._core = Failsafe(core, build, self._ledger, self._rebuilt)
        self._timer: asyncio.TimerHandle | None = None
        self._armed_s = float("inf")
        self._idle: asyncio.Future[None] | None = None
        self.draining = False

    def __repr__(self) -> str:
        draining = ", draining" if self.draining else ""
        return f"<Engine {len(self._ledger)} jobs{draining}, {self._core!r}>"

    def submit(self, job: Job, body_bytes: int) -> Permit:
        """Hand a job to the core. The permit must be entered as a context at once.

        `body_bytes` is the memory that the job's body holds while it waits.
        """
        permit = Permit(self, job, body_bytes)
        self._ledger[job.id] = permit
        self.lag.watch()
        self.listeners.submitted(job)
        self.feed(events.Submitted(job=job, body_bytes=body_bytes))
        return permit

    def reforecast(self, job_id: str, workload: Workload) -> None:
        """Take a better forecast of a job; does nothing when the job has ended."""
        permit = self._ledger.get(job_id)
        if permit is None or permit.settled:
            return
        permit.workload = workload
        self.listeners.reforecast(permit.job, workload)
        self.feed(events.Reforecast(job_id=job_id, workload=workload))

    def outgrown(self, job_id: str, output_tokens: int) -> None:
        """Report a running answer that has passed its forecast, at `output_tokens` a choice."""
        self.feed(events.Outgrown(job_id=job_id, output_tokens=output_tokens))

    def _settle(
        self, job: Job, outcome: Outcome, verdict: Verdict, usage: Usage | None, own_s: float
    ) -> None:
        self._ledger.pop(job.id, None)
        self.feed(
            events.Finished(
                job_id=job.id,
                outcome=outcome,
                verdict=verdict,
                output_tokens=None if usage is None else usage.output_tokens,
                prompt_tokens=None if usage is None or usage.estimated else usage.prompt_tokens,
                own_s=own_s,
            )
        )
        self._check_idle()

    def ended(self, record: JobRecord) -> None:
        """Report the end of a request to the listeners; also of one that never became a job."""
        self.listeners.ended(record)

    def holds(self, job_id: str) -> bool:
        """True while the job waits or runs."""
        return job_id in self._ledger

    def forecast(self, job_id: str) -> Workload | None:
        """The latest forecast of a job that waits or runs; None of any other."""
        permit = self._ledger.get(job_id)
        return None if permit is None else permit.workload

    def queue_position(self, job_id: str) -> QueuePosition | None:
        """A job's position in its queue; None unless it waits. Linear in all jobs."""
        return self._core.queue_position(job_id, self.clock())

    @property
    def core(self) -> Scheduler:
        """The scheduler in force; another one after a rebuild."""
        return self._core.core

    @property
    def jobs(self) -> int:
        """Jobs that wait or run."""
        return len(self._ledger)

    def feed(self, event: events.Event) -> int:
        """Hand an event to the core and carry out its actions; the number of jobs it started."""
        now = self.clock()
        started = 0
        for action in self._core.handle(event, now):
            permit = self._ledger.get(action.job_id)
            if permit is None:
                continue
            if isinstance(action, events.Dispatch):
                started += 1
                permit._dispatch(action.account, now)
                self.listeners.dispatched(
                    permit.job, action.account, permit.queue_s, permit.attempts
                )
            else:
                del self._ledger[action.job_id]
                permit._refuse(action.error, action.outcome)
                self.listeners.refused(permit.job, action.outcome, action.error.code)
                self._check_idle()
        self._arm(now)
        return started

    def tick(self) -> int:
        """Run one scheduling round; the number of jobs it started, 0 as rounds run by
        themselves."""
        return self.feed(events.Woke())

    def drop_waiting(self) -> int:
        """Refuse every job that was never started; their number. Running jobs go on."""
        dropped = 0
        for permit in list(self._ledger.values()):
            # One refusal may make room for the next: a job that has started meanwhile stays.
            if permit.attempts or permit.settled:
                continue
            error = Unavailable("The queue was reset.", code="reset", retry_after_s=1.0)
            del self._ledger[permit.job.id]
            permit._refuse(error, Outcome.EVICTED)
            self.listeners.refused(permit.job, Outcome.EVICTED, error.code)
            self.feed(events.Withdrawn(job_id=permit.job.id, outcome=Outcome.EVICTED))
            dropped += 1
        self._check_idle()
        return dropped

    def snapshot(self) -> SchedulerSnapshot:
        """The scheduler's state, for display and metrics. The listeners that count are called
        with what has ended, so that all figures are of the same moment."""
        self.listeners.flush()
        return self._core.snapshot(self.clock())

    def check(self) -> None:
        """Assert every invariant of the core."""
        self._core.check()

    def drain(self) -> None:
        """Refuse new jobs from now on; those that wait and run go on."""
        if not self.draining:
            self.draining = True
            self.feed(events.DrainStarted())

    async def idle(self) -> None:
        """Wait until no job waits or runs."""
        while self._ledger:
            self._idle = self._idle or self.loop.create_future()
            await asyncio.shield(self._idle)

    def _rebuilt(self, reason: str) -> None:
        self.listeners.alarm("rebuilt", reason)

    def _check_idle(self) -> None:
        if not self._ledger and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    def _arm(self, now: float) -> None:
        wake = self._core.next_wake(now)
        if wake is None or wake >= self._armed_s - 0.001:
            return  # the timer that is armed looks again when it fires
        if self._timer is not None:
            self._timer.cancel()
        self._armed_s = wake
        self._timer = self.loop.call_later(max(wake - now, 0.0), self._woke)

    def _woke(self) -> None:
        self._timer = None
        self._armed_s = float("inf")
        self.feed(events.Woke())

    def close(self) -> None:
        """Cancel the timer; call the listeners that were to be called later."""
        self.listeners.flush()
        if self._timer is not None:
            self._timer.cancel()
