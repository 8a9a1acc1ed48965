"""Errors as responses: OpenAI's object, the right status, and when to come again.

Headers an SDK reads (openai-python, openai-node): `retry-after-ms`, `Retry-After` in whole
seconds, `x-should-retry`. A wait above 120 s makes the SDK give up, so it is told as it is.
"""

from __future__ import annotations

import math

import msgspec

from gateway.engine.client_watch import Send
from gateway.errors import GatewayError, UpstreamRefused

Headers = list[tuple[bytes, bytes]]
MAX_WAIT_S = 86_400.0


def problem(error: GatewayError) -> tuple[int, Headers, bytes]:
    """Status, headers and body of an error."""
    body = error.body if isinstance(error, UpstreamRefused) else msgspec.json.encode(error.wire())
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if error.retry_after_s is not None and not math.isnan(error.retry_after_s):
        wait = min(max(error.retry_after_s, 0.0), MAX_WAIT_S)
        headers.append((b"retry-after-ms", str(math.ceil(wait * 1000)).encode()))
        headers.append((b"retry-after", str(max(math.ceil(wait), 1)).encode()))
    if error.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return error.status, headers, body


async def send_problem(send: Send, error: GatewayError, extra: Headers) -> None:
    """Write an error as the whole response."""
    status, headers, body = problem(error)
    await send({"type": "http.response.start", "status": status, "headers": headers + extra})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def internal() -> GatewayError:
    """What a client hears of a fault of ours: nothing of its inside."""
    return GatewayError("The gateway failed to handle the request.")
