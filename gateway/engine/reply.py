"""What one client is sent: a status line once, then a body, and an honest end.

Before the status line an error is a response of its own. After it there is no second one: in an
event stream an error is the last event, without `[DONE]`; in any other answer there is no way to
tell inside the body, and a connection cut short is the honest end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from gateway.engine.attempt import is_events
from gateway.engine.engine import Engine
from gateway.engine.heads import answer_headers, call_headers
from gateway.engine.scope import ClientWatch, Ended, Send
from gateway.engine.trip import OUTCOMES, Trip
from gateway.errors import GatewayError, Unavailable
from gateway.types import Outcome
from gateway.upstream.client import Answer
from gateway.upstream.providers import Headers
from gateway.upstream.sse import event_of

SendError = Callable[[Send, GatewayError, Headers], Awaitable[None]]
"""Writes an error as a whole response: the api room's business."""


class BrokenAnswer(Exception):
    """The answer cannot be finished; the server closes the connection short of its end."""


class Reply:
    """One call's client, as far as it is written to; each write is in the trip."""

    __slots__ = ("_engine", "_send", "_send_error", "_trip", "_watch")

    def __init__(
        self, engine: Engine, trip: Trip, watch: ClientWatch, send: Send, send_error: SendError
    ) -> None:
        self._engine = engine
        self._trip = trip
        self._watch = watch
        self._send = send
        self._send_error = send_error

    async def start(self, answer: Answer, length: bytes | None) -> None:
        """The status line, and with it the promise: no other attempt will be made. `length` is
        the body's, None where nobody knows."""
        trip, call = self._trip, self._trip.call
        closing = self._engine.draining
        headers = answer_headers(answer, trip.permit, length, stream=call.stream, closing=closing)
        trip.started, trip.status = True, answer.status
        call.let_go_of_body()
        await self._send(
            {"type": "http.response.start", "status": answer.status, "headers": headers}
        )

    def part(self, body: bytes) -> Awaitable[None]:
        """Some of the body; more will come. To be awaited."""
        self._trip.bytes_out += len(body)
        return self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def last(self, body: bytes) -> None:
        """The end of the body. From here on the client may leave as it likes."""
        self._trip.bytes_out += len(body)
        self._trip.complete = True
        self._watch.close()
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def stalled(self) -> None:
        """The client has taken nothing for too long."""
        self._watch.end(Ended.STALLED)

    # -- ends that are none --------------------------------------------------------------------

    async def refuse(self, error: GatewayError) -> None:
        """An error in place of an answer."""
        trip = self._trip
        trip.outcome = trip.permit.outcome or Outcome.FAILED
        trip.status, trip.error_code = error.status, error.code
        trip.started = trip.complete = True
        await self._send_error(self._send, error, call_headers(trip.permit))

    async def break_off(self, error: GatewayError) -> None:
        """The provider failed after the first byte. Raises BrokenAnswer where only a broken
        connection can tell."""
        self._watch.close()
        if not self._streams:
            raise BrokenAnswer(error.message)
        event = event_of(msgspec.json.encode(error.wire()))
        self._trip.bytes_out += len(event)
        self._trip.complete = True
        await self._send({"type": "http.response.body", "body": event, "more_body": False})

    async def end_early(self, why: Ended) -> None:
        """The call was cancelled before its last byte."""
        trip, connection = self._trip, self._trip.call.connection
        trip.outcome = OUTCOMES[why]
        if why is Ended.LEFT:
            trip.status = 499
        elif why is Ended.STALLED:
            if connection is not None:
                connection.abort()
        else:
            error = Unavailable("The gateway is stopping.", code="shutdown")
            if not trip.started:
                trip.status = error.status
                await self._send_error(self._send, error, [])
            elif self._streams:
                event = event_of(msgspec.json.encode(error.wire()))
                await self._send({"type": "http.response.body", "body": event, "more_body": False})
            elif connection is not None:
                connection.abort()

    @property
    def _streams(self) -> bool:
        """Whether the client is in the middle of an event stream."""
        answer = self._trip.answer
        return answer is not None and is_events(answer)
