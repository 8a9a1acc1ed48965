"""The control plane: `POST /predict` and `POST /ingest`, and what all its handlers share.

Shared are JSON in and out, the body of /predict, /ingest and /submit, and `from_thread`, which
awaits the callback of a thread. Jobs (jobs.py) and the operator's routes (admin.py) are the
other handlers.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Response, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta, Struct

from gateway.api import auth
from gateway.api.body import ClientGone, read_body
from gateway.api.headers import Fields, fields_of
from gateway.api.plane import DataPlane
from gateway.api.problems import HttpRequest, HttpResponse
from gateway.api.schemas import check_messages, check_positive, decode
from gateway.errors import InvalidRequest, Unavailable
from gateway.predict.lesson import Lesson
from gateway.predict.process.predictor import Predictor
from gateway.predict.process.wire import ChildError, ChildGone, NotStored
from gateway.predict.prompt_view import PromptView
from gateway.settings.schema import Tenant
from gateway.types import QUANTILE_LEVELS, Workload

T = TypeVar("T")
THREAD_S = 10.0  # longest wait for a thread's answer
MAX_TOKENS = 10_000_000

ModelName = Annotated[str, Meta(min_length=1, max_length=200)]
TaskType = Annotated[str, Meta(max_length=64)]


# -- JSON in and out ---------------------------------------------------------------------------


class PredictRequest(Struct, forbid_unknown_fields=True):
    """The body of POST /predict and POST /submit."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None = None
    model: ModelName | None = None
    task_type: TaskType | None = None
    retry_safe: bool | None = None
    # The seed system's clients send one shape to /predict, /ingest and /submit. Members that
    # only /ingest needs are accepted here and not used.
    output_tokens: int | None = None
    prompt_tokens: int | None = None
    success: bool | None = None


class IngestRequest(Struct, forbid_unknown_fields=True):
    """The body of POST /ingest: a prompt and the length of its answer."""

    output_tokens: int
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt_tokens: int | None = None
    max_tokens: int | None = None
    model: ModelName | None = None
    task_type: TaskType | None = None
    success: bool = True


def request_fields(request: HttpRequest) -> Fields:
    """The headers of a request."""
    return fields_of(list(request.scope["headers"]))


async def read_json(request: HttpRequest, kind: type[T], plane: DataPlane) -> T:
    """The body as `kind`, within the data plane's bounds; an absent body reads as `{}`.

    Raises InvalidRequest, BodyTooLarge, RequestTimeout, Unavailable.
    """
    server = plane.routing.server
    try:
        receive: Any = request.receive
        body = await read_body(request_fields(request), receive, server, plane.memory)
    except ClientGone:
        raise InvalidRequest("The client left.") from None
    try:
        return decode(body or b"{}", kind)
    finally:
        plane.memory.give_back(len(body))


def json_response(
    value: Any, status: int = 200, headers: dict[str, str] | None = None
) -> HttpResponse:
    """A response with `value` as JSON; values that JSON has no form for become strings."""
    return Response(
        msgspec.json.encode(value, enc_hook=str),
        status_code=status,
        media_type="application/json",
        headers=headers,
    )


def messages_of(request: PredictRequest | IngestRequest) -> list[dict[str, Any]]:
    """The request as chat messages. Raises InvalidRequest."""
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("Give either 'prompt' or 'messages'.", param="prompt")
    check_positive(request.max_tokens, "max_tokens")
    if request.messages is not None:
        check_messages(request.messages)
        for i, message in enumerate(request.messages):
            if not isinstance(message.get("role"), str):
                raise InvalidRequest(
                    f"Missing required parameter: 'messages[{i}].role'.",
                    param=f"messages[{i}].role",
                    code="missing_required_parameter",
                )
        return request.messages
    return [{"role": "user", "content": request.prompt}]


def forecast_body(workload: Workload) -> dict[str, Any]:
    """A forecast as /predict answers it. p50 and p90 are whole tokens, as in the seed system."""
    return {
        "size_bucket": workload.size_bucket,
        "expected_output_tokens_p50": round(workload.p50),
        "expected_output_tokens_p90": round(workload.p90),
        "predicted_cost_p50": workload.cost_p50,
        "predicted_cost_p90": workload.cost_p90,
        "predicted_cost_usd_p50": workload.cost_usd_p50,
        "risk_score": workload.risk,
        "confidence_score": workload.confidence,
        "fallback_level": workload.rung,
        "class": workload.job_class,
        "p_short": workload.p_short,
        "prompt_tokens": workload.prompt_tokens,
        "quantiles": {
            f"{level:g}": round(value, 1)
            for level, value in zip(QUANTILE_LEVELS, workload.grid, strict=True)
        },
    }


# -- threads -----------------------------------------------------------------------------------


