"""One request of `/v1/*` before it is a job, in two steps.

1. `RequestInfo`: what its head says. It names the request and makes the record of one that is
   refused before it becomes a job.
2. `ParsedRequest`: what its body says, as far as routing, forecasting and relaying need it. Only
   the members that the gateway owns or forecasts by are decoded; the bytes go on as they came.
"""

from __future__ import annotations

import random
import secrets
import time

from msgspec import Struct

from gateway.api.prompt import batch_of, view_of
from gateway.api.received_head import RequestHead
from gateway.api.routing import STATELESS, RoutingTable, canonical_path, route_label
from gateway.api.schemas import (
    ChatRequest,
    CompletionRequest,
    Generation,
    ResponsesRequest,
    RoutedRequest,
    check_complexity,
    check_generation,
    check_messages,
    decode,
)
from gateway.engine.exchange import StreamEnd
from gateway.errors import InvalidRequest, UnsupportedMedia
from gateway.predict.calibrate import TOKENS_PER_BYTE
from gateway.predict.prompt_view import PromptView
from gateway.settings.schema import Tenant
from gateway.types import JobRecord, Outcome
from gateway.upstream.body_edit import FORM_MODEL, FORM_SCAN_BYTES

GENERATING: dict[str, type[Generation]] = {
    "/chat/completions": ChatRequest,
    "/completions": CompletionRequest,
    "/responses": ResponsesRequest,
}
"""Routes that make text, whose length is forecast."""

_ids = random.Random(secrets.randbits(256))


def new_id() -> str:
    """An id for one request. It need not be a secret: what it refers to is readable by its
    tenant alone."""
    return f"req_{_ids.getrandbits(96):024x}"


class RequestInfo:
    """The head of a request. `route`, `tenant` and `model` are metric labels: tenant and model
    stay "other" until they are known to exist."""

    __slots__ = (
        "arrived_s",
        "fields",
        "headers",
        "id",
        "method",
        "model",
        "path",
        "route",
        "tenant",
    )

    def __init__(self, head: RequestHead, arrived_s: float) -> None:
        """`arrived_s` is by the engine's clock."""
        self.id = new_id()
        self.arrived_s = arrived_s
        self.method = head.method
        self.path = canonical_path(head.path)
        self.headers = head.headers
        self.fields = head.fields
        self.route = route_label(self.path)
        self.tenant = "other"
        self.model = "other"

    def __repr__(self) -> str:
        return f"<RequestInfo {self.id} {self.method} {self.path} of {self.tenant}>"

    def record(self, status: int, outcome: Outcome, code: str | None, now: float) -> JobRecord:
        """The record of a request that ended before it became a job."""
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


class ParsedRequest(Struct):
    """The body of a request, as far as the gateway reads it."""

    model: str
    stream: bool = False
    wants_usage: bool = True  # False: the client did not ask for usage, so none is shown to it
    stream_end: StreamEnd = StreamEnd.ANY
    n: int = 1  # answers asked for, over all prompts of a batch
    max_tokens: int | None = None
    view: PromptView | None = None  # None: no text is generated
    prompt_tokens: int = 1  # of a request without a view, estimated


def parse(routing: RoutingTable, tenant: Tenant, info: RequestInfo, body: bytes) -> ParsedRequest:
    """Read a body. Raises InvalidRequest, BodyTooLarge (too many members), UnsupportedMedia."""
    encoding = info.fields.get(b"content-encoding")
    if encoding not in (None, b"identity"):
        raise UnsupportedMedia("Compressed request bodies are not accepted.")
    kind = GENERATING.get(info.path) if info.method == "POST" else None
    if kind is not None:
        check_complexity(body)
        request = decode(body, kind)
        check_generation(request)
        return _generation(tenant.name, info.path, request, routing.max_chars)
    return _routed_only(info, body, routing.default_model(tenant))


def _generation(tenant: str, path: str, request: Generation, max_chars: int) -> ParsedRequest:
    if isinstance(request, ChatRequest):
        check_messages(request.messages)
    stream = request.stream is True
    options = request.stream_options
    chat_like = path != "/responses"
    stream_end = StreamEnd.ANY
    if stream:
        stream_end = StreamEnd.CHOICES if chat_like else StreamEnd.TERMINAL
    view = view_of(tenant, request, max_chars)
    return ParsedRequest(
        model=request.model,
        stream=stream,
        # The responses API always sends its usage; the older routes send it on demand.
        wants_usage=not (stream and chat_like)
        or bool(options is not None and options.include_usage),
        stream_end=stream_end,
        n=view.choices,
        max_tokens=view.max_tokens,
        view=view,
    )


def _routed_only(info: RequestInfo, body: bytes, default_model: str) -> ParsedRequest:
    """A request that generates no text. It is routed by the model its body names; where none
    can be named, as in a listing, `default_model` stands for it."""
    kind = info.fields.get(b"content-type", b"")
    model, stream, prompt_tokens = None, False, 1
    if b"multipart/form-data" in kind:
        match = FORM_MODEL.search(body, 0, FORM_SCAN_BYTES)
        model = match[1].decode("utf-8", "replace") if match else None
    elif body and (b"json" in kind or info.path in STATELESS):
        check_complexity(body)
        request = decode(body, RoutedRequest)
        model, stream = request.model, request.stream is True
        if info.path == "/embeddings":
            batch = batch_of(request.input)
            prompt_tokens = max(round(TOKENS_PER_BYTE["latin"] * batch.bytes) + batch.ids, 1)
    if not model:
        if info.path in STATELESS and info.path != "/moderations":
            raise InvalidRequest(
                "Missing required parameter: 'model'.",
                param="model",
                code="missing_required_parameter",
            )
        model = default_model
    return ParsedRequest(model=model, stream=stream, prompt_tokens=prompt_tokens)
