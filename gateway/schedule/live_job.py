"""A live job and its tenant: mutable records of the scheduler. They decide nothing.

A job does not know the queue it waits in. Queues know their jobs (queue.py), and a pool finds the
queue of a job by its model, accounts, key and tenant (model_pool.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from typing import NamedTuple, Protocol

from gateway.errors import GatewayError
from gateway.schedule.ordering import reserve_tokens
from gateway.schedule.overload import Grade
from gateway.schedule.rounds import Turn
from gateway.settings.schema import Schedule
from gateway.types import INTERACTIVE_P_SHORT, Job, JobClass, Outcome, Rung, SizeBucket, Workload

MEDIUM = Grade.MEDIUM
PROMPT_RATIO = 0.25
"""Weight of a prompt token beside an output token, where work is shared out."""


class Stage(Enum):
    """Stage of a live job."""

    WAITING = auto()
    RUNNING = auto()
    RETRYING = auto()  # between two attempts: in flight, but on no account
    ENDED = auto()


class QueueKey(NamedTuple):
    """Properties in which waiting jobs of one model and tenant must agree to share a queue."""

    cls: JobClass
    grade: Grade  # of the overload ladder; MEDIUM for all that the ladder never defers
    express: bool  # may use the few slots above the window
    bucket: SizeBucket | None  # None where sizes are not capped


class Parked(Protocol):
    """A queue that competes for nothing until its tenant ends a job (queue.TenantQueue)."""

    def unpark(self) -> tuple[str, float] | None:
        """Lets the queue compete again.

        Returns:
            The pool and the key of the queue's first job; None if it holds none.
        """


@dataclass(slots=True, eq=False)
class Tenant:
    """One tenant's limits and its counts over all pools. A limit of 0 is none."""

    name: str
    max_inflight: int = 0
    max_queued: int = 0
    max_queued_tokens: int = 0
    deadline_s: float = 0.0
    weight: float = 1.0
    running: int = 0  # jobs in flight, those between attempts included
    waiting: int = 0
    waiting_tokens: int = 0
    parked: list[Parked] = field(default_factory=list, repr=False)

    def configure(
        self,
        max_inflight: int = 0,
        max_queued: int = 0,
        max_queued_tokens: int = 0,
        deadline_s: float = 0.0,
        weight: float = 1.0,
    ) -> None:
        self.max_inflight = max_inflight
        self.max_queued = max_queued
        self.max_queued_tokens = max_queued_tokens
        self.deadline_s = deadline_s
        self.weight = weight

    @property
    def capped(self) -> bool:
        """True where as many jobs are in flight as the tenant may have."""
        return 0 < self.max_inflight <= self.running

    @property
    def overfull(self) -> bool:
        """True where more jobs wait than the tenant may have waiting."""
        return (
            0 < self.max_queued < self.waiting or 0 < self.max_queued_tokens < self.waiting_tokens
        )


