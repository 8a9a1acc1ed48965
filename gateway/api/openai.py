"""The data plane: `* /v1/*`, raw ASGI.

Decodes only the fields the gateway owns or forecasts by, keeps the body's bytes, and hands
a `Call` to the relay. Destinations come from the settings alone: the client's path is
appended to an account's base URL after one canonical check.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from gateway.api import auth
from gateway.api.batch import batch_of
from gateway.api.patience import ENDLESS, Patience, patience
from gateway.api.problems import internal, send_problem
from gateway.api.schemas import (
    AnyRequest,
    ChatRequest,
    CompletionRequest,
    Generation,
    ResponsesRequest,
    check_complexity,
    check_generation,
    check_messages,
    decode,
)
from gateway.api.view import view_of
from gateway.engine.call import Call, Ending
from gateway.engine.engine import Engine, Permit
from gateway.engine.relay import Relay
from gateway.engine.reply import BrokenAnswer
from gateway.engine.scope import Receive, Send
from gateway.errors import (
    BodyTooLarge,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RequestTimeout,
    Unavailable,
    UnsupportedMedia,
)
from gateway.predict.calibrate import TOKENS_PER_BYTE
from gateway.predict.features import PromptView
from gateway.predict.predictor import Predictor
from gateway.schedule.routes import Route
from gateway.settings.schema import Server, Tenant
from gateway.types import (
    QUANTILE_LEVELS,
    Job,
    JobClass,
    JobRecord,
    Outcome,
    Rung,
    Workload,
)
from gateway.upstream.providers import FORM_MODEL, FORM_SCAN_BYTES

Scope = dict[str, Any]
logger = logging.getLogger("gateway.api")

_PATH = re.compile(r"^(/[A-Za-z0-9_.~:@!$&'()*+,;=-]+)+$")

GENERATING: dict[str, type[Generation]] = {
    "/chat/completions": ChatRequest,
    "/completions": CompletionRequest,
    "/responses": ResponsesRequest,
}
STATELESS = frozenset(
    {
        *GENERATING,
        "/embeddings",
        "/moderations",
        "/rerank",
        "/images/generations",
        "/images/edits",
        "/images/variations",
        "/audio/speech",
        "/audio/transcriptions",
        "/audio/translations",
    }
)
"""Routes whose request is all there is; other routes' objects live at the provider."""

LIGHT = Workload(
    prompt_tokens=1,
    p50=1.0,
    p90=1.0,
    grid=(1.0,) * len(QUANTILE_LEVELS),
    p_short=1.0,
    cost_p50=1.0,
    cost_p90=1.0,
    risk=0.0,
    confidence=1.0,
    rung=Rung.HEURISTIC,
)
"""The forecast of a request that generates no text; embeddings have their prompt's cost."""


class Directory(Struct, frozen=True):
    """What the data plane reads of the settings; replaced whole on a reload."""

    tenants: auth.Tenants
    routes: dict[str, Route]
    server: Server
    max_chars: int  # of a prompt, that the predictor reads


class BodyMemory:
    """Bytes of request bodies held at once, bounded."""

    def __init__(self) -> None:
        self.held = 0

    def take(self, size: int, limit: int) -> None:
        """Raises Unavailable when the bound is reached."""
        if self.held + size > limit:
            raise Unavailable(
                "Too many request bodies are held; try again shortly.",
                code="body_memory",
                retry_after_s=1.0,
            )
        self.held += size

    def give_back(self, size: int) -> None:
        self.held -= size


class Hold:
    """One body's share of the memory, given back once."""

    __slots__ = ("_memory", "_size")

    def __init__(self, memory: BodyMemory, size: int) -> None:
        self._memory = memory
        self._size = size

    def release(self) -> None:
        size, self._size = self._size, 0
        self._memory.give_back(size)


class ClientGone(Exception):
    """The client left before its request was whole."""


