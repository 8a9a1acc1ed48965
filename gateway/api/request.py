"""A request's body, read as far as routing, forecasting and relaying need it.

Only the fields that the gateway owns or forecasts by are decoded; the bytes go on as they came.
"""

from __future__ import annotations

from msgspec import Struct

from gateway.api.batch import batch_of
from gateway.api.headers import header
from gateway.api.prompt import view_of
from gateway.api.routing import STATELESS, RoutingTable
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
from gateway.engine.call import Ending
from gateway.errors import InvalidRequest, UnsupportedMedia
from gateway.predict.calibrate import TOKENS_PER_BYTE
from gateway.predict.view import PromptView
from gateway.settings.schema import Tenant
from gateway.upstream.providers import FORM_MODEL, FORM_SCAN_BYTES

GENERATING: dict[str, type[Generation]] = {
    "/chat/completions": ChatRequest,
    "/completions": CompletionRequest,
    "/responses": ResponsesRequest,
}
"""Routes that make text, whose length is forecast."""


class Asked(Struct):
    """A parsed request."""

    model: str
    stream: bool = False
    wants_usage: bool = True
    ending: Ending = Ending.ANY
    n: int = 1
    max_tokens: int | None = None
    view: PromptView | None = None
    prompt_tokens: int = 1  # of a request without a view, estimated


def parse(
    routing: RoutingTable,
    tenant: Tenant,
    method: str,
    path: str,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
) -> Asked:
    """Raises InvalidRequest, BodyTooLarge (it has too many members), UnsupportedMedia."""
    encoding = header(headers, b"content-encoding")
    if encoding not in (None, b"identity"):
        raise UnsupportedMedia("Compressed request bodies are not accepted.")
    kind = GENERATING.get(path) if method == "POST" else None
    if kind is not None:
        check_complexity(body)
        request = decode(body, kind)
        check_generation(request)
        return _generation(tenant.name, path, request, routing.max_chars)
    return _routed_only(path, headers, body, routing.default_model(tenant))


def _generation(tenant: str, path: str, request: Generation, max_chars: int) -> Asked:
    if isinstance(request, ChatRequest):
        check_messages(request.messages)
    stream = request.stream is True
    options = request.stream_options
    chat_like = path != "/responses"
    view = view_of(tenant, request, max_chars)
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


def _routed_only(path: str, headers: list[tuple[bytes, bytes]], body: bytes, default: str) -> Asked:
    """A request the gateway only routes: by the model its body names. Where none may be
    named, as in a listing, the first model's accounts answer."""
    kind = header(headers, b"content-type") or b""
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
