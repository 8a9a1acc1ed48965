"""Every faulty request is answered with OpenAI's error object and the right status."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.integration.conftest import Shared
from tests.kit.gateway import TENANT_KEY
from tests.kit.raw import RawClient

CHAT = "/v1/chat/completions"
KEY = {"authorization": f"Bearer {TENANT_KEY}"}
MESSAGES = [{"role": "user", "content": "hi"}]
GOOD = {"model": "kit-model", "messages": MESSAGES}


def check(response: httpx.Response, status: int, code: str | None, param: str | None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize(
    ("content", "status", "code", "param"),
    [
        (b"", 400, "invalid_json", None),
        (b"{", 400, "invalid_json", None),
        (b"\xff\xfe", 400, "invalid_json", None),
        (b"[" * 100_000, 400, "invalid_type", None),
        (b'{"a":' * 30_000, 400, "invalid_json", None),
        (b"[]", 400, "invalid_type", None),
        (b"null", 400, "invalid_type", None),
        (b'{"messages":[]}', 400, "missing_required_parameter", "model"),
        (b'{"model":"kit-model"}', 400, "missing_required_parameter", "messages"),
        (b'{"model":"kit-model","messages":[]}', 400, "empty_array", "messages"),
        (b'{"model":"kit-model","messages":{}}', 400, "invalid_type", "messages"),
        (b'{"model":7,"messages":[]}', 400, "invalid_type", "model"),
        (b'{"model":"","messages":[{"role":"user"}]}', 400, "invalid_value", "model"),
        (
            b'{"model":"kit-model","messages":[{"content":"x"}]}',
            400,
            "missing_required_parameter",
            "messages[0].role",
        ),
        (
            b'{"model":"kit-model","messages":[{"role":"user","content":7}]}',
            400,
            "invalid_type",
            "messages[0].content",
        ),
    ],
)
def test_malformed_body_is_named(
    shared: Shared, content: bytes, status: int, code: str, param: str | None
) -> None:
    """Malformed JSON, wrong types and missing members give a 400 that names the place."""
    headers = {**KEY, "content-type": "application/json"}
    response = httpx.post(shared.gateway.url(CHAT), content=content, headers=headers)
    check(response, status, code, param)


@pytest.mark.parametrize(
    ("more", "status", "code", "param"),
    [
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({"max_tokens": -5}, 400, "invalid_value", "max_tokens"),
        ({"max_completion_tokens": 0}, 400, "invalid_value", "max_completion_tokens"),
        ({"max_tokens": "many"}, 400, "invalid_type", "max_tokens"),
        ({"n": 0}, 400, "invalid_value", "n"),
        ({"stream": "yes"}, 400, "invalid_type", "stream"),
        ({"model": "gpt-nobody"}, 404, "model_not_found", "model"),
    ],
)
def test_wrong_value_is_named(
    shared: Shared, more: dict[str, Any], status: int, code: str, param: str
) -> None:
    """A value out of its range is a 400 that names the member; an unknown model is a 404."""
    response = httpx.post(shared.gateway.url(CHAT), json={**GOOD, **more}, headers=KEY)
    check(response, status, code, param)


def test_good_request_passes(shared: Shared) -> None:
    """The twin: the valid request from which the faulty ones were made is answered."""
    response = httpx.post(shared.gateway.url(CHAT), json=GOOD, headers=KEY)
    assert response.status_code == 200
    assert response.headers["x-request-id"].startswith("req_")
    assert response.headers["x-sagesched-class"] in ("interactive", "heavy")
    assert response.headers["x-sagesched-account"] == "a"
    assert int(response.headers["x-sagesched-predicted-tokens"]) > 0
    assert int(response.headers["x-sagesched-queue-ms"]) >= 0


@pytest.mark.parametrize("announced", [True, False])
def test_large_body_is_413(shared: Shared, announced: bool) -> None:
    """More than max_body_bytes is refused, whether its length was announced or not."""
    big = b'{"x":"' + b"a" * 300_000 + b'"}'
    content: Any = big if announced else iter([big])
    response = httpx.post(shared.gateway.url(CHAT), content=content, headers=KEY)
    check(response, 413, "request_too_large", None)


def test_compressed_body_is_415(shared: Shared) -> None:
    """A compressed body is refused, not guessed at."""
    headers = {**KEY, "content-encoding": "gzip"}
    check(
        httpx.post(shared.gateway.url(CHAT), content=b"x", headers=headers),
        415,
        "unsupported_media_type",
        None,
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_url"),
        ("POST", "/", 404, "unknown_url"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/predict", 405, "method_not_allowed"),
        ("POST", "/v1", 404, "unknown_url"),
        ("POST", "/v1/a/../b", 404, "unknown_url"),
        ("POST", "/v1/chat%2fcompletions", 404, "unknown_url"),
        ("GET", "/v1/models/none", 404, "model_not_found"),
        ("GET", "/v1/files", 403, "stateful_route"),
    ],
)
def test_unknown_url_or_method_is_openai_shaped(
    shared: Shared, method: str, path: str, status: int, code: str
) -> None:
    """An error of the framework (unknown URL or method) has OpenAI's form, too."""
    with RawClient.to(shared.gateway.url()) as client:
        client.request(method, path, json=GOOD if method == "POST" else None, headers=KEY)
        response = client.read_response()
    assert response.status == status
    assert response.json()["error"]["code"] == code


