"""One attempt: a request to one account, its answer's headers, and its body with time limits.

An answer that is an error, or a redirect, is read here and raised as AttemptError, so the rest of
the relay gets only a status of success. (A refusal may still come late, as the first event of a
stream or in the body of a 200; stream.py and buffered.py look for it.)

A provider that falls silent in mid-answer fails the attempt; a client that takes nothing ends
its request. Between the two lies the connection's write buffer (gateway/api/protocol.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from types import TracebackType
from typing import Any

from gateway.engine.exchange import Exchange
from gateway.engine.response import ClientResponse
from gateway.errors import GatewayError, UpstreamFailed, UpstreamRefused, UpstreamTimeout
from gateway.types import Outcome, Verdict
from gateway.upstream.body_edit import edit_for, edited
from gateway.upstream.http_client import (
    BROKEN,
    SLOW_FIRST_BYTE,
    SLOW_NEXT_BYTE,
    AttemptError,
    ProviderAnswer,
    UpstreamClient,
)
from gateway.upstream.provider_connection import Sink
from gateway.upstream.providers import (
    Failure,
    Target,
    classify,
    stream_error_status,
)
from gateway.upstream.ratelimits import rate_limits

ERROR_BODY_BYTES = 64 * 1024
ERROR_BODY_S = 5.0  # a refusal's text is not worth a longer wait

REMOVED = Failure(
    Verdict.IGNORED, Outcome.UPSTREAM_ERROR, True, 503, "no_account", "the account was removed"
)
REDIRECT = Failure(
    Verdict.IGNORED,
    Outcome.UPSTREAM_ERROR,
    False,
    502,
    "upstream_redirect",
    "the provider answered with a redirect, which is not followed",
)
CUT_SHORT = Failure(
    Verdict.SERVER_ERROR,
    Outcome.UPSTREAM_ERROR,
    True,
    502,
    "upstream_broken",
    "the provider's stream ended before its end",
)
NO_EVENT = Failure(
    Verdict.SERVER_ERROR,
    Outcome.UPSTREAM_ERROR,
    True,
    502,
    "upstream_broken",
    "the provider's stream has comments and no event",
)


def error_of(failure: Failure) -> GatewayError:
    """The client's error for a failed attempt; the provider's own text where it had any."""
    if failure.body is not None:
        return UpstreamRefused(failure.status, failure.body, retry_after_s=failure.retry_after_s)
    kind = UpstreamTimeout if failure.status == 504 else UpstreamFailed
    message = failure.message[:1].upper() + failure.message[1:] + "."
    return kind(message, code=failure.code, retry_after_s=failure.retry_after_s)


async def attempt(client: UpstreamClient, target: Target, exchange: Exchange) -> ProviderAnswer:
    """The answer, its body still to come; `exchange.answer`, to be aborted there.

    Raises AttemptError.
    """
    exchange.begin_attempt()
    body = exchange.body
    inject_usage = exchange.stream and not exchange.wants_usage
    edit = edit_for(target, exchange.job.model, inject_usage=inject_usage)
    if edit is not None and body:
        body = edited(body, edit)
    answer = exchange.answer = await client.send(
        target,
        exchange.method,
        exchange.path,
        exchange.query,
        exchange.headers,
        body,
    )
    limits = rate_limits(answer.headers, time.time())
    if limits is not None:
        exchange.permit.answered(limits)
    if answer.status < 200:
        raise AttemptError(BROKEN)
    if 300 <= answer.status < 400:
        raise AttemptError(REDIRECT)  # destinations come from the settings alone
    if answer.status >= 400:
        refusal = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ERROR_BODY_S):
                refusal = await answer.read_up_to(ERROR_BODY_BYTES)
        raise AttemptError(classify(answer.status, answer.headers, refusal, target, time.time()))
    return answer


def late_refusal(
    answer: ProviderAnswer, error: dict[str, Any], body: bytes, target: Target
) -> AttemptError:
    """The failure of a 200 whose body is `error`; the client may be sent `body`."""
    status = stream_error_status(error)
    return AttemptError(classify(status, answer.headers, body, target, time.time()))


def is_events(answer: ProviderAnswer) -> bool:
    """True of events that can be read: a provider may compress although asked not to."""
    kind = (answer.header(b"content-type") or b"").lower()
    return kind.startswith(b"text/event-stream") and _is_plain(answer)


def is_json(answer: ProviderAnswer) -> bool:
    """True of JSON that can be read."""
    return b"json" in (answer.header(b"content-type") or b"").lower() and _is_plain(answer)


def _is_plain(answer: ProviderAnswer) -> bool:
    return answer.header(b"content-encoding") in (None, b"identity")


class TimedBody:
    """An answer's body on its way from the provider to the client, each wait timed.

    A context manager: inside it one timer watches all waits. It is set by the first wait and again
    only when it fires, so a body that is here already has none. A provider that sends nothing for
    the account's `idle_timeout_s` fails the attempt as too slow; a client that takes nothing for
    `write_timeout_s` has its request cancelled.
    """

    __slots__ = (
        "_failure",
        "_late",
        "_least_s",
        "_limit_s",
        "_loop",
        "_response",
        "_since_s",
        "_timer",
        "_write_s",
        "answer",
        "exchange",
        "target",
    )

    def __init__(
        self,
        answer: ProviderAnswer,
        target: Target,
        exchange: Exchange,
        response: ClientResponse,
        write_timeout_s: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        account = target.account
        self.answer = answer
        self.target = target
        self.exchange = exchange
        self._response = response
        self._write_s = write_timeout_s
        self._least_s = min(account.first_byte_timeout_s, account.idle_timeout_s, write_timeout_s)
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        # The present wait.
        self._since_s = 0.0  # its begin, the loop's clock
        self._limit_s = 0.0
        self._failure: Failure | None = None  # of a provider that exceeds it; None: the client
        self._late: Failure | None = None  # of the provider that has

    def __enter__(self) -> TimedBody:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # it calls back here: else a reference cycle
        if self._late is not None and isinstance(error, AttemptError):
            raise AttemptError(self._late) from None

    def pour_first(self, sink: Sink) -> Awaitable[bool]:
        """`pour` with one limit for all of it, the account's `first_byte_timeout_s`."""
        self._wait(self.target.account.first_byte_timeout_s, SLOW_FIRST_BYTE)
        return self.answer.pour(sink)

    def pour(self, sink: Sink) -> Awaitable[bool]:
        """Give `sink` the body as it comes, until it refuses more (True) or the body ends (False).
        Raises AttemptError."""
        self._wait(self.target.account.idle_timeout_s, SLOW_NEXT_BYTE)
        return self.answer.pour(sink)

    def read(self) -> Awaitable[bytes]:
        """The next bytes, b"" at the end. Raises AttemptError."""
        self._wait(self.target.account.idle_timeout_s, SLOW_NEXT_BYTE)
        return self.answer.read_some()

    def write(self, body: bytes) -> bool:
        """Write to the client; more will come. False: `drained` is to be awaited before that."""
        return self._response.write(body)

    def drained(self) -> Awaitable[None]:
        """Wait until the client has taken enough, or has left."""
        self._wait(self._write_s, None)
        return self._response.drained()

    def _wait(self, limit_s: float, failure: Failure | None) -> None:
        self._since_s, self._limit_s, self._failure = self._loop.time(), limit_s, failure
        if self._timer is None and not (failure is not None and self.answer.complete):
            self._timer = self._loop.call_later(self._least_s, self._check)

    def _check(self) -> None:
        since_s = self._since_s
        if self._failure is SLOW_NEXT_BYTE:
            since_s = max(since_s, self.answer.heard_s)
        left_s = since_s + self._limit_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(min(left_s, self._least_s), self._check)
        elif self._failure is None:
            self._response.stalled()
        else:
            self._late = self._failure
            self.answer.abort()
