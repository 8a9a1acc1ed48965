"""A provider's event stream, passed on event by event and counted on the way.

Nothing goes to the client before the first whole event that is not an error: until then another
account may be tried.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from gateway.engine.attempt import refused_late
from gateway.engine.call import Call, Ending
from gateway.engine.failures import CUT
from gateway.engine.overrun import Overrun
from gateway.engine.passage import Passage
from gateway.engine.reply import Reply
from gateway.engine.trip import Trip
from gateway.types import Outcome, Verdict
from gateway.upstream.client import SLOW_FIRST_BYTE, Answer, AttemptError
from gateway.upstream.usage import StreamMeter

TAIL_S = 1.0  # how long the end of a finished stream is waited for, to reuse its connection


async def relay_stream(passage: Passage, reply: Reply, max_event_bytes: int) -> None:
    """To its end, settled. Raises AttemptError, whether the client has had something or not."""
    trip = passage.trip
    call, permit = trip.call, trip.permit
    meter = StreamMeter(hide_usage=not call.wants_usage, max_event_bytes=max_event_bytes)
    out = await _first_events(passage, meter)
    overrun = Overrun(permit.workload.p90, call.job.n, call.outgrown)
    with passage:
        try:
            await reply.start(passage.answer, None)
            while not meter.done:
                if out:
                    await passage.write(out)
                chunk = await passage.read()
                if not chunk:
                    out = meter.rest()  # its last event may lack the blank line
                    if not _is_whole(call, meter) and meter.error is None:
                        raise AttemptError(CUT)
                    break
                out = meter.feed(chunk)
                if meter.output_tokens > overrun.at and meter.finish_reason is None:
                    overrun.passed(meter.output_tokens)
            _settle(trip, meter)
            await reply.last(out)
            await _read_tail(passage.answer)
        except (AttemptError, asyncio.CancelledError):
            trip.usage = meter.usage or meter.estimated(permit.workload.prompt_tokens)
            raise


async def _first_events(passage: Passage, meter: StreamMeter) -> bytes:
    """The first whole event. An error in its place is a refusal that came late."""
    trip, target = passage.trip, passage.target
    out = b""
    try:
        async with asyncio.timeout(target.account.first_byte_timeout_s):
            while not meter.seen_data:  # comments are held: they promise nothing yet
                chunk = await passage.read()
                if not chunk:
                    break
                trip.first_byte()
                out += meter.feed(chunk)
    except TimeoutError:
        raise AttemptError(SLOW_FIRST_BYTE) from None
    if meter.error is not None and meter.content_events == 0:
        words = msgspec.json.encode({"error": meter.error})
        raise refused_late(passage.answer, meter.error, words, target)
    if not meter.seen_data and trip.call.ending is not Ending.ANY:
        raise AttemptError(CUT)
    return out


def _settle(trip: Trip, meter: StreamMeter) -> None:
    trip.usage = meter.usage or meter.estimated(trip.permit.workload.prompt_tokens)
    trip.finish_reason = meter.finish_reason
    if meter.error is not None:  # the provider's own last word, already passed on
        trip.settle(Outcome.UPSTREAM_ERROR, Verdict.SERVER_ERROR)
        trip.error_code = str(meter.error.get("code") or "stream_error")
    else:
        trip.settle(Outcome.OK, Verdict.SUCCESS)


def _is_whole(call: Call, meter: StreamMeter) -> bool:
    """Whether a stream that ended in good order had said all it had to say."""
    if meter.done or call.ending is Ending.ANY:
        return True
    return call.ending is Ending.CHOICES and meter.finished_choices >= call.job.n


async def _read_tail(answer: Answer) -> None:
    """Read a finished stream to its end, so that its connection can serve again."""
    with contextlib.suppress(AttemptError, TimeoutError):
        async with asyncio.timeout(TAIL_S):
            while await answer.read_some():
                pass
