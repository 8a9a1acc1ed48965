"""What the data plane reads of the settings: who may ask, and who serves what."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from msgspec import Struct

from gateway.api import auth
from gateway.schedule.routes import Route
from gateway.settings.schema import Server, Tenant


class Directory(Struct, frozen=True):
    """Replaced whole on a reload."""

    tenants: auth.Tenants
    routes: dict[str, Route]
    server: Server
    max_chars: int  # of a prompt, that the predictor reads

    def default_model(self, tenant: Tenant) -> str:
        """The model of a request that names none: the tenant's first."""
        return tenant.models[0] if tenant.models else next(iter(self.routes))

    def route(self, tenant: Tenant, model: str) -> Route:
        """Who serves a model for a tenant. Raises ModelNotFound."""
        auth.allowed(tenant, model)
        route = self.routes.get(model)
        if route is None:
            raise auth.model_not_found(model)
        return route

    def models(self, tenant: Tenant, path: str = "/models") -> dict[str, Any]:
        """GET /v1/models and /v1/models/{id}, OpenAI's shape, the caller's models only. Raises
        ModelNotFound."""
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
