"""A request before it is a job: its head, and the parts of its body that are read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.api.auth import Tenants
from gateway.api.received_head import received_head
from gateway.api.request import ParsedRequest, RequestInfo, parse
from gateway.api.routing import RoutingTable
from gateway.engine.exchange import StreamEnd
from gateway.errors import GatewayError, InvalidRequest, UnsupportedMedia
from gateway.schedule.routes import routes
from gateway.types import Outcome
from tests.unit.settings.trees import valid

SETTINGS = valid(tenants=[{"name": "t", "anonymous": True, "models": ["m2", "m"]}])
ROUTING = RoutingTable(Tenants(SETTINGS), routes(SETTINGS.accounts), SETTINGS.server, 1000)
JSON = (b"content-type", b"application/json")
MESSAGES = [{"role": "user", "content": "hi"}]


def info(
    path: str, *headers: tuple[bytes, bytes], method: str = "POST", arrived_s: float = 0.0
) -> RequestInfo:
    head = received_head(method, b"/v1" + path.encode(), list(headers), "1.1")
    return RequestInfo(head, arrived_s)


def parsed(
    path: str, body: Any, *headers: tuple[bytes, bytes], method: str = "POST"
) -> ParsedRequest:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    head = info(path, *(headers or (JSON,)), method=method)
    return parse(ROUTING, SETTINGS.tenants[0], head, raw)


# -- the head ----------------------------------------------------------------------------------


def test_request_info_records_a_request_that_became_no_job() -> None:
    """No text a client wrote becomes a label before it is known to name something."""
    early = info("/chat/completions", arrived_s=10.0)
    early.tenant = "t"
    record = early.record(400, Outcome.CLIENT_ERROR, "bad", now=10.5)
    assert (record.id, record.route, record.tenant) == (early.id, "/v1/chat/completions", "t")
    assert (record.model, record.total_s, record.error_code) == ("other", 0.5, "bad")
    assert info("/whatever").route == "other"


def test_request_info_has_an_id_of_its_own() -> None:
    """Two requests never share an id."""
    names = {info("").id for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("req_") and len(name) == 28 for name in names)


# -- the body ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "more", "stream_end", "wants_usage"),
    [
        ("/chat/completions", {"stream": True}, StreamEnd.CHOICES, False),
        (
            "/chat/completions",
            {"stream": True, "stream_options": {"include_usage": True}},
            StreamEnd.CHOICES,
            True,
        ),
        ("/chat/completions", {}, StreamEnd.ANY, True),
        ("/responses", {"stream": True}, StreamEnd.TERMINAL, True),
    ],
)
def test_parse_reads_the_ending_and_the_wish_for_usage(
    path: str, more: dict[str, Any], stream_end: StreamEnd, wants_usage: bool
) -> None:
    """A chat stream shows its usage on demand; the responses API always does."""
    request = parsed(path, {"model": "m", "messages": MESSAGES, "input": "hi", **more})
    assert (request.stream_end, request.wants_usage) == (stream_end, wants_usage)
    assert request.stream is bool(more)
    assert request.view is not None


def test_parse_counts_every_answer_of_a_batch() -> None:
    """The number of answers is prompts times choices."""
    request = parsed("/completions", {"model": "m", "prompt": ["a", "b", "c"], "n": 2})
    assert request.n == 6


def test_parse_counts_the_prompt_tokens_of_embeddings() -> None:
    """All inputs of a batch count, and without generated text there is no view."""
    request = parsed("/embeddings", {"model": "m", "input": [[1, 2, 3], [4, 5]]})
    assert (request.view, request.prompt_tokens) == (None, 5)


def test_parse_reads_the_model_of_a_form() -> None:
    """A multipart form is searched for its `model` field."""
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--x--'
    kind = (b"content-type", b"multipart/form-data; boundary=x")
    assert parsed("/audio/transcriptions", form, kind).model == "whisper"


def test_parse_takes_the_first_model_where_none_must_be_named() -> None:
    """Listings and moderations need no model; every other stateless route must name one."""
    assert parsed("/files", b"", method="GET").model == "m2"
    assert parsed("/moderations", {"input": "x"}).model == "m2"
    with pytest.raises(InvalidRequest) as caught:
        parsed("/embeddings", {"input": "x"})
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("headers", "body", "error"),
    [
        ([(b"content-encoding", b"gzip")], b"{}", UnsupportedMedia),
        ([JSON], b"{", InvalidRequest),
        ([JSON], {"model": "m", "messages": []}, InvalidRequest),
    ],
)
def test_parse_refuses_bodies_that_cannot_be_read(
    headers: list[tuple[bytes, bytes]], body: Any, error: type[GatewayError]
) -> None:
    """A compressed body, broken JSON and an empty conversation are refused."""
    with pytest.raises(error):
        parsed("/chat/completions", body, *headers)
