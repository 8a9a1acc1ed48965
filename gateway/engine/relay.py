"""One request's way from permit to last byte.

Rules:
1. Nothing is promised to the client before the provider has given a first byte that is not
   an error: until then another account may be tried. After that there is one status line,
   and a failure is one final `data: {"error": …}` event without `[DONE]`, or a broken
   connection where the answer is no event stream.
2. Permit and lease end when the *provider* is done, not when the client has read: between
   them lies the connection's write buffer, about a megabyte (see api/listener.py).
3. Every way out settles once. Dropping the provider's socket is synchronous.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from math import inf
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from gateway.engine.engine import Engine, Permit
from gateway.engine.scope import ClientWatch, Ended, Receive, Send, StreamClock
from gateway.errors import (
    GatewayError,
    Unavailable,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
)
from gateway.settings.schema import Server
from gateway.types import Job, JobRecord, Outcome, Usage, Verdict
from gateway.upstream.client import (
    BROKEN,
    SLOW_FIRST_BYTE,
    SLOW_NEXT_BYTE,
    Answer,
    AttemptFailed,
    UpstreamClient,
)
from gateway.upstream.providers import (
    RETURNED,
    Failure,
    Headers,
    Target,
    classify,
    edit_for,
    edited,
    headers_for,
    stream_error_status,
    url_for,
)
from gateway.upstream.ratelimits import rate_limits
from gateway.upstream.sse import event_of
from gateway.upstream.usage import StreamMeter, answer_usage, tail_usage

logger = logging.getLogger("gateway.engine")
ERROR_BODY_BYTES = 64 * 1024
ERROR_BODY_S = 5.0  # a refusal's words are not worth a longer wait
USAGE_TAIL_BYTES = 4096  # of an answer too long to be read whole
TAIL_S = 1.0  # how long the end of a finished stream is waited for, to reuse its connection


class Connection(Protocol):
    """The client's connection, where the server gives access to it."""

    def abort(self) -> None: ...


class Ending(StrEnum):
    """How an event stream of a route ends when it is whole."""

    CHOICES = "choices"  # [DONE], or a finish reason for every choice
    TERMINAL = "terminal"  # a terminal event
    ANY = "any"  # not known: as the provider ends it


class Call(Struct):
    """One request to relay, parsed and authenticated."""

    job: Job
    route: str  # metric label
    method: str
    path: str  # below /v1, canonical, such as "/chat/completions"
    query: bytes
    headers: Headers  # the client's
    body: bytes
    stream: bool = False
    wants_usage: bool = True  # False: usage is asked for on our account and hidden again
    ending: Ending = Ending.ANY
    connection: Connection | None = None
    release: Callable[[], None] | None = None  # the body is not needed any more
    outgrown: Callable[[int], object] | None = None  # told of lengths past the p90: see Overrun


class Trip(Struct):
    """What became of a call; filled in on the way, turned into a JobRecord at the end."""

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


SendError = Callable[[Send, GatewayError, Headers], Any]
Cost = Callable[[str, Usage], float | None]


def free(model: str, usage: Usage) -> None:
    """The cost where nobody knows a price."""


