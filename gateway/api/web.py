"""Small pieces the control plane's handlers share: JSON in, JSON out, OpenAI-shaped errors."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from gateway.api.body import ClientGone, read_body
from gateway.api.plane import DataPlane
from gateway.api.problems import internal, problem
from gateway.api.schemas import decode
from gateway.errors import (
    BodyTooLarge,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Unavailable,
)
from gateway.predict.process.backend import BackendError, BackendGone

logger = logging.getLogger("gateway.api")
T = TypeVar("T")
THREAD_S = 10.0  # what a thread owes an answer within
AnyResponse = Response[bytes]
AnyRequest = Request[Any, Any, Any]


def raw_headers(request: AnyRequest) -> list[tuple[bytes, bytes]]:
    return list(request.scope["headers"])


async def read_json(request: AnyRequest, kind: type[T], plane: DataPlane) -> T:
    """The body as `kind`, within the data plane's bounds; an absent body reads as `{}`.

    Raises InvalidRequest, BodyTooLarge, RequestTimeout, Unavailable.
    """
    server = plane.routing.server
    try:
        receive: Any = request.receive
        body = await read_body(raw_headers(request), receive, server, plane.memory)
    except ClientGone:
        raise InvalidRequest("The client left.") from None
    try:
        return decode(body or b"{}", kind)
    finally:
        plane.memory.give_back(len(body))


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> AnyResponse:
    return Response(
        msgspec.json.encode(value, enc_hook=str),
        status_code=status,
        media_type="application/json",
        headers=headers,
    )


def error_answer(request: AnyRequest, error: Exception) -> AnyResponse:
    """Every error of the control plane, the framework's own included, in OpenAI's shape."""
    status, headers, body = problem(_translated(request, error))
    return Response(
        body,
        status_code=status,
        media_type="application/json",
        headers={k.decode(): v.decode() for k, v in headers if k != b"content-length"},
    )


def _translated(request: AnyRequest, error: Exception) -> GatewayError:
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
    return internal()


async def from_thread(ask: Callable[[Callable[[Any], None]], bool], full: str) -> Any:
    """Await what a thread tells through a callback; an Exception it tells is raised, the
    store's failures as Unavailable.

    Args:
        ask: hands the callback to the thread; False when it takes no more work.
        full: what to say then.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def home(value: Any) -> None:
        if future.done():
            return
        if isinstance(value, Exception):
            future.set_exception(_told(value))
        else:
            future.set_result(value)

    def done(value: Any = None) -> None:
        loop.call_soon_threadsafe(home, value)

    if not ask(done):
        raise Unavailable(full, code="busy", retry_after_s=1.0)
    try:
        async with asyncio.timeout(THREAD_S):
            return await future
    except TimeoutError:
        raise Unavailable(full, code="busy", retry_after_s=5.0) from None


def _told(error: Exception) -> Exception:
    """A store that cannot write (disk full, I/O, locked, damaged), or a predictor that is being
    replaced, is out for a while, which is no fault of the request."""
    if isinstance(error, BackendGone | BackendError):
        return Unavailable(
            "The predictor is being restarted.", code="predictor_failing", retry_after_s=2.0
        )
    ours = sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.DataError
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, ours):
        return Unavailable(
            f"The store cannot write now: {error}.", code="store_failing", retry_after_s=5.0
        )
    return error
