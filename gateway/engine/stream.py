"""The relay of a provider's event stream (`relay_stream`), event by event, counted on the way.

Nothing goes to the client before the first complete event that is not an error: until then
another account may be tried.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from math import inf

import msgspec

from gateway.engine.attempt import CUT_SHORT, NO_EVENT, TimedBody, late_refusal
from gateway.engine.exchange import Exchange, StreamEnd
from gateway.engine.response import ClientResponse
from gateway.types import Outcome, Verdict
from gateway.upstream.http_client import AttemptError, ProviderAnswer
from gateway.upstream.stream_meter import StreamMeter

TAIL_S = 1.0  # the longest wait for the end of a finished stream, to reuse its connection

Outgrown = Callable[[int], object]
"""Called with the output tokens of each choice of an answer that outgrows its forecast."""


class LengthAlarm:
    """Compares a running answer's length with its forecast.

    `at` is the length, of all choices together, past which `passed` is to be called: the p90,
    then each doubling of it. Up to there the forecast may still be right.
    """

    __slots__ = ("_n", "_outgrown", "at")

    def __init__(self, p90: float, n: int, outgrown: Outgrown | None) -> None:
        self._n, self._outgrown = n, outgrown
        self.at = inf if outgrown is None else max(p90, 1.0) * n

    def passed(self, tokens: int) -> None:
        """Report an answer that is `tokens` long, past `at`, and set the next length."""
        assert self._outgrown is not None
        while self.at < tokens:  # a coarse stream may pass several doublings at once
            self.at *= 2
        self._outgrown(tokens // self._n)


class EventRelay:
    """A stream's events, taken from the provider and given to the client in one call.

    `first` and `rest` are sinks of the provider's connection. What they have taken and not given
    on is in `out`, at most `most_bytes` before the first event.
    """

    __slots__ = ("_alarm", "_exchange", "_most_bytes", "_response", "meter", "out")

    def __init__(
        self,
        exchange: Exchange,
        response: ClientResponse,
        meter: StreamMeter,
        alarm: LengthAlarm,
        most_bytes: int,
    ) -> None:
        self._exchange = exchange
        self._response = response
        self._alarm = alarm
        self._most_bytes = most_bytes
        self.meter = meter
        self.out = b""

    def first(self, chunk: bytes) -> bool:
        """Keep what comes until the first whole event; comments are none, they promise nothing.
        Raises AttemptError where there are too many."""
        self._exchange.first_byte()
        self.out += self.meter.feed(chunk)
        if self.meter.seen_data:
            return False
        if len(self.out) > self._most_bytes:
            raise AttemptError(NO_EVENT)
        return True

    def rest(self, chunk: bytes) -> bool:
        """Give whole events to the client. False after the stream's last, which is kept, and where
        the client has to be waited for."""
        meter = self.meter
        out = meter.feed(chunk)
        if meter.output_tokens > self._alarm.at and meter.finish_reason is None:
            self._alarm.passed(meter.output_tokens)
        if meter.done:
            self.out = out
            return False
        return not out or self._response.write(out)


async def relay_stream(
    body: TimedBody,
    response: ClientResponse,
    max_event_bytes: int,
    outgrown: Outgrown | None = None,
) -> None:
    """Relay to the end and settle. Raises AttemptError, before the first byte to the client or
    after it."""
    exchange, permit = body.exchange, body.exchange.permit
    meter = StreamMeter(hide_usage=not exchange.wants_usage, max_event_bytes=max_event_bytes)
    alarm = LengthAlarm(permit.workload.p90, exchange.job.n, outgrown)
    events = EventRelay(exchange, response, meter, alarm, max_event_bytes)
    with body:
        await body.pour_first(events.first)
        _check_first(body, meter)
        try:
            response.start(body.answer, None, events=True)
            if not meter.done:
                await _relay_rest(body, events)
            response.last(events.out)
            _settle(exchange, meter)
        except (AttemptError, asyncio.CancelledError):
            exchange.usage = meter.usage or meter.estimated(permit.workload.prompt_tokens)
            raise


def _check_first(body: TimedBody, meter: StreamMeter) -> None:
    """Read an error in place of the first event as the refusal it is, and an end before it as a
    failure. Raises AttemptError."""
    if meter.error is not None and meter.content_events == 0:
        refusal = msgspec.json.encode({"error": meter.error})
        raise late_refusal(body.answer, meter.error, refusal, body.target)
    if not meter.seen_data and body.exchange.stream_end is not StreamEnd.ANY:
        raise AttemptError(CUT_SHORT)


async def _relay_rest(body: TimedBody, events: EventRelay) -> None:
    """Relay what follows the first event, but for the last bytes: they are `events.out`."""
    meter = events.meter
    if not body.write(events.out):
        await body.drained()
    events.out = b""
    while await body.pour(events.rest):
        if meter.done:
            return
        await body.drained()
    events.out = meter.rest()  # its last event may lack the blank line
    if not _is_complete(body.exchange, meter) and meter.error is None:
        raise AttemptError(CUT_SHORT)


def _settle(exchange: Exchange, meter: StreamMeter) -> None:
    permit = exchange.permit
    exchange.usage = meter.usage or meter.estimated(permit.workload.prompt_tokens)
    exchange.finish_reason = meter.finish_reason
    if meter.error is not None:  # the provider's own last word, already passed on
        exchange.settle(Outcome.UPSTREAM_ERROR, Verdict.SERVER_ERROR)
        exchange.error_code = str(meter.error.get("code") or "stream_error")
    else:
        exchange.settle(Outcome.OK, Verdict.SUCCESS)


def _is_complete(exchange: Exchange, meter: StreamMeter) -> bool:
    """True of a stream that ended in good order and with the end of its route."""
    if meter.done or exchange.stream_end is StreamEnd.ANY:
        return True
    choices = exchange.stream_end is StreamEnd.CHOICES
    return choices and meter.finished_choices >= exchange.job.n


async def read_tail(answer: ProviderAnswer) -> None:
    """Read a finished stream to its end, so that its connection can serve again."""
    try:
        if not answer.complete:
            with contextlib.suppress(AttemptError, TimeoutError):
                async with asyncio.timeout(TAIL_S):
                    await answer.pour(lambda _: True)
    finally:
        answer.abort()  # of an answer that is complete nothing is lost by that