class Overrun:
    """A stream's length against its forecast: tells when it passes the p90, and again at each
    doubling. That it is still running is news only where it should have ended.

    `at` is the length, of all choices together, at which `passed` is to be called.
    """

    __slots__ = ("_n", "_told", "at")

    def __init__(self, p90: float, n: int, told: Callable[[int], object] | None) -> None:
        self._n, self._told = n, told
        self.at = inf if told is None else max(p90, 1.0) * n

    def passed(self, tokens: int) -> None:
        """`tokens` are past `at`."""
        assert self._told is not None
        while self.at < tokens:  # a coarse stream may pass several doublings at once
            self.at *= 2
        self._told(tokens // self._n)


class Relay:
    """Relays calls. One per process.

    Args:
        targets: account name → where and how to call it; replaced whole on a reload.
        send_error: writes a GatewayError as a response (the api room's business).
        cost: US dollars of a model's usage, None where it has no price.
    """

    def __init__(
        self,
        engine: Engine,
        client: UpstreamClient,
        targets: Mapping[str, Target],
        server: Server,
        send_error: SendError,
        cost: Cost = free,
    ) -> None:
        self._engine = engine
        self._client = client
        self.targets = targets
        self.server = server
        self._send_error = send_error
        self._cost = cost
        self._open: dict[ClientWatch, Call] = {}
        self._idle: asyncio.Future[None] | None = None

    @property
    def open(self) -> int:
        """Calls under way, their clients still reading included."""
        return len(self._open)

    def end_all(self) -> None:
        """Stop: every call ends now, its client told."""
        for watch in list(self._open):
            watch.end(Ended.SHUTDOWN)

    def abort_all(self) -> None:
        """Drop the connections of whoever is still there."""
        for watch, call in list(self._open.items()):
            if call.connection is not None:
                call.connection.abort()
            watch.end(Ended.SHUTDOWN)

    async def idle(self) -> None:
        """Until no call is under way."""
        while self._open:
            self._idle = self._idle or self._engine.loop.create_future()
            await asyncio.shield(self._idle)

    def _closed(self, watch: ClientWatch) -> None:
        self._open.pop(watch, None)
        if not self._open and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    async def run(
        self,
        call: Call,
        receive: Receive,
        send: Send,
        *,
        submitted: Callable[[Permit], None] | None = None,
    ) -> JobRecord:
        """Schedule, relay, settle. Returns the record that listeners were told."""
        trip = Trip()
        watch = ClientWatch(receive)
        self._open[watch] = call
        permit = self._engine.submit(call.job, len(call.body))
        try:
            async with watch:
                with permit:
                    if submitted is not None:
                        submitted(permit)
                    try:
                        await self._serve(call, permit, trip, watch, send)
                    except asyncio.CancelledError:
                        # What was counted of a cut stream. The time of one that its client
                        # did not take is no measure of the provider's pace.
                        counted = None if watch.ended is Ended.STALLED else trip.usage
                        permit.end(_OUTCOMES[watch.ended], Verdict.IGNORED, counted)
                        raise
        except GatewayError as error:
            await self._answer_error(call, permit, trip, error, send)
        except asyncio.CancelledError:
            trip.outcome, trip.status = Outcome.SHUTDOWN, 503
            raise
        except BrokenAnswer:
            raise
        except Exception as error:  # a fault of ours: recorded here, once
            logger.exception("request failed", extra={"request_id": call.job.id})
            trip.outcome, trip.error_code = Outcome.FAILED, "internal_error"
            if trip.started:
                raise BrokenAnswer("internal error") from error
            await self._answer_error(call, permit, trip, GatewayError(_FAULT), send)
        finally:
            if trip.answer is not None:
                trip.answer.abort()
            if watch.ended is not None and not trip.complete:
                await self._ended_early(call, trip, watch.ended, send)
            record = self._record(call, permit, trip)
            self._engine.ended(record)
            self._closed(watch)
        return record

    # -- attempts: until a first byte that is not an error ---------------------------------

    async def _serve(
        self, call: Call, permit: Permit, trip: Trip, watch: ClientWatch, send: Send
    ) -> None:
        while True:
            trip.account = await permit.granted()
            target = self.targets.get(trip.account)
            if target is None:  # removed by a reload between dispatch and here
                self._attempt_failed(permit, _REMOVED)
                continue
            try:
                answer = await self._attempt(call, target, permit, trip)
                if _is_events(answer):
                    await self._stream(call, target, permit, trip, watch, answer, send)
                else:
                    await self._whole(call, target, permit, trip, watch, answer, send)
                return
            except AttemptFailed as failed:
                if trip.answer is not None:
                    trip.answer.abort()
                if trip.started:
                    await self._broken(permit, trip, watch, failed.failure, send)
                    return
                self._attempt_failed(permit, failed.failure)

    def _attempt_failed(self, permit: Permit, failure: Failure) -> None:
        error = _error_of(failure)
        if failure.retryable:
            permit.failed(failure.verdict, failure.retry_after_s, error, retryable=True)
            return
        permit.end(failure.outcome, failure.verdict)
        permit.outcome = failure.outcome
        raise error

    async def _attempt(self, call: Call, target: Target, permit: Permit, trip: Trip) -> Answer:
        trip.ttft_s = trip.usage = trip.error_code = None  # of the attempt before
        body = call.body
        edit = edit_for(target, call.job.model, inject_usage=call.stream and not call.wants_usage)
        if edit is not None and body:
            body = edited(body, edit)
        answer = trip.answer = await self._client.send(
            target,
            call.method,
            url_for(target, call.path, call.query),
            headers_for(target, call.headers),
            body,
        )
        limits = rate_limits(answer.headers, time.time())
        if limits is not None:
            permit.answered(limits)
        if answer.status < 200:
            raise AttemptFailed(BROKEN)
        if 300 <= answer.status < 400:
            raise AttemptFailed(_REDIRECT)  # destinations come from the settings alone
        if answer.status >= 400:
            refusal = b""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ERROR_BODY_S):
                    refusal = await answer.read_up_to(ERROR_BODY_BYTES)
            raise AttemptFailed(
                classify(answer.status, answer.headers, refusal, target, time.time())
            )
        return answer

    # -- answers -----------------------------------------------------------------------------

    async def _stream(
        self,
        call: Call,
        target: Target,
        permit: Permit,
        trip: Trip,
        watch: ClientWatch,
        answer: Answer,
        send: Send,
    ) -> None:
        meter = StreamMeter(
            hide_usage=not call.wants_usage, max_event_bytes=self.server.stream_buffer_bytes
        )
        out = await self._first_events(target, trip, answer, meter, call)
        overrun = Overrun(permit.workload.p90, call.job.n, call.outgrown)
        clock = self._clock(target, trip, watch, answer)
        try:
            await self._start(call, permit, trip, answer, None, send)
            while True:
                if meter.done:
                    self._settle_stream(call, permit, trip, meter)
                    await self._last(trip, watch, out, send)
                    await _read_tail(answer)
                    return
                if out:
                    clock.writing()
                    trip.bytes_out += len(out)
                    await send({"type": "http.response.body", "body": out, "more_body": True})
                    clock.reading()
                chunk = await self._next(answer, trip)
                if not chunk:
                    break
                out = meter.feed(chunk)
                if meter.output_tokens > overrun.at and meter.finish_reason is None:
                    overrun.passed(meter.output_tokens)
            out = meter.rest()  # its last event may lack the blank line
            if not _is_whole(call, meter) and meter.error is None:
                raise AttemptFailed(_CUT)
            self._settle_stream(call, permit, trip, meter)
            await self._last(trip, watch, out, send)
        except (AttemptFailed, asyncio.CancelledError):
            trip.usage = meter.usage or meter.estimated(permit.workload.prompt_tokens)
            raise
        finally:
            clock.stop()

    async def _first_events(
        self, target: Target, trip: Trip, answer: Answer, meter: StreamMeter, call: Call
    ) -> bytes:
        """The first whole event. An error in its place is a refusal that came late."""
        out = b""
        try:
            async with asyncio.timeout(target.account.first_byte_timeout_s):
                while not meter.seen_data:  # comments are held: they promise nothing yet
                    chunk = await self._next(answer, trip)
                    if not chunk:
                        break
                    if trip.ttft_s is None:
                        trip.ttft_s = self._engine.clock() - call.job.arrived_s
                    out += meter.feed(chunk)
        except TimeoutError:
            raise AttemptFailed(SLOW_FIRST_BYTE) from None
        if meter.error is not None and meter.content_events == 0:
            status = stream_error_status(meter.error)
            refusal = msgspec.json.encode({"error": meter.error})
            raise AttemptFailed(classify(status, answer.headers, refusal, target, time.time()))
        if not meter.seen_data and call.ending is not Ending.ANY:
            raise AttemptFailed(_CUT)
        return out

    def _settle_stream(self, call: Call, permit: Permit, trip: Trip, meter: StreamMeter) -> None:
        trip.usage = meter.usage or meter.estimated(permit.workload.prompt_tokens)
        trip.finish_reason = meter.finish_reason
        if meter.error is not None:  # the provider's own last word, already passed on
            self._settle(permit, trip, Outcome.UPSTREAM_ERROR, Verdict.SERVER_ERROR)
            trip.error_code = str(meter.error.get("code") or "stream_error")
        else:
            self._settle(permit, trip, Outcome.OK, Verdict.SUCCESS)

    async def _whole(
        self,
        call: Call,
        target: Target,
        permit: Permit,
        trip: Trip,
        watch: ClientWatch,
        answer: Answer,
        send: Send,
    ) -> None:
        """An answer that is no event stream: JSON is held until it is whole, up to a bound,
        so that a provider that breaks off can still be replaced; the rest passes through."""
        clock = self._clock(target, trip, watch, answer)
        try:
            limit = self.server.stream_buffer_bytes if _is_json(answer) else 0
            parts: list[bytes] = []
            size = 0
            ended = False
            while not ended and size <= limit:
                chunk = await self._next(answer, trip)
                if trip.ttft_s is None:
                    trip.ttft_s = self._engine.clock() - call.job.arrived_s
                ended = not chunk
                parts.append(chunk)
                size += len(chunk)
            body = b"".join(parts)
            if ended:
                if limit and body.lstrip()[:9] == b'{"error":':
                    self._refused_late(body, answer, target)
                trip.usage, trip.finish_reason = answer_usage(body) if limit else (None, None)
                self._settle(permit, trip, Outcome.OK, Verdict.SUCCESS)
                await self._start(call, permit, trip, answer, str(len(body)).encode(), send)
                await self._last(trip, watch, body, send)
                return
            await self._start(call, permit, trip, answer, answer.header(b"content-length"), send)
            tail = b""
            while body:
                clock.writing()
                trip.bytes_out += len(body)
                await send({"type": "http.response.body", "body": body, "more_body": True})
                clock.reading()
                tail = (tail + body)[-USAGE_TAIL_BYTES:]
                body = await self._next(answer, trip)
            trip.usage = tail_usage(tail) if limit else None
            self._settle(permit, trip, Outcome.OK, Verdict.SUCCESS)
            await self._last(trip, watch, b"", send)
        finally:
            clock.stop()

    def _refused_late(self, body: bytes, answer: Answer, target: Target) -> None:
        """A 200 whose body is an error: read it as the refusal it is."""
        try:
            error = msgspec.json.decode(body)["error"]
        except (msgspec.MsgspecError, KeyError, RecursionError):
            return
        if error:
            status = stream_error_status(error if isinstance(error, dict) else {})
            raise AttemptFailed(classify(status, answer.headers, body, target, time.time()))

    async def _next(self, answer: Answer, trip: Trip) -> bytes:
        try:
            return await answer.read_some()
        except AttemptFailed:
            if trip.error_code == SLOW_NEXT_BYTE.code:
                raise AttemptFailed(SLOW_NEXT_BYTE) from None
            raise

    def _clock(self, target: Target, trip: Trip, watch: ClientWatch, answer: Answer) -> StreamClock:
        def idle() -> None:
            trip.error_code = SLOW_NEXT_BYTE.code
            answer.abort()

        return StreamClock(
            self._engine.loop,
            target.account.idle_timeout_s,
            self.server.write_timeout_s,
            idle,
            lambda: watch.end(Ended.STALLED),
        )

    # -- writing to the client ---------------------------------------------------------------

    async def _start(
        self,
        call: Call,
        permit: Permit,
        trip: Trip,
        answer: Answer,
        length: bytes | None,
        send: Send,
    ) -> None:
        headers = [(k, v) for k, v in answer.headers if k in RETURNED and not _CONTROL.search(v)]
        upstream_id = answer.header(b"x-request-id")
        if upstream_id is not None and not _CONTROL.search(upstream_id):
            headers.append((b"x-upstream-request-id", upstream_id))
        if length is not None:
            headers.append((b"content-length", length))
        elif call.stream:
            headers += _EVENT_HEADERS
        headers += call_headers(permit)
        if self._engine.draining:
            headers.append((b"connection", b"close"))
        trip.started, trip.status = True, answer.status
        if call.release is not None:  # no further attempt will need the body
            call.body = b""
            call.release()
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})

    async def _last(self, trip: Trip, watch: ClientWatch, body: bytes, send: Send) -> None:
        trip.bytes_out += len(body)
        trip.complete = True
        watch.close()
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _broken(
        self, permit: Permit, trip: Trip, watch: ClientWatch, failure: Failure, send: Send
    ) -> None:
        """The provider failed after the first byte: say so in the stream, and end."""
        self._settle(permit, trip, failure.outcome, failure.verdict)
        trip.error_code = failure.code
        await self._final_error(trip, watch, _error_of(failure), send)

    async def _final_error(
        self, trip: Trip, watch: ClientWatch, error: GatewayError, send: Send
    ) -> None:
        watch.close()
        if trip.answer is not None and _is_events(trip.answer):
            event = event_of(msgspec.json.encode(error.wire()))
            trip.bytes_out += len(event)
            trip.complete = True
            await send({"type": "http.response.body", "body": event, "more_body": False})
        else:
            # No way to tell inside the body: a connection cut short is the honest end.
            raise BrokenAnswer(error.message)

    async def _answer_error(
        self, call: Call, permit: Permit, trip: Trip, error: GatewayError, send: Send
    ) -> None:
        trip.outcome = permit.outcome or Outcome.FAILED
        trip.status, trip.error_code = error.status, error.code
        trip.started = trip.complete = True
        await self._send_error(send, error, call_headers(permit))

    async def _ended_early(self, call: Call, trip: Trip, why: Ended, send: Send) -> None:
        trip.outcome = _OUTCOMES[why]
        if why is Ended.LEFT:
            trip.status = 499
        elif why is Ended.STALLED:
            if call.connection is not None:
                call.connection.abort()
        else:
            error = Unavailable("The gateway is stopping.", code="shutdown")
            if not trip.started:
                trip.status = error.status
                await self._send_error(send, error, [])
            elif trip.answer is not None and _is_events(trip.answer):
                event = event_of(msgspec.json.encode(error.wire()))
                await send({"type": "http.response.body", "body": event, "more_body": False})
            elif call.connection is not None:
                call.connection.abort()

    # -- settling ----------------------------------------------------------------------------

    def _settle(self, permit: Permit, trip: Trip, outcome: Outcome, verdict: Verdict) -> None:
        trip.outcome = outcome
        trip.upstream_s = self._engine.clock() - permit.dispatched_s
        permit.end(outcome, verdict, trip.usage)

    def _record(self, call: Call, permit: Permit, trip: Trip) -> JobRecord:
        job = call.job
        return JobRecord(
            id=job.id,
            generates=job.generates,
            wall_s=time.time(),
            route=call.route,
            tenant=job.tenant,
            model=job.model,
            outcome=trip.outcome,
            status=trip.status,
            stream=call.stream,
            n=job.n,
            account=trip.account,
            attempts=permit.attempts,
            job_class=job.class_override or permit.workload.job_class,
            first=job.workload,
            workload=permit.workload,
            usage=trip.usage,
            reserve_tokens=job.n * permit.workload.p50,
            queue_s=permit.queue_s,
            ttft_s=trip.ttft_s,
            upstream_s=trip.upstream_s,
            total_s=self._engine.clock() - job.arrived_s,
            finish_reason=trip.finish_reason,
            error_code=trip.error_code,
            bytes_out=trip.bytes_out,
            cost_usd=None if trip.usage is None else self._cost(job.model, trip.usage),
        )


