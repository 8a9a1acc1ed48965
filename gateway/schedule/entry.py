"""A live job and its tenant: the scheduler's mutable records, without decisions."""

from __future__ import annotations

from enum import Enum, auto
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from gateway.errors import GatewayError
from gateway.schedule.ordering import Order, reserve_tokens
from gateway.schedule.overload import Grade
from gateway.settings.schema import Schedule
from gateway.types import INTERACTIVE_P_SHORT, Job, JobClass, Outcome, Rung, SizeBucket, Workload

if TYPE_CHECKING:
    from gateway.schedule.queue import Lane, Line
    from gateway.schedule.rounds import Turn
    from gateway.schedule.shares import Share

PROMPT_RATIO = 0.25
"""What a prompt token weighs beside an output token, where work is shared out."""


class Stage(Enum):
    WAITING = auto()
    RUNNING = auto()
    RETRYING = auto()  # between two attempts: in flight, but on no account
    ENDED = auto()


class Place(NamedTuple):
    """What waiting jobs must agree in, beside model, accounts and tenant, to share a lane."""

    cls: JobClass
    grade: Grade  # of the overload ladder; MEDIUM for all that it does not defer
    express: bool  # may use the few slots above the window
    bucket: SizeBucket | None  # None where sizes are not capped


class Tenant:
    """One tenant's counts over all pools, and its lanes that wait for its cap."""

    __slots__ = (
        "deadline_s",
        "max_inflight",
        "max_queued",
        "max_queued_tokens",
        "name",
        "parked",
        "running",
        "waiting",
        "waiting_tokens",
        "weight",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.configure(0, 0, 0, 0.0, 1.0)
        self.running = 0  # in flight, between attempts included
        self.waiting = 0
        self.waiting_tokens = 0
        self.parked: list[Lane] = []

    def configure(
        self,
        max_inflight: int,
        max_queued: int,
        max_queued_tokens: int,
        deadline_s: float,
        weight: float,
    ) -> None:
        """0: no cap, no bound, no deadline of its own."""
        self.max_inflight = max_inflight
        self.max_queued = max_queued
        self.max_queued_tokens = max_queued_tokens
        self.deadline_s = deadline_s
        self.weight = weight

    @property
    def capped(self) -> bool:
        return 0 < self.max_inflight <= self.running

    @property
    def overfull(self) -> bool:
        return (
            0 < self.max_queued < self.waiting or 0 < self.max_queued_tokens < self.waiting_tokens
        )


class Entry:
    """A live job: everything the scheduler knows of it."""

    __slots__ = (
        "account",
        "accounts",
        "attempts",
        "body_bytes",
        "bound",
        "bucket",
        "came",
        "charge",
        "charged",
        "cls",
        "deadline_s",
        "error",
        "expire_s",
        "failed",
        "grade",
        "holds_retry",
        "job",
        "key",
        "lane",
        "lease",
        "line",
        "outcome",
        "place",
        "pool",
        "reserve",
        "routed",
        "rungs",
        "seq",
        "share",
        "since_s",
        "spent",
        "stage",
        "tenant",
        "turn",
        "waited_s",
        "workload",
    )

    def __init__(self, job: Job, body_bytes: int, seq: int, tenant: Tenant) -> None:
        self.job = job
        self.body_bytes = body_bytes
        self.seq = seq  # order of submission, breaks ties of keys
        self.came = (job.arrived_s, seq)
        self.tenant = tenant
        self.stage = Stage.WAITING
        self.pool = ""
        self.accounts: tuple[str, ...] = ()
        self.routed = False  # its model was configured when it came
        self.bound = False  # to some of the accounts that serve its model
        self.workload: Workload = job.workload
        self.cls = JobClass.HEAVY  # these eight by `weigh`
        self.bucket = SizeBucket.LONG
        self.grade = Grade.HUGE
        self.place: Place
        self.reserve = 0
        self.charge = 0  # tokens of work, the prompt's included, by which it is shared out
        self.deadline_s: float | None = None
        self.key = 0.0
        self.rungs: set[Rung] = set()  # rungs that have re-forecast it while it waited
        # waiting
        self.line: Line | None = None
        self.lane: Lane | None = None
        self.share: Share | None = None  # its tenant's, of its class in its pool
        self.since_s = 0.0  # waiting since, or dispatched at
        self.waited_s = 0.0  # in earlier waits
        self.expire_s = 0.0  # this wait ends then
        # in flight
        self.turn: Turn | None = None  # that paid for its start, with `charged` tokens
        self.charged = 0
        self.account = ""
        self.lease = 0
        self.attempts = 0
        self.spent = 0.0
        self.failed: frozenset[str] = frozenset()
        self.holds_retry = False  # counts against the pool's retry budget
        self.error: GatewayError | None = None  # of the last failed attempt
        self.outcome = Outcome.UPSTREAM_ERROR  # that goes with it

    def weigh(self, settings: Schedule, order: Order) -> None:
        """Class, size, reserve, deadline and key by the present forecast; only while it waits."""
        job, workload = self.job, self.workload
        self.cls = job.class_override or workload.job_class
        self.bucket = workload.size_bucket
        self.reserve = self.reserve_now(settings)
        self.charge = self.reserve + int(PROMPT_RATIO * workload.prompt_tokens)
        self.grade = Grade.of(self.reserve, self.bucket)
        express = self.cls is JobClass.INTERACTIVE and workload.p_short >= INTERACTIVE_P_SHORT
        caps = settings.tier_caps
        self.place = Place(
            self.cls,
            self.grade if self.grade > Grade.MEDIUM else Grade.MEDIUM,
            express,
            self.bucket if caps.short or caps.medium or caps.long else None,
        )
        self.deadline_s = self._deadline_s(settings)
        self.key = order.key(job, workload, self.reserve, self.deadline_s)

    def _deadline_s(self, settings: Schedule) -> float | None:
        """The request's own, else its tenant's, else its class's."""
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
        return reserve_tokens(self.job, self.workload, settings.reserve_quantile)

    def start_wait(self, settings: Schedule, now: float, service_s: float = 0.0) -> None:
        """`max_wait_s` bounds the sum of a job's waits; the first one runs from its arrival."""
        self.since_s = now if self.attempts else self.job.arrived_s
        self.bound_wait(settings, service_s)

    def bound_wait(self, settings: Schedule, service_s: float = 0.0) -> None:
        """Also by the deadline: it is to be answered by then, which takes `service_s`.
        Background work waits as long as it takes: nobody holds a connection open for it."""
        self.expire_s = inf
        if self.cls is not JobClass.BACKGROUND:
            self.expire_s = self.since_s + settings.max_wait_s - self.waited_s
        if self.deadline_s is not None:
            self.expire_s = min(self.expire_s, self.deadline_s - service_s)
