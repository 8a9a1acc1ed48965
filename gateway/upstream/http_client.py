"""Attempts: one HTTP exchange with one account, and what a failed one teaches.

The exchange itself is the connection pool's; here its errors become failures with a verdict.
"""

from __future__ import annotations

from gateway.types import Outcome, Verdict
from gateway.upstream.connection_pool import (
    ConnectFailed,
    ConnectionPool,
    ConnectTimeout,
    OutOfDescriptors,
)
from gateway.upstream.provider_connection import (
    ConnectionBroken,
    FirstByteTimeout,
    ProviderConnection,
    Sink,
)
from gateway.upstream.providers import Failure, Headers, Target, head_for


class AttemptError(Exception):
    """An attempt that brought no answer; `failure` has its verdict and its error."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class ProviderAnswer:
    """A provider's answer: its headers, and a body that may still be arriving."""

    __slots__ = ("_connection", "_service", "headers", "status")

    def __init__(self, connection: ProviderConnection) -> None:
        self.status = connection.status
        self.headers: Headers = connection.headers
        self._connection: ProviderConnection | None = connection
        self._service = connection.service

    @property
    def complete(self) -> bool:
        """True where nothing more of it has to be waited for."""
        return self._connection is None or self._connection.complete

    async def pour(self, sink: Sink) -> bool:
        """Give `sink` the body as it comes, until it refuses more (True) or the body ends (False).

        Raises AttemptError if the provider breaks off.
        """
        connection = self._connection
        if connection is None:
            return False
        try:
            more = await connection.pour(sink)
        except ConnectionBroken:
            raise AttemptError(BROKEN) from None
        if not more:
            self._connection = None  # it may serve another request from now on
        return more

    async def read_some(self) -> bytes:
        """The next bytes; b"" at the end. Raises AttemptError if the provider breaks off."""
        connection = self._connection
        if connection is None:
            return b""
        try:
            chunk = await connection.read_some()
        except ConnectionBroken:
            raise AttemptError(BROKEN) from None
        if not chunk:
            self._connection = None  # it may serve another request from now on
        return chunk

    def read_whole(self, limit: int) -> bytes | None:
        """The rest of the body where it is all here and no longer than `limit`; else None."""
        connection = self._connection
        body = b"" if connection is None else connection.read_whole(limit)
        if body is not None:
            self._connection = None  # it may serve another request from now on
        return body

    async def read_up_to(self, limit: int) -> bytes:
        """The whole body, cut at `limit` bytes."""
        parts, size = [], 0
        while size < limit and (chunk := await self.read_some()):
            parts.append(chunk)
            size += len(chunk)
        return b"".join(parts)[:limit]

    @property
    def heard_s(self) -> float:
        """The moment of its latest bytes, on the clock of time.monotonic and the event loop."""
        return self._service.heard_s

    @property
    def service_s(self) -> float:
        """Seconds that the provider took for what has come of it, as `ServiceTime` counts."""
        return self._service.seconds

    def header(self, name: bytes) -> bytes | None:
        """The header `name`, in lower case; None where it is absent."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def abort(self) -> None:
        """Ends the exchange without awaiting: closes the socket unless the answer is here to its
        last byte. Nothing happens where the answer was read to its end."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()


def _failure(verdict: Verdict, status: int, code: str, message: str) -> Failure:
    timed_out = verdict is Verdict.TIMEOUT
    outcome = Outcome.UPSTREAM_TIMEOUT if timed_out else Outcome.UPSTREAM_ERROR
    return Failure(verdict, outcome, True, status, code, message)


BROKEN = _failure(Verdict.SERVER_ERROR, 502, "upstream_broken", "the provider broke off its answer")
UNREACHABLE = _failure(
    Verdict.UNREACHABLE, 502, "upstream_unreachable", "the provider could not be reached"
)
NO_ANSWER = _failure(
    Verdict.SERVER_ERROR, 502, "upstream_broken", "the provider closed the connection unanswered"
)
SLOW_CONNECT = _failure(
    Verdict.UNREACHABLE, 504, "upstream_timeout", "no connection to the provider in time"
)
SLOW_FIRST_BYTE = _failure(
    Verdict.TIMEOUT, 504, "upstream_timeout", "no first byte from the provider in time"
)
SLOW_NEXT_BYTE = _failure(
    Verdict.TIMEOUT, 504, "upstream_timeout", "the provider fell silent in mid-answer"
)
STALE = _failure(
    Verdict.IGNORED, 502, "upstream_broken", "the provider closed a kept connection unanswered"
)
NO_DESCRIPTORS = Failure(
    Verdict.IGNORED,
    Outcome.FAILED,
    False,
    503,
    "no_descriptors",
    "the gateway has no descriptor or port left for another connection",
)


class UpstreamClient:
    """Client that sends requests to accounts, over the connections of a pool."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool

    async def send(
        self,
        to: Target,
        method: str,
        path: str,
        query: bytes,
        client_headers: Headers,
        body: bytes,
    ) -> ProviderAnswer:
        """Sends one attempt and waits for the answer's headers. `path` is below /v1.

        Cancelling closes the connection. The caller owns the answer and must read it to its end
        or `abort()` it.

        Raises:
            AttemptError: no answer, or none in time.
        """
        account = to.account
        try:
            connection = await self.pool.request(
                to.origin,
                method,
                head_for(to, method, path, query, client_headers, len(body)),
                body,
                connect_timeout_s=account.connect_timeout_s,
                first_byte_timeout_s=account.first_byte_timeout_s,
            )
        except ConnectTimeout:
            raise AttemptError(SLOW_CONNECT) from None
        except ConnectFailed:
            raise AttemptError(UNREACHABLE) from None
        except OutOfDescriptors:
            raise AttemptError(NO_DESCRIPTORS) from None
        except FirstByteTimeout:
            raise AttemptError(SLOW_FIRST_BYTE) from None
        except ConnectionBroken as error:
            failure = STALE if error.stale else NO_ANSWER if error.untouched else BROKEN
            raise AttemptError(failure) from None
        return ProviderAnswer(connection)

    async def aclose(self) -> None:
        """Drops every connection."""
        await self.pool.aclose()
