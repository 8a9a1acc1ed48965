"""Which of `/v1/*` is sent on, and how its path is written.

Destinations come from the settings alone: the client's path is appended to an account's base
URL after the one check here.
"""

from __future__ import annotations

import re
from typing import Any

from gateway.api.auth import Tenants, forbidden_stateful
from gateway.errors import MethodNotAllowed, NotFound
from gateway.settings.schema import Tenant

Scope = dict[str, Any]

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
"""Routes whose request is all there is; other routes' objects live at the provider."""


def canonical(scope: Scope) -> str:
    """The path below /v1, as it is sent on."""
    raw = scope.get("raw_path") or scope["path"].encode()
    path: str = raw.split(b"?")[0].decode("latin-1")
    if path.startswith("/v1"):
        path = path[3:]
    return path if path in ("", "/") else path.rstrip("/")


def label(path: str) -> str:
    """A canonical path as a metric's label: one of a few."""
    return "/v1" + path if path in STATELESS or path == "/models" else "other"


def check_route(tenants: Tenants, tenant: Tenant, method: str, path: str) -> None:
    """Raises NotFound, MethodNotAllowed or Forbidden for a path that is not sent on as it is,
    or may not be."""
    if not _PATH.match(path) or any(part in (".", "..") for part in path.split("/")):
        raise NotFound(f"Unknown request URL: {method} /v1{path[:200]}.", code="unknown_url")
    if path in STATELESS:
        only(method, "POST")
    elif not tenants.stateful(tenant):
        raise forbidden_stateful(path)


def only(method: str, wanted: str) -> None:
    """Raises MethodNotAllowed."""
    if method != wanted:
        raise MethodNotAllowed(f"Not allowed to {method} here; use {wanted}.")
