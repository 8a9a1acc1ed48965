"""Routing of `/v1/*`: the paths that are sent on, and the accounts that serve a tenant's model.

Destinations come from the settings alone. A client's path is appended to an account's base URL,
and only after `check_route` has passed it.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from msgspec import Struct

from gateway.api import auth
from gateway.errors import MethodNotAllowed, NotFound
from gateway.schedule.routes import Route
from gateway.settings.schema import Server, Tenant

_PATH = re.compile(r"^(/[A-Za-z0-9_.~:@!$&'()*+,;=-]+)+$")

STATELESS = frozenset(
    {
        "/chat/completions",
        "/completions",
        "/responses",
        "/embeddings",
        "/moderations",
        "/rerank",
        "/images/generations",
        "/images/edits",
        "/images/variations",
        "/audio/speech",
        "/audio/transcriptions",
        "/audio/translations",
    }
)
"""Routes that refer to nothing but their own request. The objects of every other route live at
the provider, in one account."""


class RoutingTable(Struct, frozen=True):
    """The settings the data plane reads: tenants, routes and bounds. A reload replaces it whole."""

    tenants: auth.Tenants
    routes: dict[str, Route]
    server: Server
    max_chars: int  # of a prompt, as far as the predictor reads it

    def default_model(self, tenant: Tenant) -> str:
        """The model of a request that names none: the first one the tenant may use."""
        return tenant.models[0] if tenant.models else next(iter(self.routes))

    def route(self, tenant: Tenant, model: str) -> Route:
        """The pool and accounts that serve a model for a tenant. Raises ModelNotFound."""
        auth.check_model(tenant, model)
        route = self.routes.get(model)
        if route is None:
            raise auth.model_not_found(model)
        return route

    def models(self, tenant: Tenant, path: str = "/models") -> dict[str, Any]:
        """The answer of GET /v1/models and /v1/models/{id} in OpenAI's shape, with the models the
        tenant may use. Raises ModelNotFound."""
        names = [m for m in self.routes if not tenant.models or m in tenant.models]
        objects = [
            {"id": name, "object": "model", "created": 0, "owned_by": "sagesched"} for name in names
        ]
        if path == "/models":
            return {"object": "list", "data": objects}
        wanted = unquote(path.removeprefix("/models/"))
        for value in objects:
            if value["id"] == wanted:
                return value
        raise auth.model_not_found(wanted)


_STATELESS_RAW = {b"/v1" + path.encode(): path for path in STATELESS}


def canonical_path(raw: bytes) -> str:
    """The path below /v1 as it is sent on: without trailing slash, escapes kept. `raw` is the path
    as it came."""
    known = _STATELESS_RAW.get(raw)
    if known is not None:
        return known
    path = raw.decode("latin-1")
    if path.startswith("/v1"):
        path = path[3:]
    return path if path in ("", "/") else path.rstrip("/")


def route_label(path: str) -> str:
    """A canonical path as a metric label, one of a fixed set."""
    return "/v1" + path if path in STATELESS or path == "/models" else "other"


def check_route(tenants: auth.Tenants, tenant: Tenant, method: str, path: str) -> None:
    """Check that a canonical path may be sent on for a tenant. Raises NotFound,
    MethodNotAllowed, Forbidden."""
    if path in STATELESS:
        require_method(method, "POST")
        return
    if not _PATH.match(path) or any(part in (".", "..") for part in path.split("/")):
        raise NotFound(f"Unknown request URL: {method} /v1{path[:200]}.", code="unknown_url")
    if not tenants.stateful(tenant):
        raise auth.stateful_forbidden(path)
    if method == "TRACE":  # a provider would answer with the request, its key included
        raise MethodNotAllowed("Not allowed: TRACE.")


def require_method(method: str, wanted: str) -> None:
    """Raises MethodNotAllowed."""
    if method != wanted:
        raise MethodNotAllowed(f"Not allowed to {method} here; use {wanted}.")