_FAULT = "The gateway failed to handle the request."


class BrokenAnswer(Exception):
    """The answer cannot be finished; the server closes the connection short of its end."""


_OUTCOMES = {
    None: Outcome.SHUTDOWN,  # cancelled from elsewhere: the server's own end
    Ended.LEFT: Outcome.CANCELLED,
    Ended.STALLED: Outcome.STALLED,
    Ended.SHUTDOWN: Outcome.SHUTDOWN,
}
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # what no header value may hold
_EVENT_HEADERS: Headers = [
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]

_REMOVED = Failure(
    Verdict.IGNORED, Outcome.UPSTREAM_ERROR, True, 503, "no_account", "the account was removed"
)
_REDIRECT = Failure(
    Verdict.IGNORED,
    Outcome.UPSTREAM_ERROR,
    False,
    502,
    "upstream_redirect",
    "the provider answered with a redirect, which is not followed",
)
_CUT = Failure(
    Verdict.SERVER_ERROR,
    Outcome.UPSTREAM_ERROR,
    True,
    502,
    "upstream_broken",
    "the provider's stream ended before its end",
)


def call_headers(permit: Permit) -> Headers:
    """The headers that tell a client what the gateway did with its request."""
    workload = permit.workload
    headers = [
        (b"x-request-id", permit.job.id.encode()),
        (
            b"x-sagesched-class",
            (permit.job.class_override or workload.job_class).value.encode(),
        ),
        (b"x-sagesched-predicted-tokens", str(round(workload.p50)).encode()),
        (b"x-sagesched-queue-ms", str(round(permit.queue_s * 1000)).encode()),
    ]
    if permit.account is not None:
        headers.append((b"x-sagesched-account", permit.account.encode()))
    return headers


