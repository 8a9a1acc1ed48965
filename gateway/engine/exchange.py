"""One relayed request and its outcome so far.

The api room makes an `Exchange` of a parsed request and hands it to the relay, which has the job
scheduled, fills in the rest on the way and makes the `JobRecord` of it at the end. It belongs to
the event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import cast

from msgspec import Struct

from gateway.engine.client_watch import CancelReason, Connection
from gateway.engine.engine import Permit
from gateway.predict.prices import Price
from gateway.predict.prompt_view import PromptView
from gateway.types import Job, JobRecord, Outcome, Usage, Verdict
from gateway.upstream.http_client import ProviderAnswer
from gateway.upstream.providers import Headers

OUTCOMES = {
    None: Outcome.SHUTDOWN,  # cancelled from elsewhere: the server's own end
    CancelReason.LEFT: Outcome.CANCELLED,
    CancelReason.STALLED: Outcome.STALLED,
    CancelReason.SHUTDOWN: Outcome.SHUTDOWN,
}

WORD_CHARS = 100


class StreamEnd(StrEnum):
    """The end that makes an event stream of a route complete."""

    CHOICES = "choices"  # [DONE], or a finish reason for every choice
    TERMINAL = "terminal"  # a terminal event
    ANY = "any"  # not known: as the provider ends it


class Exchange(Struct, eq=False):
    """The mutable record of one relayed request."""

    # The request, parsed and authenticated.
    job: Job
    connection: Connection  # the client's
    route: str  # metric label
    method: str
    path: str  # below /v1, canonical, such as "/chat/completions"
    query: bytes
    headers: Headers  # the client's
    body: bytes
    stream: bool = False
    wants_usage: bool = True  # False: usage is asked for on our account and hidden again
    stream_end: StreamEnd = StreamEnd.ANY
    view: PromptView | None = None  # what forecasts are made of; None: it generates no text
    release: Callable[[], None] | None = None  # called once no attempt needs the body any more

    # What has become of it.
    permit: Permit = cast(Permit, None)  # the relay's, set in its first step
    outcome: Outcome | None = None  # where it is another than the job's
    status: int = 500
    account: str | None = None  # the last attempt's
    answer: ProviderAnswer | None = None
    started: bool = False  # the client has its status line
    complete: bool = False  # …and its last byte
    usage: Usage | None = None
    finish_reason: str | None = None
    error_code: str | None = None
    ttft_s: float | None = None  # arrival → the provider's first byte
    upstream_s: float | None = None  # last dispatch → the provider's end
    bytes_out: int = 0

    def __repr__(self) -> str:
        state = "complete" if self.complete else "started" if self.started else "open"
        return f"<Exchange {self.job.id} {self.method} {self.path} on {self.account} {state}>"

    def begin_attempt(self) -> None:
        """Begin another attempt: forget what the one before has noted."""
        self.ttft_s = self.usage = self.error_code = None

    def first_byte(self) -> None:
        """Note the provider's first byte; only the first call of an attempt counts."""
        if self.ttft_s is None:
            self.ttft_s = self.permit.age_s()

    def release_body(self) -> None:
        """Free the request's body, which no further attempt needs; not one without `release`."""
        if self.release is not None:
            self.body = b""
            self.release()

    def settle(self, outcome: Outcome, verdict: Verdict) -> None:
        """End permit and lease, with the usage so far; to be called when the provider is done."""
        self.upstream_s = self.permit.attempt_s()
        service_s = None if self.answer is None else self.answer.service_s
        self.permit.end(outcome, verdict, self.usage, service_s)

    def cancel(self, reason: CancelReason | None) -> None:
        """End permit and lease of a cancelled request, with the usage counted of a stream.

        The time of a stream that its client did not take is no measure of the provider's pace.
        """
        counted = None if reason is CancelReason.STALLED else self.usage
        self.permit.end(OUTCOMES[reason], Verdict.IGNORED, counted)

    def record(self, prices: Mapping[str, Price]) -> JobRecord:
        """The frozen record of the request, for the listeners. `prices` are by model."""
        job, permit, usage = self.job, self.permit, self.usage
        return JobRecord(
            id=job.id,
            generates=job.generates,
            wall_s=time.time(),
            route=self.route,
            tenant=job.tenant,
            model=job.model,
            outcome=self.outcome or permit.outcome or Outcome.FAILED,
            status=self.status,
            stream=self.stream,
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
            total_s=permit.age_s(),
            finish_reason=_word(self.finish_reason),
            error_code=_word(self.error_code),
            bytes_out=self.bytes_out,
            cost_usd=_cost(prices.get(job.model), usage),
        )


def _word(text: str | None) -> str | None:
    """A provider's word, cut: records are kept, and it may send a megabyte."""
    return None if text is None else text[:WORD_CHARS]


def _cost(price: Price | None, usage: Usage | None) -> float | None:
    """US dollars; None without a price or a count: an estimate is not billed."""
    return None if price is None or usage is None or usage.estimated else price.of(usage)