async def from_thread(
    ask: Callable[[Callable[[Any], None]], bool], full: str, *, timeout_s: float | None = THREAD_S
) -> Any:
    """Await the value that a thread hands to a callback. An Exception handed over is raised;
    Unavailable stands for failures of the store and the predictor.

    Args:
        ask: hands the callback to the thread; False where the thread takes no more work.
        full: the message of the error raised then, and when no value comes in time.
        timeout_s: longest wait for the value; None: no bound.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def deliver(value: Any) -> None:
        if future.done():
            return
        if isinstance(value, Exception):
            future.set_exception(_client_error(value))
        else:
            future.set_result(value)

    def done(value: Any = None) -> None:
        loop.call_soon_threadsafe(deliver, value)

    if not ask(done):
        raise Unavailable(full, code="busy", retry_after_s=1.0)
    try:
        async with asyncio.timeout(timeout_s):
            return await future
    except TimeoutError:
        raise Unavailable(full, code="busy", retry_after_s=5.0) from None


def _client_error(error: Exception) -> Exception:
    """Unavailable for a store that cannot write (disk full, I/O, locked, damaged) and for a
    predictor that is being replaced: both pass, and neither is the request's fault. Any other
    error as it is."""
    if isinstance(error, ChildGone | ChildError):
        return Unavailable(
            "The predictor is being restarted.", code="predictor_failing", retry_after_s=2.0
        )
    ours = sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.DataError
    if isinstance(error, NotStored | sqlite3.DatabaseError) and not isinstance(error, ours):
        return Unavailable(
            f"The store cannot write now: {error}.", code="store_failing", retry_after_s=5.0
        )
    return error


# -- /predict and /ingest ----------------------------------------------------------------------


class ForecastRoutes:
    """Handlers of /predict and /ingest.

    Args:
        wait_s: longest wait of /predict for a better forecast than stage 0's, in seconds.
    """

    def __init__(
        self,
        plane: DataPlane,
        predictor: Predictor,
        wait_s: Callable[[], float],
    ) -> None:
        self._plane = plane
        self._predictor = predictor
        self._wait_s = wait_s

    def handlers(self) -> list[HTTPRouteHandler]:
        """Both routes, bound to this object."""

        @post("/predict", status_code=200)
        async def predict(request: HttpRequest) -> HttpResponse:
            tenant = self._tenant(request)
            wanted = await read_json(request, PredictRequest, self._plane)
            workload = await self._forecast(self._view(tenant, wanted))
            return json_response(forecast_body(workload))

        @post("/ingest", status_code=200)
        async def ingest(request: HttpRequest) -> HttpResponse:
            tenant = self._tenant(request)
            example = await read_json(request, IngestRequest, self._plane)
            await self._ingest(tenant, example)
            return json_response({"status": "stored"})

        return [predict, ingest]

    async def _forecast(self, view: PromptView) -> Workload:
        """The best forecast to be had within the wait; stage 0's where a better one is late."""
        first = self._predictor.forecast(view)
        better: asyncio.Future[Workload] = asyncio.get_running_loop().create_future()

        def done(workload: Workload) -> None:
            if not better.done():
                better.set_result(workload)

        if not self._predictor.refine(view, done, lambda: not better.done()):
            return first
        try:
            async with asyncio.timeout(self._wait_s()):
                return await better
        except TimeoutError:
            return first

    async def _ingest(self, tenant: Tenant, example: IngestRequest) -> None:
        """Store an example, then learn it: one that is not stored teaches nothing."""
        output, prompt, limit = example.output_tokens, example.prompt_tokens, example.max_tokens
        _check_tokens(output, "output_tokens")
        _check_tokens(prompt, "prompt_tokens")
        lesson = Lesson(
            view=self._view(tenant, example),
            output_tokens=output,
            prompt_tokens=prompt,
            censored=not example.success or (limit is not None and output >= limit),
            success=example.success,
            wall_s=time.time(),
        )
        try:
            async with asyncio.timeout(THREAD_S):
                await self._predictor.learn_stored(lesson)
        except TimeoutError:
            raise Unavailable(
                "The predictor takes no more results now.", code="busy", retry_after_s=5.0
            ) from None
        except (ChildGone, ChildError, NotStored) as error:
            raise _client_error(error) from None

    def _tenant(self, request: HttpRequest) -> Tenant:
        return self._plane.routing.tenants.authenticate(request_fields(request))

    def _view(self, tenant: Tenant, request: PredictRequest | IngestRequest) -> PromptView:
        """The request as the predictor reads it. Raises InvalidRequest, ModelNotFound."""
        messages = messages_of(request)
        check_positive(request.max_tokens, "max_tokens", MAX_TOKENS)
        if request.model is not None:
            auth.check_model(tenant, request.model)
        return PromptView.of_chat(
            messages,
            tenant=tenant.name,
            model=request.model or self._plane.routing.default_model(tenant),
            max_tokens=request.max_tokens,
            task_type=request.task_type,
        )


def _check_tokens(value: int | None, name: str) -> None:
    if value is not None and not 0 <= value <= MAX_TOKENS:
        raise InvalidRequest(
            f"Invalid value for '{name}': expected 0 to {MAX_TOKENS}, got {value}.",
            param=name,
            code="invalid_value",
        )
