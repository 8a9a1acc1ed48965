"""One attempt: a call to an account, as far as the headers of an answer that is no error.

An answer that is an error, or a redirect, is read here and raised as AttemptError: what the
rest of the relay gets is promising. (A refusal may still come late, as the first event of a
stream or in the body of a 200; stream.py and whole.py look for it.)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from gateway.engine.failures import REDIRECT
from gateway.engine.trip import Trip
from gateway.upstream.client import BROKEN, Answer, AttemptError, UpstreamClient
from gateway.upstream.providers import (
    Target,
    classify,
    edit_for,
    edited,
    headers_for,
    stream_error_status,
    url_for,
)
from gateway.upstream.ratelimits import rate_limits

ERROR_BODY_BYTES = 64 * 1024
ERROR_BODY_S = 5.0  # a refusal's words are not worth a longer wait


async def attempt(client: UpstreamClient, target: Target, trip: Trip) -> Answer:
    """The answer, its body still to come; it is the trip's to abort. Raises AttemptError."""
    trip.begin_attempt()
    call = trip.call
    body = call.body
    edit = edit_for(target, call.job.model, inject_usage=call.stream and not call.wants_usage)
    if edit is not None and body:
        body = edited(body, edit)
    answer = trip.answer = await client.send(
        target,
        call.method,
        url_for(target, call.path, call.query),
        headers_for(target, call.headers),
        body,
    )
    limits = rate_limits(answer.headers, time.time())
    if limits is not None:
        trip.permit.answered(limits)
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


def refused_late(
    answer: Answer, error: dict[str, Any], words: bytes, target: Target
) -> AttemptError:
    """A 200 that was none: `error` is what it says inside, `words` its body for the client."""
    status = stream_error_status(error)
    return AttemptError(classify(status, answer.headers, words, target, time.time()))


def is_events(answer: Answer) -> bool:
    """Events that can be read: a provider may compress although it was asked not to."""
    kind = (answer.header(b"content-type") or b"").lower()
    return kind.startswith(b"text/event-stream") and _is_plain(answer)


def is_json(answer: Answer) -> bool:
    """JSON that can be read."""
    return b"json" in (answer.header(b"content-type") or b"").lower() and _is_plain(answer)


def _is_plain(answer: Answer) -> bool:
    return answer.header(b"content-encoding") in (None, b"identity")
