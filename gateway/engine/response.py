"""The response to one client: one status line, a body, and an end that shows any failure.

Before the status line an error is a response of its own. After it there is no second one: in an
event stream an error is the last event, without `[DONE]`; any other body cannot carry one, so
the connection is cut short.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from gateway.engine.client_watch import CancelReason, ClientWatch, Connection
from gateway.engine.engine import Engine, Permit
from gateway.engine.exchange import OUTCOMES, Exchange
from gateway.errors import GatewayError, Stopping
from gateway.upstream.http_client import ProviderAnswer
from gateway.upstream.providers import RETURNED, Headers
from gateway.upstream.sse import event_of

WriteError = Callable[[Connection, GatewayError, Headers], None]
"""Writes an error as a whole response: the api room's business."""

_RETURNED = RETURNED | {b"x-request-id"}  # under another name
_EVENT_HEADERS: Headers = [
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


class ClientResponse:
    """Writes one client's response and notes each write in the exchange. Nothing here awaits
    anything but `drained`."""

    __slots__ = ("_connection", "_engine", "_events", "_exchange", "_watch", "_write_error")

    def __init__(
        self,
        engine: Engine,
        exchange: Exchange,
        watch: ClientWatch,
        write_error: WriteError,
    ) -> None:
        self._engine = engine
        self._exchange = exchange
        self._connection = exchange.connection
        self._watch = watch
        self._write_error = write_error
        self._events = False  # the client is in the middle of an event stream

    def start(self, answer: ProviderAnswer, length: bytes | None, *, events: bool = False) -> None:
        """Set the status line, after which no other attempt is possible.

        Args:
            length: of the body, None where it is not known.
            events: the body is an event stream.
        """
        exchange = self._exchange
        headers = answer_headers(
            answer,
            exchange.permit,
            length,
            stream=exchange.stream,
            closing=self._engine.draining,
        )
        exchange.started, exchange.status = True, answer.status
        self._events = events
        exchange.release_body()
        self._connection.start(answer.status, headers)

    def write(self, body: bytes) -> bool:
        """Write some of the body; more will come. False: the client is slow, and no more should be
        written until it has `drained`."""
        self._exchange.bytes_out += len(body)
        return self._connection.write(body)

    def drained(self) -> Awaitable[None]:
        """Wait until the client has taken enough, or has left."""
        return self._connection.drained()

    def last(self, body: bytes) -> None:
        """Write the end of the body. From here on a client that leaves cancels nothing."""
        self._exchange.bytes_out += len(body)
        self._exchange.complete = True
        self._watch.close()
        self._connection.finish(body)

    def stalled(self) -> None:
        """Cancel the request of a client that has taken nothing for too long."""
        self._watch.cancel(CancelReason.STALLED)

    # -- errors and early ends -----------------------------------------------------------------

    def refuse(self, error: GatewayError) -> None:
        """Write an error in place of an answer."""
        exchange = self._exchange
        exchange.status, exchange.error_code = error.status, error.code
        exchange.started = exchange.complete = True
        self._write_error(self._connection, error, permit_headers(exchange.permit))

    def break_off(self, error: GatewayError) -> None:
        """End an answer whose provider, or whose gateway, failed after the first byte."""
        self._watch.close()
        if not self._events:
            self._connection.break_off()
            return
        event = event_of(msgspec.json.encode(error.wire()))
        self._exchange.bytes_out += len(event)
        self._exchange.complete = True
        self._connection.finish(event)

    def end_early(self, reason: CancelReason) -> None:
        """End the answer of a request that was cancelled before its last byte."""
        exchange, connection = self._exchange, self._connection
        exchange.outcome = OUTCOMES[reason]
        if reason is CancelReason.LEFT:
            exchange.status = 499
        elif reason is CancelReason.STALLED:
            connection.abort()
        else:
            error = Stopping()
            if not exchange.started:
                exchange.status = error.status
                self._write_error(connection, error, [])
            elif self._events:
                connection.finish(event_of(msgspec.json.encode(error.wire())))
            else:
                connection.abort()


def answer_headers(
    answer: ProviderAnswer, permit: Permit, length: bytes | None, *, stream: bool, closing: bool
) -> Headers:
    """The client's headers of a provider's answer: the allowed ones of its own, and ours.

    Args:
        length: of its body, None where it is not known.
        stream: the client asked for events.
        closing: the gateway stops; the client is to come again on another connection.
    """
    headers = [
        pair if pair[0] != b"x-request-id" else (b"x-upstream-request-id", pair[1])
        for pair in answer.headers
        if pair[0] in _RETURNED
    ]
    if length is not None:
        headers.append((b"content-length", length))
    elif stream:
        headers += _EVENT_HEADERS
    headers += permit_headers(permit)
    if closing:
        headers.append((b"connection", b"close"))
    return headers


def permit_headers(permit: Permit) -> Headers:
    """The headers about the gateway's own work: class, forecast, wait, account."""
    workload = permit.workload
    headers = [
        (b"x-request-id", permit.job.id.encode()),
        (b"x-sagesched-class", (permit.job.class_override or workload.job_class).encode()),
        (b"x-sagesched-predicted-tokens", b"%d" % round(workload.p50)),
        (b"x-sagesched-queue-ms", b"%d" % round(permit.queue_s * 1000)),
    ]
    if permit.account is not None:
        headers.append((b"x-sagesched-account", permit.account.encode()))
    return headers