def test_wrong_key_is_401(shared: Shared) -> None:
    """A missing key and a wrong key both give 401, with different messages."""
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
        response = httpx.post(shared.gateway.url(CHAT), json=GOOD, headers=headers)
        check(response, 401, "invalid_api_key", None)
        assert response.headers["x-should-retry"] == "false"


def test_azure_style_key_header_is_accepted(shared: Shared) -> None:
    """The same key in `api-key` is the same tenant."""
    response = httpx.post(shared.gateway.url(CHAT), json=GOOD, headers={"api-key": TENANT_KEY})
    assert response.status_code == 200


def test_garbage_instead_of_http_is_answered(shared: Shared) -> None:
    """Bytes that are no HTTP get a 400 in OpenAI's form, and the connection closes."""
    with RawClient.to(shared.gateway.url()) as client:
        client.send(b"\x00\x01\x02 nonsense\r\n\r\n")
        response = client.read_response()
    assert response.status == 400
    assert response.json()["error"]["code"] == "invalid_http"


def test_endless_header_is_431(shared: Shared) -> None:
    """A request header beyond 64 KiB is cut off."""
    with RawClient.to(shared.gateway.url()) as client:
        client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        client.send(b"x-a: " + b"y" * 70_000 + b"\r\n\r\n")
        response = client.read_response()
    assert response.status == 431


def test_slow_body_is_408(shared: Shared) -> None:
    """A body that does not arrive within body_timeout_s is refused with 408."""
    with RawClient.to(shared.gateway.url()) as client:
        client.send(
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TENANT_KEY}\r\n"
            "content-length: 100\r\n\r\n{".encode()
        )
        response = client.read_response()
    assert response.status == 408
    assert response.json()["error"]["code"] == "request_timeout"


def test_refused_requests_are_counted(shared: Shared) -> None:
    """A request refused before it became a job is in the metrics, under its outcome."""
    httpx.post(shared.gateway.url(CHAT), json={**GOOD, "n": 0}, headers=KEY)
    text = httpx.get(shared.gateway.url("/metrics")).text
    assert 'outcome="client_error"' in text


@pytest.mark.parametrize("path", ["/predict", "/ingest", "/submit"])
def test_control_plane_bounds_bodies_too(shared: Shared, path: str) -> None:
    """Every control-plane route that reads a body has the same bound on it."""
    body = {"prompt": "a" * 300_000, "output_tokens": 1}
    response = httpx.post(shared.gateway.url(path), json=body, headers=KEY)
    check(response, 413, "request_too_large", None)
    small = {"prompt": "a" * 100, "output_tokens": 1}
    assert httpx.post(shared.gateway.url(path), json=small, headers=KEY).status_code == 200
