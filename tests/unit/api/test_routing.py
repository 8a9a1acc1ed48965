"""Who serves what, for whom."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.api.auth import Tenants
from gateway.api.routing import Directory
from gateway.errors import ModelNotFound
from gateway.schedule.routes import routes
from gateway.settings.schema import Tenant
from tests.unit.settings.trees import account, valid


def built(**fields: Any) -> tuple[Directory, Tenant]:
    """Models `a` and `b/c`, and one tenant."""
    settings = valid(
        accounts=[account(models=["a", "b/c"])],
        tenants=[{"name": "t", "anonymous": True, **fields}],
    )
    directory = Directory(Tenants(settings), routes(settings.accounts), settings.server, 1000)
    return directory, settings.tenants[0]


def ids(listed: dict[str, Any]) -> list[str]:
    return [model["id"] for model in listed["data"]]


def test_models_are_the_callers() -> None:
    """All where the tenant has no list of its own."""
    directory, tenant = built()
    assert ids(directory.models(tenant)) == ["a", "b/c"]
    directory, tenant = built(models=["b/c"])
    assert ids(directory.models(tenant)) == ["b/c"]


def test_model_is_shown_by_its_escaped_name() -> None:
    """Names may hold a slash; another's and an unknown one are not found alike."""
    directory, tenant = built(models=["b/c"])
    assert directory.models(tenant, "/models/b%2Fc")["id"] == "b/c"
    for path in ("/models/a", "/models/x"):
        with pytest.raises(ModelNotFound):
            directory.models(tenant, path)


def test_route_is_of_a_model_that_is_served_and_allowed() -> None:
    """Both refusals are ModelNotFound."""
    directory, tenant = built(models=["a"])
    assert directory.route(tenant, "a") is directory.routes["a"]
    unbound = built()
    for (others, asker), model in (((directory, tenant), "b/c"), (unbound, "gone")):
        with pytest.raises(ModelNotFound):
            others.route(asker, model)


def test_default_model_is_the_tenants_first() -> None:
    """Of all where it has no list."""
    directory, tenant = built(models=["b/c", "a"])
    assert directory.default_model(tenant) == "b/c"
    directory, tenant = built()
    assert directory.default_model(tenant) == "a"