@dataclass(slots=True, eq=False, repr=False)
class LiveJob:
    """All that the scheduler knows of a job between its submission and its end.

    `job` is as submitted; `workload` and what is derived from it (`weigh`) follow later forecasts.
    """

    job: Job
    body_bytes: int
    seq: int  # number of the submission
    tenant: Tenant
    arrival: tuple[float, int] = field(init=False)  # order of arrival: the time, then `seq`
    pool: str = ""
    accounts: tuple[str, ...] = ()
    routed: bool = False  # its model was configured when it came
    bound: bool = False  # to some of the accounts that serve its model
    stage: Stage = Stage.WAITING
    # by the present forecast
    workload: Workload = field(init=False)
    cls: JobClass = JobClass.HEAVY
    bucket: SizeBucket = SizeBucket.LONG
    grade: Grade = Grade.HUGE
    queue_key: QueueKey = field(init=False)
    reserve: int = 0
    charge: int = 0  # tokens of work, the prompt's included, by which it is shared out
    deadline_s: float | None = None
    key: float = 0.0  # of the ordering: the smallest goes first; set as it joins a queue
    rungs: set[Rung] = field(default_factory=set)  # that have re-forecast it while it waited
    # the wait
    since_s: float = 0.0  # waiting since then, or running since then
    waited_s: float = 0.0  # in earlier waits
    expire_s: float = 0.0  # the present wait ends then
    # in flight
    turn: Turn | None = None  # that paid for its start, with `charged` tokens
    charged: int = 0
    account: str = ""
    lease: int = 0
    attempts: int = 0  # started
    spent: float = 0.0  # attempts that failed, a 429 as a part of one
    failed: frozenset[str] = frozenset()  # accounts on which an attempt failed
    holds_retry: bool = False  # counts against the pool's retry budget
    error: GatewayError | None = None  # of the last failed attempt
    outcome: Outcome = Outcome.UPSTREAM_ERROR  # if that attempt stays the last

    def __post_init__(self) -> None:
        self.workload = self.job.workload
        self.arrival = self.job.arrived_s, self.seq

    def __repr__(self) -> str:
        return (
            f"<LiveJob {self.job.id} {self.stage.name} {self.cls} of {self.tenant.name!r}"
            f" in {self.pool!r} reserve={self.reserve} key={self.key:.3f}"
            f" account={self.account!r} attempts={self.attempts}>"
        )

    def weigh(self, settings: Schedule) -> None:
        """Derive class, size, reserve and deadline from the forecast; only while waiting."""
        workload = self.workload
        cls = self.cls = self.job.class_override or workload.job_class
        bucket = self.bucket = workload.size_bucket
        reserve = self.reserve = self.reserve_now(settings)
        self.charge = reserve + int(PROMPT_RATIO * workload.prompt_tokens)
        grade = self.grade = Grade.of(reserve, bucket)
        express = cls is JobClass.INTERACTIVE and workload.p_short >= INTERACTIVE_P_SHORT
        caps = settings.tier_caps
        self.queue_key = QueueKey(
            cls,
            grade if grade > MEDIUM else MEDIUM,
            express,
            bucket if caps.short or caps.medium or caps.long else None,
        )
        self.deadline_s = self._deadline_s(settings)

    def _deadline_s(self, settings: Schedule) -> float | None:
        """The request's own deadline, else its tenant's, else its class's; None without one."""
        job = self.job
        if job.deadline_s is not None:
            return job.deadline_s
        after_s = self.tenant.deadline_s
        if after_s <= 0.0:
            match self.cls:
                case JobClass.INTERACTIVE:
                    after_s = settings.interactive_deadline_s
                case JobClass.HEAVY:
                    after_s = settings.heavy_deadline_s
                case JobClass.BACKGROUND:
                    after_s = settings.background_deadline_s
        return job.arrived_s + after_s if after_s > 0.0 else None

    def reserve_now(self, settings: Schedule) -> int:
        """Output tokens to reserve by the present forecast."""
        return reserve_tokens(self.job, self.workload, settings.reserve_quantile)

    def start_wait(self, settings: Schedule, now: float, service_s: float = 0.0) -> None:
        """Begin a wait. The first one counts from the arrival, later ones from now."""
        self.since_s = now if self.attempts else self.job.arrived_s
        self.bound_wait(settings, service_s)

    def bound_wait(self, settings: Schedule, service_s: float = 0.0) -> None:
        """Set when the present wait ends, `expire_s`.

        `max_wait_s` bounds the sum of a job's waits, and its deadline the last moment at which
        an answer that takes `service_s` may start. Background work has no longest wait: nobody
        holds a connection open for it.
        """
        self.expire_s = inf
        if self.cls is not JobClass.BACKGROUND:
            self.expire_s = self.since_s + settings.max_wait_s - self.waited_s
        if self.deadline_s is not None:
            self.expire_s = min(self.expire_s, self.deadline_s - service_s)
