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
from gateway.upstream.http_client import (
    BROKEN,
    SLOW_NEXT_BYTE,
    AttemptError,
    ProviderAnswer,
    UpstreamClient,
)
from gateway.upstream.providers import (
    Failure,
    Target,
    classify,
    edit_for,
    edited,
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

    A context manager: inside it one timer watches both waits, re-armed only when it fires. A
    provider that sends nothing for the account's `idle_timeout_s` fails the attempt as too slow;
    a client that takes nothing for `write_timeout_s` has its request cancelled.

    `read` is called for every chunk: it returns what is to be awaited and puts no coroutine of its
    own around it.
    """

    __slots__ = (
        "_idle_s",
        "_loop",
        "_response",
        "_silent",
        "_since_s",
        "_timer",
        "_write_s",
        "_writing",
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
        self.answer = answer
        self.target = target
        self.exchange = exchange
        self._response = response
        self._idle_s = target.account.idle_timeout_s
        self._write_s = write_timeout_s
        self._loop = loop
        self._since_s = 0.0  # the present wait's begin, the loop's clock
        self._writing = False  # the present wait is for the client
        self._silent = False  # the provider sent nothing for too long

    def __enter__(self) -> TimedBody:
        self._since_s = self._loop.time()
        self._timer = self._loop.call_later(min(self._idle_s, self._write_s), self._check)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        del self._timer  # it calls back here: else a reference cycle
        if self._silent and isinstance(error, AttemptError):
            raise AttemptError(SLOW_NEXT_BYTE) from None

    def read(self) -> Awaitable[bytes]:
        """The next bytes, b"" at the end. Raises AttemptError."""
        self._writing = False
        self._since_s = self._loop.time()
        return self.answer.read_some()

    def write(self, body: bytes) -> bool:
        """Write to the client; more will come. Where it is False, `drained` is to be awaited before
        the next `read`."""
        return self._response.write(body)

    def drained(self) -> Awaitable[None]:
        """Wait until the client has taken enough, or has left."""
        self._writing = True
        self._since_s = self._loop.time()
        return self._response.drained()

    def _check(self) -> None:
        limit_s = self._write_s if self._writing else self._idle_s
        left_s = self._since_s + limit_s - self._loop.time()
        if left_s > 0:
            left_s = min(left_s, self._idle_s, self._write_s)
            self._timer = self._loop.call_later(left_s, self._check)
        elif self._writing:
            self._response.stalled()
        else:
            self._silent = True
            self.answer.abort()
