"""One request's way from permit to last byte.

Rules:
1. Nothing is promised to the client before the provider has given a first byte that is not
   an error: until then another account may be tried. After that there is one status line,
   and a failure is one final `data: {"error": …}` event without `[DONE]`, or a broken
   connection where the answer is no event stream.
2. Permit and lease end when the *provider* is done, not when the client has read: between
   them lies the connection's write buffer, about a megabyte (see api/protocol.py).
3. Every way out settles once. Dropping the provider's socket is synchronous.

    call.py     what is asked                    attempt.py  one account is called
    trip.py     what becomes of it               stream.py   its answer, as events …
    reply.py    what the client is sent          whole.py    … or as anything else
    heads.py    … with which headers             passage.py  bytes under way, and their clocks
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from gateway.engine.attempt import attempt, is_events
from gateway.engine.call import Call
from gateway.engine.engine import Engine, Permit
from gateway.engine.failures import REMOVED, error_of
from gateway.engine.passage import Passage
from gateway.engine.reply import BrokenAnswer, Reply, SendError
from gateway.engine.scope import ClientWatch, Ended, Receive, Send
from gateway.engine.stream import relay_stream
from gateway.engine.trip import Cost, Trip
from gateway.engine.whole import relay_whole
from gateway.errors import GatewayError
from gateway.settings.schema import Server
from gateway.types import JobRecord, Outcome, Usage
from gateway.upstream.client import AttemptError, UpstreamClient
from gateway.upstream.providers import Failure, Target

logger = logging.getLogger("gateway.engine")
_FAULT = "The gateway failed to handle the request."


def free(model: str, usage: Usage) -> None:
    """The cost where nobody knows a price."""


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
        watch = ClientWatch(receive)
        self._open[watch] = call
        permit = self._engine.submit(call.job, len(call.body))
        trip = Trip(call, permit, self._engine.clock)
        reply = Reply(self._engine, trip, watch, send, self._send_error)
        try:
            async with watch:
                with permit:
                    if submitted is not None:
                        submitted(permit)
                    try:
                        await self._serve(trip, reply)
                    except asyncio.CancelledError:
                        trip.cut(watch.ended)
                        raise
        except GatewayError as error:
            await reply.refuse(error)
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
            await reply.refuse(GatewayError(_FAULT))
        finally:
            if trip.answer is not None:
                trip.answer.abort()
            if watch.ended is not None and not trip.complete:
                await reply.end_early(watch.ended)
            record = trip.record(self._cost)
            self._engine.ended(record)
            self._closed(watch)
        return record

    async def _serve(self, trip: Trip, reply: Reply) -> None:
        """Attempts, until one has brought an answer or there is no other account."""
        permit = trip.permit
        while True:
            trip.account = await permit.granted()
            target = self.targets.get(trip.account)
            if target is None:  # removed by a reload between dispatch and here
                _failed(permit, REMOVED)
                continue
            try:
                answer = await attempt(self._client, target, trip)
                passage = Passage(answer, target, trip, reply, self.server)
                relay = relay_stream if is_events(answer) else relay_whole
                await relay(passage, reply, self.server.stream_buffer_bytes)
                return
            except AttemptError as failed:
                if trip.answer is not None:
                    trip.answer.abort()
                if trip.started:
                    failure = failed.failure
                    trip.settle(failure.outcome, failure.verdict)
                    trip.error_code = failure.code
                    await reply.break_off(error_of(failure))
                    return
                _failed(permit, failed.failure)


def _failed(permit: Permit, failure: Failure) -> None:
    """The attempt brought nothing. Raises where no other may be made."""
    if failure.retryable:
        error = error_of(failure)
        permit.failed(failure.verdict, failure.retry_after_s, error, retryable=True)
        return
    permit.end(failure.outcome, failure.verdict)
    permit.outcome = failure.outcome
    raise error_of(failure)  # in no variable: its traceback holds this frame
