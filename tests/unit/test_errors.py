"""The tree of errors and their form on the wire."""

from __future__ import annotations

import re

import pytest

from gateway import errors
from gateway.errors import (
    BodyTooLarge,
    Forbidden,
    GatewayError,
    Gone,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    Refused,
    RequestTimeout,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
)

BAD = "invalid_request_error"


@pytest.mark.parametrize(
    ("kind", "status", "type_", "code"),
    [
        (GatewayError, 500, "server_error", "internal_error"),
        (InvalidRequest, 400, BAD, None),
        (Unauthorized, 401, BAD, "invalid_api_key"),
        (Forbidden, 403, BAD, "forbidden"),
        (NotFound, 404, BAD, "not_found"),
        (ModelNotFound, 404, BAD, "model_not_found"),
        (MethodNotAllowed, 405, BAD, "method_not_allowed"),
        (RequestTimeout, 408, BAD, "request_timeout"),
        (Gone, 410, BAD, "gone"),
        (BodyTooLarge, 413, BAD, "request_too_large"),
        (UnsupportedMedia, 415, BAD, "unsupported_media_type"),
        (Refused, 429, "rate_limit_error", "overloaded"),
        (Unavailable, 503, "service_unavailable_error", "unavailable"),
        (UpstreamFailed, 502, "upstream_error", "upstream_failed"),
        (UpstreamTimeout, 504, "upstream_error", "upstream_timeout"),
    ],
)
def test_error_has_its_form_on_the_wire(
    kind: type[GatewayError], status: int, type_: str, code: str | None
) -> None:
    """Status, type and code belong to the kind; message, param and a finer code are given."""
    error = kind("No.")
    assert error.status == status
    assert error.wire() == {"error": {"message": "No.", "type": type_, "param": None, "code": code}}
    finer = kind("No.", param="p", code="finer").wire()["error"]
    assert (finer["param"], finer["code"]) == ("p", "finer")
    assert kind("No.").code == code  # the finer one stayed with its instance


def test_error_tree_is_the_one_drawn() -> None:
    """The drawing at the head of the file has every kind, under the right parent."""
    drawn: dict[str, str] = {}
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines()[1:]:  # below the heading
        match = re.match(r"^((?:[│├└─ ]{3})*)([A-Z]\w+)\b", line)
        if match:
            depth = len(match[1]) // 3
            del parents[depth:]
            drawn[match[2]] = parents[-1] if parents else "Exception"
            parents.append(match[2])
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, GatewayError)
    ]
    assert len(kinds) > 15
    assert drawn == {kind.__name__: kind.__mro__[1].__name__ for kind in kinds}


def test_upstream_refused_carries_the_providers_answer() -> None:
    """UpstreamRefused holds status and body as they came, and is an UpstreamFailed."""
    error = UpstreamRefused(418, b"{}", retry_after_s=1.5)
    assert (error.status, error.body, error.retry_after_s) == (418, b"{}", 1.5)
    assert isinstance(error, UpstreamFailed)
    assert UpstreamFailed.status == 502


def test_error_prints_its_message_alone() -> None:
    """The text of an error is its message alone."""
    assert str(Refused("Full.", code="queue_full", retry_after_s=1.0)) == "Full."
