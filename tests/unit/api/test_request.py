"""What is read of a body."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.api.auth import Tenants
from gateway.api.request import Asked, parse
from gateway.api.routing import RoutingTable
from gateway.engine.call import Ending
from gateway.errors import GatewayError, InvalidRequest, UnsupportedMedia
from gateway.schedule.routes import routes
from tests.unit.settings.trees import valid

SETTINGS = valid(tenants=[{"name": "t", "anonymous": True, "models": ["m2", "m"]}])
DIRECTORY = RoutingTable(Tenants(SETTINGS), routes(SETTINGS.accounts), SETTINGS.server, 1000)
JSON = (b"content-type", b"application/json")
MESSAGES = [{"role": "user", "content": "hi"}]


def asked(path: str, body: Any, *headers: tuple[bytes, bytes], method: str = "POST") -> Asked:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return parse(DIRECTORY, SETTINGS.tenants[0], method, path, list(headers) or [JSON], raw)


@pytest.mark.parametrize(
    ("path", "more", "ending", "wants_usage"),
    [
        ("/chat/completions", {"stream": True}, Ending.CHOICES, False),
        (
            "/chat/completions",
            {"stream": True, "stream_options": {"include_usage": True}},
            Ending.CHOICES,
            True,
        ),
        ("/chat/completions", {}, Ending.ANY, True),
        ("/responses", {"stream": True}, Ending.TERMINAL, True),
    ],
)
def test_asked_tells_how_an_answer_ends_and_who_wants_its_usage(
    path: str, more: dict[str, Any], ending: Ending, wants_usage: bool
) -> None:
    """A chat stream tells its usage when asked; the responses API always does."""
    found = asked(path, {"model": "m", "messages": MESSAGES, "input": "hi", **more})
    assert (found.ending, found.wants_usage) == (ending, wants_usage)
    assert found.stream is bool(more)
    assert found.view is not None


def test_asked_of_a_batch_counts_every_answer() -> None:
    """Prompts times choices."""
    found = asked("/completions", {"model": "m", "prompt": ["a", "b", "c"], "n": 2})
    assert found.n == 6


def test_asked_of_embeddings_has_their_prompts_tokens() -> None:
    """All of a batch, and no view: nothing is generated."""
    found = asked("/embeddings", {"model": "m", "input": [[1, 2, 3], [4, 5]]})
    assert (found.view, found.prompt_tokens) == (None, 5)


def test_asked_of_a_form_is_routed_by_its_field() -> None:
    """Only its head is looked through."""
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--x--'
    kind = (b"content-type", b"multipart/form-data; boundary=x")
    assert asked("/audio/transcriptions", form, kind).model == "whisper"


def test_asked_without_a_model_is_the_first_ones_where_none_may_be_named() -> None:
    """Listings and moderations; every other stateless route must name one."""
    assert asked("/files", b"", method="GET").model == "m2"
    assert asked("/moderations", {"input": "x"}).model == "m2"
    with pytest.raises(InvalidRequest) as caught:
        asked("/embeddings", {"input": "x"})
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("headers", "body", "error"),
    [
        ([(b"content-encoding", b"gzip")], b"{}", UnsupportedMedia),
        ([JSON], b"{", InvalidRequest),
        ([JSON], {"model": "m", "messages": []}, InvalidRequest),
    ],
)
def test_asked_of_what_cannot_be_read_is_refused(
    headers: list[tuple[bytes, bytes]], body: Any, error: type[GatewayError]
) -> None:
    """Before anything is forecast or sent."""
    with pytest.raises(error):
        asked("/chat/completions", body, *headers)
