"""A live job and its tenant: the scheduler's mutable records, without decisions."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from gateway.errors import GatewayError
from gateway.schedule.ordering import order_key, reserve_tokens
from gateway.settings.schema import Schedule
from gateway.types import Job, JobClass, Outcome, Rung, SizeBucket, Workload

if TYPE_CHECKING:
    from gateway.schedule.queue import Lane, Line


class Stage(Enum):
    WAITING = auto()
    RUNNING = auto()
    RETRYING = auto()  # between two attempts: in flight, but on no account
    ENDED = auto()


class Tenant:
    """One tenant's counts over all pools, and its lanes that wait for its cap."""

    __slots__ = ("max_inflight", "max_queued", "name", "parked", "running", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.max_inflight = 0  # 0: no cap
        self.max_queued = 0
        self.running = 0  # in flight, between attempts included
        self.waiting = 0
        self.parked: list[Lane] = []

    @property
    def capped(self) -> bool:
        return 0 < self.max_inflight <= self.running

    @property
    def overfull(self) -> bool:
        return 0 < self.max_queued < self.waiting


class Entry:
    """A live job: everything the scheduler knows of it."""

    __slots__ = (
        "account",
        "accounts",
        "attempts",
        "body_bytes",
        "bound",
        "bucket",
        "cls",
        "error",
        "expire_s",
        "failed",
        "holds_retry",
        "job",
        "key",
        "lane",
        "lease",
        "line",
        "outcome",
        "pool",
        "reserve",
        "routed",
        "rungs",
        "seq",
        "since_s",
        "spent",
        "stage",
        "tenant",
        "waited_s",
        "workload",
    )

    def __init__(self, job: Job, body_bytes: int, seq: int, tenant: Tenant) -> None:
        self.job = job
        self.body_bytes = body_bytes
        self.seq = seq  # order of submission, breaks ties of keys
        self.tenant = tenant
        self.stage = Stage.WAITING
        self.pool = ""
        self.accounts: tuple[str, ...] = ()
        self.routed = False  # its model was configured when it came
        self.bound = False  # to some of the accounts that serve its model
        self.workload: Workload = job.workload
        self.cls = JobClass.HEAVY  # these four by `weigh`
        self.bucket = SizeBucket.LONG
        self.reserve = 0
        self.key = 0.0
        self.rungs: set[Rung] = set()  # rungs that have re-forecast it
        # waiting
        self.line: Line | None = None
        self.lane: Lane | None = None
        self.since_s = 0.0  # waiting since, or dispatched at
        self.waited_s = 0.0  # in earlier waits
        self.expire_s = 0.0  # this wait ends then
        # attempts
        self.account = ""
        self.lease = 0
        self.attempts = 0
        self.spent = 0.0
        self.failed: frozenset[str] = frozenset()
        self.holds_retry = False  # counts against the pool's retry budget
        self.error: GatewayError | None = None  # of the last failed attempt
        self.outcome = Outcome.UPSTREAM_ERROR  # that goes with it

    def precedes(self, other: Entry) -> bool:
        return (self.key, self.seq) < (other.key, other.seq)

    def weigh(self, settings: Schedule) -> None:
        """Class, bucket, reserve and key by the present forecast; only while it waits."""
        self.cls = self.job.class_override or self.workload.job_class
        self.bucket = self.workload.size_bucket
        self.reserve = self.reserve_now(settings)
        self.key = order_key(self.job.arrived_s, self.reserve, settings.max_overtake_s)

    def reserve_now(self, settings: Schedule) -> int:
        return reserve_tokens(self.job, self.workload, settings.reserve_quantile)

    def start_wait(self, settings: Schedule, now: float) -> None:
        """`max_wait_s` bounds the sum of a job's waits; the first one runs from its arrival."""
        self.since_s = now if self.attempts else self.job.arrived_s
        self.bound_wait(settings)

    def bound_wait(self, settings: Schedule) -> None:
        self.expire_s = self.since_s + settings.max_wait_s - self.waited_s
        if self.job.deadline_s is not None:
            self.expire_s = min(self.expire_s, self.job.deadline_s)
