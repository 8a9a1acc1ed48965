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

from gateway.engine.attempt import CUT_SHORT, TimedBody, late_refusal
from gateway.engine.exchange import Exchange, StreamEnd
from gateway.engine.response import ClientResponse
from gateway.types import Outcome, Verdict
from gateway.upstream.http_client import SLOW_FIRST_BYTE, AttemptError, ProviderAnswer
from gateway.upstream.usage import StreamMeter

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
    out = await _first_events(body, meter)
    alarm = LengthAlarm(permit.workload.p90, exchange.job.n, outgrown)
    with body:
        try:
            response.start(body.answer, None, events=True)
            while not meter.done:
                if out and not body.write(out):
                    await body.drained()
                chunk = await body.read()
                if not chunk:
                    out = meter.rest()  # its last event may lack the blank line
                    if not _is_complete(exchange, meter) and meter.error is None:
                        raise AttemptError(CUT_SHORT)
                    break
                out = meter.feed(chunk)
                if meter.output_tokens > alarm.at and meter.finish_reason is None:
                    alarm.passed(meter.output_tokens)
            response.last(out)
            _settle(exchange, meter)
            await _read_tail(body.answer)
        except (AttemptError, asyncio.CancelledError):
            exchange.usage = meter.usage or meter.estimated(permit.workload.prompt_tokens)
            raise


async def _first_events(body: TimedBody, meter: StreamMeter) -> bytes:
    """The first complete event. An error in its place is a refusal that came late."""
    exchange, target = body.exchange, body.target
    out = b""
    try:
        async with asyncio.timeout(target.account.first_byte_timeout_s):
            while not meter.seen_data:  # comments are held: they promise nothing yet
                chunk = await body.read()
                if not chunk:
                    break
                exchange.first_byte()
                out += meter.feed(chunk)
    except TimeoutError:
        raise AttemptError(SLOW_FIRST_BYTE) from None
    if meter.error is not None and meter.content_events == 0:
        refusal = msgspec.json.encode({"error": meter.error})
        raise late_refusal(body.answer, meter.error, refusal, target)
    if not meter.seen_data and exchange.stream_end is not StreamEnd.ANY:
        raise AttemptError(CUT_SHORT)
    return out


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


async def _read_tail(answer: ProviderAnswer) -> None:
    """Read a finished stream to its end, so that its connection can serve again."""
    with contextlib.suppress(AttemptError, TimeoutError):
        async with asyncio.timeout(TAIL_S):
            while await answer.read_some():
                pass