async def read_body(
    headers: list[tuple[bytes, bytes]], receive: Receive, server: Server, memory: BodyMemory
) -> bytes:
    """The whole request body. What it takes of `memory` is the caller's to give back.

    Raises BodyTooLarge, RequestTimeout, Unavailable, ClientGone.
    """
    announced = next((v for k, v in headers if k == b"content-length"), None)
    if announced is not None and announced.isdigit() and int(announced) > server.max_body_bytes:
        raise _too_large(server)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(server.body_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                if part:
                    if size + len(part) > server.max_body_bytes:
                        raise _too_large(server)
                    memory.take(len(part), server.body_memory_bytes)
                    size += len(part)
                    parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        memory.give_back(size)
        raise RequestTimeout("The request body did not arrive in time.") from None
    except BaseException:
        memory.give_back(size)
        raise


def _too_large(server: Server) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {server.max_body_bytes} bytes.")


_ids = random.Random(secrets.randbits(256))


def new_id() -> str:
    """A name, not a secret: what it names is readable by its tenant alone."""
    return f"req_{_ids.getrandbits(96):024x}"


class Asked(Struct):
    """A parsed request: what routing, forecasting and relaying need of it."""

    model: str
    stream: bool = False
    wants_usage: bool = True
    ending: Ending = Ending.ANY
    n: int = 1
    max_tokens: int | None = None
    view: PromptView | None = None
    prompt_tokens: int = 1  # of a request without a view, estimated


class DataPlane:
    """ASGI application of `/v1/*`."""

    def __init__(
        self, directory: Directory, engine: Engine, relay: Relay, predictor: Predictor
    ) -> None:
        self.directory = directory
        self._engine = engine
        self._relay = relay
        self._predictor = predictor
        self.memory = BodyMemory()
        self.learn: Callable[[PromptView, Job, JobRecord], None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        arrived_s = self._engine.clock()
        request_id = new_id()
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        path = _canonical(scope)
        early = _Early(request_id, arrived_s, scope["method"], path)
        try:
            await self._serve(scope, receive, send, headers, path, early)
        except GatewayError as error:
            await self._refuse(early, error, send)
        except ClientGone:
            self._engine.ended(early.record(499, Outcome.CANCELLED, None, self._engine.clock()))
        except BrokenAnswer:
            raise  # told and recorded; the server closes the connection
        except Exception:
            logger.exception("request failed", extra={"request_id": request_id})
            await self._refuse(early, internal(), send)

    async def _serve(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: list[tuple[bytes, bytes]],
        path: str,
        early: _Early,
    ) -> None:
        directory = self.directory
        method = scope["method"]
        tenant = directory.tenants.authenticate(headers)
        early.tenant = tenant.name
        if path == "/models" or path.startswith("/models/"):
            _only(method, "GET")
            await _send_json(send, 200, self.models(tenant, path), early.id)
            return
        _check_route(directory, tenant, method, path)
        body = await read_body(headers, receive, directory.server, self.memory)
        hold = Hold(self.memory, len(body))
        try:
            asked = self._parse(tenant, method, path, headers, body)
            call = self._call(scope, tenant, path, headers, body, asked, early)
            call.release = hold.release
            del body
            await self.relay(call, asked.view, receive, send)
        finally:
            hold.release()

    async def relay(
        self, call: Call, view: PromptView | None, receive: Receive, send: Send
    ) -> JobRecord:
        """Run one call and learn from it. Also the way of POST /submit."""
        if view is None:
            return await self._relay.run(call, receive, send)

        def refine(permit: Permit) -> None:
            if permit.account is not None or permit.settled:
                return  # it runs, or is refused: no better forecast would change that
            engine, job_id = self._engine, call.job.id

            def home(workload: Workload) -> None:
                engine.loop.call_soon_threadsafe(engine.reforecast, job_id, workload)

            self._predictor.refine(view, home, lambda: engine.holds(job_id))

        def outgrown(tokens: int) -> None:
            self._predictor.observe(view, tokens)
            self._engine.outgrown(call.job.id, tokens)

        call.outgrown = outgrown
        record = await self._relay.run(call, receive, send, submitted=refine)
        if self.learn is not None:
            self.learn(view, call.job, record)
        return record

    # -- parsing -----------------------------------------------------------------------------

    def _parse(
        self,
        tenant: Tenant,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
    ) -> Asked:
        encoding = _header(headers, b"content-encoding")
        if encoding not in (None, b"identity"):
            raise UnsupportedMedia("Compressed request bodies are not accepted.")
        kind = GENERATING.get(path) if method == "POST" else None
        if kind is not None:
            check_complexity(body)
            request = decode(body, kind)
            check_generation(request)
            return self._generation(tenant, path, request)
        return _routed_only(path, headers, body, self.default_model(tenant))

    def _generation(self, tenant: Tenant, path: str, request: Generation) -> Asked:
        if isinstance(request, ChatRequest):
            check_messages(request.messages)
        stream = request.stream is True
        options = request.stream_options
        chat_like = path != "/responses"
        view = view_of(tenant.name, request, self.directory.max_chars)
        return Asked(
            model=request.model,
            stream=stream,
            # The responses API always tells its usage; the older routes when asked.
            wants_usage=not (stream and chat_like)
            or bool(options is not None and options.include_usage),
            ending=(Ending.CHOICES if chat_like else Ending.TERMINAL) if stream else Ending.ANY,
            n=view.choices,
            max_tokens=request.limit,
            view=view,
        )

    def _call(
        self,
        scope: Scope,
        tenant: Tenant,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        asked: Asked,
        early: _Early,
    ) -> Call:
        route = self.route(tenant, asked.model)
        early.model = asked.model
        job = self.job(
            early.id,
            tenant,
            route,
            asked,
            early.arrived_s,
            class_override=_class_header(headers),
            patience=patience(headers, stream=asked.stream),
            client_retries=_retry_count(headers),
        )
        return Call(
            job=job,
            route=early.route,
            method=scope["method"],
            path=path,
            query=scope.get("query_string", b""),
            headers=headers,
            body=body,
            stream=asked.stream,
            wants_usage=asked.wants_usage,
            ending=asked.ending,
            connection=scope["state"].get("connection") if "state" in scope else None,
        )

    def default_model(self, tenant: Tenant) -> str:
        """The model of a request that names none: the tenant's first."""
        return tenant.models[0] if tenant.models else next(iter(self.directory.routes))

    def route(self, tenant: Tenant, model: str) -> Route:
        """Who serves a model for a tenant. Raises ModelNotFound."""
        auth.allowed(tenant, model)
        route = self.directory.routes.get(model)
        if route is None:
            raise auth.model_not_found(model)
        return route

    def job(
        self,
        job_id: str,
        tenant: Tenant,
        route: Route,
        asked: Asked,
        arrived_s: float,
        *,
        class_override: JobClass | None = None,
        patience: Patience = ENDLESS,
        client_retries: int = 0,
    ) -> Job:
        view = asked.view
        return Job(
            id=job_id,
            tenant=tenant.name,
            model=asked.model,
            pool=route.pool,
            accounts=route.accounts,
            workload=self._workload(asked),
            generates=view is not None,
            arrived_s=arrived_s,
            n=asked.n,
            max_tokens=asked.max_tokens,
            class_override=class_override or tenant.job_class,
            deadline_s=None if patience.within_s is None else arrived_s + patience.within_s,
            deadline_first_byte=patience.first_byte,
            client_retries=client_retries,
        )

    def _workload(self, asked: Asked) -> Workload:
        if asked.view is not None:
            return self._predictor.forecast(asked.view)
        if asked.prompt_tokens <= 1:
            return LIGHT
        return self._predictor.prompt_alone(LIGHT, asked.model, asked.prompt_tokens)

    def models(self, tenant: Tenant, path: str = "/models") -> dict[str, Any]:
        """GET /v1/models and /v1/models/{id}, OpenAI's shape, the caller's models only."""
        names = [m for m in self.directory.routes if not tenant.models or m in tenant.models]
        objects = [
            {"id": name, "object": "model", "created": 0, "owned_by": "sagesched"} for name in names
        ]
        if path == "/models":
            return {"object": "list", "data": objects}
        wanted = unquote(path.removeprefix("/models/"))
        for value in objects:
            if value["id"] == wanted:
                return value
        raise auth.model_not_found(wanted)

    async def _refuse(self, early: _Early, error: GatewayError, send: Send) -> None:
        outcome = Outcome.CLIENT_ERROR if error.status < 500 else Outcome.FAILED
        self._engine.ended(early.record(error.status, outcome, error.code, self._engine.clock()))
        await send_problem(send, error, [(b"x-request-id", early.id.encode())])


class _Early:
    """What is known of a request before it is a job, for the record of one that never is."""

    __slots__ = ("arrived_s", "id", "model", "route", "tenant")

    def __init__(self, request_id: str, arrived_s: float, method: str, path: str) -> None:
        self.id = request_id
        self.arrived_s = arrived_s
        known = path in STATELESS or path == "/models"
        self.route = "/v1" + path if known else "other"
        self.tenant = "other"
        self.model = "other"

    def record(self, status: int, outcome: Outcome, code: str | None, now: float) -> JobRecord:
        return JobRecord(
            id=self.id,
            wall_s=time.time(),
            route=self.route,
            tenant=self.tenant,
            model=self.model,
            outcome=outcome,
            status=status,
            error_code=code,
            total_s=now - self.arrived_s,
        )


def _canonical(scope: Scope) -> str:
    """The path below /v1, as it is sent on."""
    raw = scope.get("raw_path") or scope["path"].encode()
    path: str = raw.split(b"?")[0].decode("latin-1")
    if path.startswith("/v1"):
        path = path[3:]
    return path if path in ("", "/") else path.rstrip("/")


def _check_route(directory: Directory, tenant: Tenant, method: str, path: str) -> None:
    """Raises for a path that is not sent on as it is, or may not be."""
    if not _PATH.match(path) or any(part in (".", "..") for part in path.split("/")):
        raise NotFound(f"Unknown request URL: {method} /v1{path[:200]}.", code="unknown_url")
    if path in STATELESS:
        _only(method, "POST")
    elif not directory.tenants.stateful(tenant):
        raise auth.forbidden_stateful(path)


def _only(method: str, wanted: str) -> None:
    if method != wanted:
        raise MethodNotAllowed(f"Not allowed to {method} here; use {wanted}.")


def _routed_only(path: str, headers: list[tuple[bytes, bytes]], body: bytes, default: str) -> Asked:
    """A request the gateway only routes: by the model its body names. Where none may be
    named, as in a listing, the first model's accounts answer."""
    kind = _header(headers, b"content-type") or b""
    model, stream, prompt_tokens = None, False, 1
    if b"multipart/form-data" in kind:
        match = FORM_MODEL.search(body, 0, FORM_SCAN_BYTES)
        model = match[1].decode("utf-8", "replace") if match else None
    elif body and (b"json" in kind or path in STATELESS):
        check_complexity(body)
        request = decode(body, AnyRequest)
        model, stream = request.model, request.stream is True
        if path == "/embeddings":
            batch = batch_of(request.input)
            prompt_tokens = max(round(TOKENS_PER_BYTE["latin"] * batch.bytes) + batch.ids, 1)
    if not model:
        if path in STATELESS and path != "/moderations":
            raise InvalidRequest(
                "Missing required parameter: 'model'.",
                param="model",
                code="missing_required_parameter",
            )
        model = default
    return Asked(model=model, stream=stream, prompt_tokens=prompt_tokens)


def _header(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    for key, value in headers:
        if key == name:
            return value
    return None


def _class_header(headers: list[tuple[bytes, bytes]]) -> JobClass | None:
    value = _header(headers, b"x-sagesched-class")
    if value is None:
        return None
    try:
        return JobClass(value.decode("latin-1").strip().lower())
    except ValueError:
        raise InvalidRequest(
            f"Invalid value for 'x-sagesched-class': expected {', '.join(JobClass)}.",
            param="x-sagesched-class",
            code="invalid_value",
        ) from None


def _retry_count(headers: list[tuple[bytes, bytes]]) -> int:
    value = _header(headers, b"x-stainless-retry-count")
    return int(value) if value is not None and value.isdigit() and len(value) < 4 else 0


async def _send_json(send: Send, status: int, value: Any, request_id: str) -> None:
    body = msgspec.json.encode(value)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
