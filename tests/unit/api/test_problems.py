"""Errors as responses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.api.problems import internal_error, problem
from gateway.errors import (
    GatewayError,
    InvalidRequest,
    Refused,
    Unauthorized,
    Unavailable,
    UpstreamRefused,
)


def headers_of(error: GatewayError) -> dict[bytes, bytes]:
    _, headers, body = problem(error)
    named = dict(headers)
    assert len(named) == len(headers)
    assert named[b"content-length"] == str(len(body)).encode()
    assert named[b"content-type"] == b"application/json"
    return named


def test_problem_has_openais_four_members() -> None:
    """All four members of OpenAI's error object are present in every error."""
    status, _, body = problem(InvalidRequest("Bad é.", param="n", code="invalid_value"))
    assert status == 400
    assert json.loads(body) == {
        "error": {
            "message": "Bad é.",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_value",
        }
    }


@pytest.mark.parametrize(
    ("wait", "ms", "seconds"),
    [
        (0.0, b"0", b"1"),
        (-3.0, b"0", b"1"),
        (0.0004, b"1", b"1"),
        (0.25, b"250", b"1"),
        (1.0, b"1000", b"1"),
        (1.001, b"1001", b"2"),
        (300.0, b"300000", b"300"),
        (float("inf"), b"86400000", b"86400"),
    ],
)
def test_problem_has_the_wait_in_two_headers(wait: float, ms: bytes, seconds: bytes) -> None:
    """SDKs get milliseconds, everyone else whole seconds, rounded up and never 0."""
    headers = headers_of(Refused("Full.", retry_after_s=wait))
    assert (headers[b"retry-after-ms"], headers[b"retry-after"]) == (ms, seconds)


@pytest.mark.parametrize("wait", [None, float("nan")])
def test_problem_without_a_wait_has_no_wait_header(wait: float | None) -> None:
    """An unknown wait sends no header."""
    headers = headers_of(Refused("Full.", retry_after_s=wait))
    assert not {b"retry-after-ms", b"retry-after"} & set(headers)


@pytest.mark.parametrize(("should", "value"), [(True, b"true"), (False, b"false"), (None, None)])
def test_problem_tells_sdks_to_retry_or_not(should: bool | None, value: bytes | None) -> None:
    """SDKs retry 429 and 5xx by themselves unless the header forbids it."""
    headers = headers_of(Unavailable("Draining.", should_retry=should))
    assert headers.get(b"x-should-retry") == value


@pytest.mark.parametrize(
    ("error", "scheme"), [(Unauthorized("No."), b"Bearer"), (InvalidRequest("No."), None)]
)
def test_problem_names_the_scheme_with_401(error: Any, scheme: bytes | None) -> None:
    """A 401 carries a challenge, and no other status does (RFC 9110 §15.5.2)."""
    assert headers_of(error).get(b"www-authenticate") == scheme


def test_problem_passes_a_providers_error_on() -> None:
    """The provider's status, body and wait are sent as they came."""
    error = UpstreamRefused(429, b'{"error":{"message":"slow"}}', retry_after_s=2.0)
    assert headers_of(error)[b"retry-after"] == b"2"
    assert problem(error)[::2] == (429, b'{"error":{"message":"slow"}}')


def test_internal_error_shows_nothing_of_the_inside() -> None:
    """The log has the fault under the request's id; the client learns that there was one."""
    status, _, body = problem(internal_error())
    assert status == 500
    assert json.loads(body)["error"] == {
        "message": "The gateway failed to handle the request.",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
