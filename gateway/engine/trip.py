"""What becomes of one call: filled in on the way, told to the engine once, recorded at the end."""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec import Struct

from gateway.engine.call import Call
from gateway.engine.engine import Permit
from gateway.engine.scope import Ended
from gateway.types import JobRecord, Outcome, Usage, Verdict
from gateway.upstream.client import Answer

Cost = Callable[[str, Usage], float | None]
"""US dollars of a model's usage, None where it has no price."""

OUTCOMES = {
    None: Outcome.SHUTDOWN,  # cancelled from elsewhere: the server's own end
    Ended.LEFT: Outcome.CANCELLED,
    Ended.STALLED: Outcome.STALLED,
    Ended.SHUTDOWN: Outcome.SHUTDOWN,
}


class Trip(Struct):
    """One call under way. `clock` is the engine's."""

    call: Call
    permit: Permit
    clock: Callable[[], float]
    outcome: Outcome = Outcome.FAILED
    status: int = 500
    account: str | None = None
    answer: Answer | None = None
    started: bool = False  # the client has its status line
    complete: bool = False  # …and its last byte
    usage: Usage | None = None
    finish_reason: str | None = None
    error_code: str | None = None
    ttft_s: float | None = None
    upstream_s: float | None = None
    bytes_out: int = 0

    def begin_attempt(self) -> None:
        """Another attempt begins: nothing of the one before counts."""
        self.ttft_s = self.usage = self.error_code = None

    def first_byte(self) -> None:
        """The provider has sent something; only the first call of an attempt counts."""
        if self.ttft_s is None:
            self.ttft_s = self.clock() - self.call.job.arrived_s

    def settle(self, outcome: Outcome, verdict: Verdict) -> None:
        """The provider is done: permit and lease go back, with the usage that is known."""
        self.outcome = outcome
        self.upstream_s = self.clock() - self.permit.dispatched_s
        self.permit.end(outcome, verdict, self.usage)

    def cut(self, why: Ended | None) -> None:
        """Cancelled from outside: permit and lease go back with what was counted of a stream.
        The time of one that its client did not take is no measure of the provider's pace."""
        counted = None if why is Ended.STALLED else self.usage
        self.permit.end(OUTCOMES[why], Verdict.IGNORED, counted)

    def record(self, cost: Cost) -> JobRecord:
        """The whole of it, as listeners are told."""
        call, permit, usage = self.call, self.permit, self.usage
        job = call.job
        return JobRecord(
            id=job.id,
            generates=job.generates,
            wall_s=time.time(),
            route=call.route,
            tenant=job.tenant,
            model=job.model,
            outcome=self.outcome,
            status=self.status,
            stream=call.stream,
            n=job.n,
            account=self.account,
            attempts=permit.attempts,
            job_class=job.class_override or permit.workload.job_class,
            first=job.workload,
            workload=permit.workload,
            usage=usage,
            reserve_tokens=job.n * permit.workload.p50,
            queue_s=permit.queue_s,
            ttft_s=self.ttft_s,
            upstream_s=self.upstream_s,
            total_s=self.clock() - job.arrived_s,
            finish_reason=self.finish_reason,
            error_code=self.error_code,
            bytes_out=self.bytes_out,
            cost_usd=None if usage is None else cost(job.model, usage),
        )
