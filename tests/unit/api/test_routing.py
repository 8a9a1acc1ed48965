"""Routing: the paths that are sent on, and the accounts that serve a tenant's model."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.api.auth import Tenants
from gateway.api.request import GENERATING
from gateway.api.routing import (
    STATELESS,
    RoutingTable,
    canonical_path,
    check_route,
    route_label,
)
from gateway.errors import Forbidden, MethodNotAllowed, ModelNotFound, NotFound
from gateway.schedule.routes import routes
from gateway.settings.schema import Tenant
from tests.unit.settings.trees import account, valid


def table(**fields: Any) -> tuple[RoutingTable, Tenant]:
    """Models `a` and `b/c`, and one tenant."""
    settings = valid(
        accounts=[account(models=["a", "b/c"])],
        tenants=[{"name": "t", "anonymous": True, **fields}],
    )
    routing = RoutingTable(Tenants(settings), routes(settings.accounts), settings.server, 1000)
    return routing, settings.tenants[0]


def ids(listed: dict[str, Any]) -> list[str]:
    return [model["id"] for model in listed["data"]]


def check(method: str, path: str, **fields: Any) -> None:
    settings = valid(tenants=[{"name": "t", "anonymous": True, **fields}])
    check_route(Tenants(settings), settings.tenants[0], method, path)


# -- models ------------------------------------------------------------------------------------


def test_models_lists_those_of_the_caller() -> None:
    """A tenant without a list of its own sees every model."""
    routing, tenant = table()
    assert ids(routing.models(tenant)) == ["a", "b/c"]
    routing, tenant = table(models=["b/c"])
    assert ids(routing.models(tenant)) == ["b/c"]


def test_models_shows_one_by_its_escaped_name() -> None:
    """A name may hold a slash; another tenant's model and an unknown one give the same 404."""
    routing, tenant = table(models=["b/c"])
    assert routing.models(tenant, "/models/b%2Fc")["id"] == "b/c"
    for path in ("/models/a", "/models/x"):
        with pytest.raises(ModelNotFound):
            routing.models(tenant, path)


def test_route_exists_for_models_that_are_served_and_allowed() -> None:
    """A model that is not served and one that is not allowed both raise ModelNotFound."""
    routing, tenant = table(models=["a"])
    assert routing.route(tenant, "a") is routing.routes["a"]
    unbound = table()
    for (others, asker), model in (((routing, tenant), "b/c"), (unbound, "gone")):
        with pytest.raises(ModelNotFound):
            others.route(asker, model)


def test_default_model_is_the_first_of_the_tenant() -> None:
    """A tenant without a list of its own gets the first model of all."""
    routing, tenant = table(models=["b/c", "a"])
    assert routing.default_model(tenant) == "b/c"
    routing, tenant = table()
    assert routing.default_model(tenant) == "a"


# -- paths -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/v1/chat/completions", "/chat/completions"),
        (b"/v1/chat/completions/", "/chat/completions"),
        (b"/v1/a%2Fb", "/a%2Fb"),
        (b"/v1", ""),
        (b"/v1/", "/"),
    ],
)
def test_canonical_path_is_the_path_below_v1(raw: bytes, path: str) -> None:
    """A trailing slash goes; escapes stay, so that the check can refuse them."""
    assert canonical_path(raw) == path


@pytest.mark.parametrize(
    "path", ["", "/", "/a//b", "/a/../b", "/..", "/a/./b", "/a%2Fb", "/a b", "/a\\b", "/é", "a"]
)
def test_check_route_refuses_ambiguous_paths(path: str) -> None:
    """A path that a provider, or a proxy before it, could read as another one is unknown."""
    with pytest.raises(NotFound) as caught:
        check("GET", path, stateful=True)
    assert caught.value.code == "unknown_url"


@pytest.mark.parametrize("path", sorted(STATELESS))
def test_check_route_lets_every_tenant_post_to_stateless_routes(path: str) -> None:
    """Other methods than POST are refused there."""
    check("POST", path, stateful=False)
    with pytest.raises(MethodNotAllowed):
        check("GET", path)


def test_check_route_refuses_stateful_routes_without_permission() -> None:
    """Objects at the provider belong to the account, not to a tenant."""
    check("DELETE", "/files/file-1", stateful=True)
    with pytest.raises(Forbidden):
        check("DELETE", "/files/file-1", stateful=False)


def test_check_route_never_sends_a_trace() -> None:
    """The answer to TRACE is the request as it came, the account's key included."""
    for path in ("/files/file-1", "/chat/completions"):
        with pytest.raises(MethodNotAllowed):
            check("TRACE", path, stateful=True)


def test_generating_routes_are_stateless() -> None:
    """A request whose length is forecast may be sent to any account."""
    assert set(GENERATING) <= STATELESS


def test_route_label_is_one_of_a_fixed_set() -> None:
    """A path made up by a client adds no metric series."""
    assert route_label("/responses") == "/v1/responses"
    assert route_label("/models") == "/v1/models"
    assert route_label("/models/x") == route_label("/anything") == "other"