def _error_of(failure: Failure) -> GatewayError:
    if failure.body is not None:
        return UpstreamRefused(failure.status, failure.body, retry_after_s=failure.retry_after_s)
    kind = UpstreamTimeout if failure.status == 504 else UpstreamFailed
    message = failure.message[:1].upper() + failure.message[1:] + "."
    return kind(message, code=failure.code, retry_after_s=failure.retry_after_s)


def _is_whole(call: Call, meter: StreamMeter) -> bool:
    """Whether a stream that ended in good order had said all it had to say."""
    if meter.done or call.ending is Ending.ANY:
        return True
    return call.ending is Ending.CHOICES and meter.finished_choices >= call.job.n


def _is_events(answer: Answer) -> bool:
    """Events that can be read: a provider may compress although it was asked not to."""
    kind = (answer.header(b"content-type") or b"").lower()
    return kind.startswith(b"text/event-stream") and _is_plain(answer)


def _is_plain(answer: Answer) -> bool:
    return answer.header(b"content-encoding") in (None, b"identity")


def _is_json(answer: Answer) -> bool:
    return b"json" in (answer.header(b"content-type") or b"").lower() and _is_plain(answer)


async def _read_tail(answer: Answer) -> None:
    """Read a finished stream to its end, so that its connection can serve again."""
    with contextlib.suppress(AttemptFailed, TimeoutError):
        async with asyncio.timeout(TAIL_S):
            while await answer.read_some():
                pass
