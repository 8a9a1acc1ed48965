"""Which paths are sent on."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.api.auth import Tenants
from gateway.api.paths import STATELESS, canonical, check_route, label
from gateway.api.request import GENERATING
from gateway.errors import Forbidden, GatewayError, MethodNotAllowed, NotFound
from tests.unit.settings.trees import valid


def check(method: str, path: str, **fields: Any) -> None:
    settings = valid(tenants=[{"name": "t", "anonymous": True, **fields}])
    check_route(Tenants(settings), settings.tenants[0], method, path)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/v1/chat/completions", "/chat/completions"),
        (b"/v1/chat/completions/", "/chat/completions"),
        (b"/v1/files?limit=2", "/files"),
        (b"/v1/a%2Fb", "/a%2Fb"),
        (b"/v1", ""),
        (b"/v1/", "/"),
    ],
)
def test_canonical_is_the_path_below_v1(raw: bytes, path: str) -> None:
    """Without query and closing slash; escapes stay as they are, for the check to refuse."""
    assert canonical({"raw_path": raw, "path": "/other"}) == path
    assert canonical({"path": "/v1/models"}) == "/models"


@pytest.mark.parametrize(
    "path", ["", "/", "/a//b", "/a/../b", "/..", "/a/./b", "/a%2Fb", "/a b", "/a\\b", "/é", "a"]
)
def test_route_of_another_writing_is_unknown(path: str) -> None:
    """Whatever a provider, or a proxy before it, could read as another path."""
    with pytest.raises(NotFound) as caught:
        check("GET", path, stateful=True)
    assert caught.value.code == "unknown_url"


@pytest.mark.parametrize("path", sorted(STATELESS))
def test_stateless_route_is_posted_to(path: str) -> None:
    """By any tenant; other methods are not allowed."""
    check("POST", path, stateful=False)
    with pytest.raises(MethodNotAllowed):
        check("GET", path)


def test_stateful_route_wants_leave() -> None:
    """What lives at the provider belongs to the account, not to a tenant."""
    check("DELETE", "/files/file-1", stateful=True)
    with pytest.raises(GatewayError) as caught:
        check("DELETE", "/files/file-1", stateful=False)
    assert isinstance(caught.value, Forbidden)


def test_generating_routes_are_stateless() -> None:
    """What is forecast may be sent to any account."""
    assert set(GENERATING) <= STATELESS


def test_label_is_one_of_a_few() -> None:
    """A client's path must not make metrics grow."""
    assert label("/responses") == "/v1/responses"
    assert label("/models") == "/v1/models"
    assert label("/models/x") == label("/anything") == "other"
