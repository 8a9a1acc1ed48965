"""Errors as responses, on the data plane and on the control plane: OpenAI's object, the right
status, and the time after which to try again.

Three headers are for the SDKs (openai-python, openai-node): `retry-after-ms`, `Retry-After` in
whole seconds, `x-should-retry`. An SDK gives up on a wait above 120 s; the true wait is sent
all the same.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from gateway.engine.client_watch import Connection
from gateway.errors import (
    BodyTooLarge,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    UpstreamRefused,
)
from gateway.upstream.providers import Headers

logger = logging.getLogger("gateway.api")

HttpRequest = Request[Any, Any, Any]
HttpResponse = Response[bytes]
MAX_WAIT_S = 86_400.0
_STOPPING = frozenset({"draining", "shutdown"})


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
    if error.code in _STOPPING:  # the client is to come again on another connection
        headers.append((b"connection", b"close"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return error.status, headers, body


def write_problem(client: Connection, error: GatewayError, extra: Headers) -> None:
    """Write an error as the whole response of the data plane, with `extra` headers."""
    status, headers, body = problem(error)
    client.start(status, headers + extra)
    client.finish(body)


def problem_response(request: HttpRequest, error: Exception) -> HttpResponse:
    """Any error of the control plane, the framework's own included, as a response."""
    status, headers, body = problem(_as_gateway_error(request, error))
    return Response(
        body,
        status_code=status,
        media_type="application/json",
        headers={k.decode(): v.decode() for k, v in headers if k != b"content-length"},
    )


def internal_error() -> GatewayError:
    """The answer to a fault of the gateway. It shows nothing of the inside; the log does."""
    return GatewayError("The gateway failed to handle the request.")


def _as_gateway_error(request: HttpRequest, error: Exception) -> GatewayError:
    where = f"{request.scope['method']} {request.scope['path'][:200]}"
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == 404:
            return NotFound(f"Unknown request URL: {where}.", code="unknown_url")
        if error.status_code == 405:
            return MethodNotAllowed(f"Not allowed: {where}.")
        if error.status_code == 413:
            return BodyTooLarge("The request body is too large.")
        if error.status_code < 500:
            return InvalidRequest(error.detail)
    logger.error("request failed: %s", where, exc_info=error)
    return internal_error()
