"""The relay of one request, from its permit to the answer's last byte.

Rules:
1. Nothing is promised to the client before the provider has given a first byte that is not
   an error: until then another account may be tried. After that there is one status line,
   and a failure is one final `data: {"error": …}` event without `[DONE]`, or a broken
   connection where the answer is no event stream.
2. Permit and lease end when the *provider* is done, not when the client has read: between
   them lies the connection's write buffer, about a megabyte (api/client_connections.py).
3. Every way out settles once, at once: after the client's last bytes were written, which awaits
   nothing, and before anything else. Dropping the provider's socket is synchronous.

    exchange.py      the request and its outcome    attempt.py   a call to one account
    response.py      what the client is sent        stream.py    its answer as events …
    client_watch.py  the client may leave           buffered.py  … or as anything else
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

from gateway.engine.attempt import REMOVED, TimedBody, attempt, error_of, is_events
from gateway.engine.buffered import relay_buffered
from gateway.engine.client_watch import CancelReason, ClientWatch
from gateway.engine.engine import Engine, Permit
from gateway.engine.exchange import Exchange
from gateway.engine.response import ClientResponse, WriteError
from gateway.engine.stream import read_tail, relay_stream
from gateway.errors import GatewayError
from gateway.predict.prices import Price
from gateway.predict.process.predictor import Predictor
from gateway.settings.schema import Server
from gateway.types import JobRecord, Outcome
from gateway.upstream.http_client import AttemptError, ProviderAnswer, UpstreamClient
from gateway.upstream.providers import Failure, Target

logger = logging.getLogger("gateway.engine")
_FAULT = "The gateway failed to handle the request."


class Relay:
    """Relays exchanges. One per process.

    Args:
        targets: account name → where and how to call it; replaced whole on a reload.
        write_error: writes a GatewayError as a response (the api room's business).
        predictor: gives better forecasts of what waits, and learns of answers that outgrow
            theirs.
        prices: by model, for the record's cost.
    """

    def __init__(
        self,
        engine: Engine,
        client: UpstreamClient,
        targets: Mapping[str, Target],
        server: Server,
        write_error: WriteError,
        *,
        predictor: Predictor,
        prices: Mapping[str, Price],
    ) -> None:
        self._engine = engine
        self._client = client
        self.targets = targets
        self.server = server
        self._predictor = predictor
        self._prices = prices
        self._write_error = write_error
        self._open: dict[ClientWatch, Exchange] = {}
        self._idle: asyncio.Future[None] | None = None

    @property
    def open(self) -> int:
        """Exchanges under way, those whose clients still read included."""
        return len(self._open)

    def end_all(self) -> None:
        """Cancel every exchange now and send its client the reason."""
        for watch in list(self._open):
            watch.cancel(CancelReason.SHUTDOWN)

    def abort_all(self) -> None:
        """Drop the connections of all clients that are still there."""
        for watch, exchange in list(self._open.items()):
            exchange.connection.abort()
            watch.cancel(CancelReason.SHUTDOWN)

    async def idle(self) -> None:
        """Wait until no exchange is under way."""
        while self._open:
            self._idle = self._idle or self._engine.loop.create_future()
            await asyncio.shield(self._idle)

    async def run(self, exchange: Exchange) -> JobRecord:
        """Schedule, relay, settle. Returns the record that the listeners were given."""
        permit = exchange.permit = self._engine.submit(exchange.job, len(exchange.body))
        watch = ClientWatch(exchange.connection)
        self._open[watch] = exchange
        response = ClientResponse(self._engine, exchange, watch, self._write_error)
        tail: ProviderAnswer | None = None
        try:
            async with watch:
                with permit:
                    self._refine(exchange)
                    try:
                        await self._serve(exchange, response)
                    except asyncio.CancelledError:
                        exchange.cancel(watch.reason)
                        raise
            if exchange.complete:  # for the rest nobody waits
                tail, exchange.answer = exchange.answer, None
        except GatewayError as error:
            error.__traceback__ = None  # its frames hold the body, and the core may keep it
            response.refuse(error)
        except asyncio.CancelledError:
            exchange.outcome, exchange.status = Outcome.SHUTDOWN, 503
            raise
        except Exception as error:
            self._fail(exchange, response, error)
        finally:
            if exchange.answer is not None:
                exchange.answer.abort()
            if watch.reason is not None and not exchange.complete:
                response.end_early(watch.reason)
            record = exchange.record(self._prices)
            self._engine.ended(record)
            self._close(watch)
        if tail is not None:
            await read_tail(tail)
        return record

    def _fail(self, exchange: Exchange, response: ClientResponse, error: Exception) -> None:
        """Log and record a fault of the gateway, and write the client an error, or break its answer
        off, unless that is complete."""
        logger.error("request failed", exc_info=error, extra={"request_id": exchange.job.id})
        if exchange.complete:
            return
        exchange.outcome, exchange.error_code = Outcome.FAILED, "internal_error"
        if exchange.started:
            response.break_off(GatewayError(_FAULT))
        else:
            response.refuse(GatewayError(_FAULT))

    def _close(self, watch: ClientWatch) -> None:
        self._open.pop(watch, None)
        if not self._open and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    async def _serve(self, exchange: Exchange, response: ClientResponse) -> None:
        """Make attempts until one has brought an answer or there is no other account."""
        permit = exchange.permit
        while True:
            exchange.account = await permit.granted()
            target = self.targets.get(exchange.account)
            if target is None:  # removed by a reload between dispatch and here
                _end_attempt(permit, REMOVED)
                continue
            try:
                await self._attempt(target, exchange, response)
                return
            except AttemptError as error:
                if exchange.answer is not None:
                    exchange.answer.abort()
                if exchange.started:
                    failure = error.failure
                    exchange.settle(failure.outcome, failure.verdict)
                    exchange.error_code = failure.code
                    response.break_off(error_of(failure))
                    return
                _end_attempt(permit, error.failure)

    async def _attempt(self, target: Target, exchange: Exchange, response: ClientResponse) -> None:
        """Call one account and relay its answer. Raises AttemptError."""
        answer = await attempt(self._client, target, exchange)
        server = self.server
        body = TimedBody(
            *(answer, target, exchange, response), server.write_timeout_s, self._engine.loop
        )
        if is_events(answer):
            outgrown = None if exchange.view is None else partial(self._outgrown, exchange)
            await relay_stream(body, response, server.stream_buffer_bytes, outgrown)
        else:
            await relay_buffered(body, response, server.stream_buffer_bytes)

    # -- forecasts -----------------------------------------------------------------------------

    def _refine(self, exchange: Exchange) -> None:
        """Ask for a better forecast of a job that waits: one that runs, or is refused, would not
        be changed by it."""
        view, permit = exchange.view, exchange.permit
        if view is None or permit.account is not None or permit.settled:
            return
        engine, job_id = self._engine, exchange.job.id
        self._predictor.refine(
            view, partial(engine.reforecast, job_id), partial(engine.holds, job_id)
        )

    def _outgrown(self, exchange: Exchange, output_tokens: int) -> None:
        """Report an answer longer than its forecast; `output_tokens` so far, of each choice."""
        if exchange.view is not None:
            self._predictor.observe(exchange.view, output_tokens)
        self._engine.outgrown(exchange.job.id, output_tokens)


def _end_attempt(permit: Permit, failure: Failure) -> None:
    """End a failed attempt. Raises the client's error where no other attempt may be made."""
    if failure.retryable:
        error = error_of(failure)
        permit.failed(
            failure.verdict,
            failure.retry_after_s,
            error,
            outcome=failure.outcome,
            retryable=True,
        )
        return
    permit.end(failure.outcome, failure.verdict)
    raise error_of(failure)  # in no variable: its traceback holds this frame
