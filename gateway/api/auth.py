"""Authentication: a tenant by its key, the operator by the admin token.

Keys are random 256-bit strings, so their SHA-256 needs no salt or stretching. A look-up by
digest reveals nothing usable through its time; the admin token's is compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac

from gateway.api.headers import Fields
from gateway.errors import Forbidden, ModelNotFound, Unauthorized
from gateway.settings.schema import Settings, Tenant


def digest(key: str | bytes) -> str:
    """A key in the form of gateway.toml: `sha256:` and 64 hexadecimal digits."""
    raw = key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def bearer(fields: Fields) -> bytes | None:
    """The token of `Authorization: Bearer TOKEN`; None without one."""
    scheme, _, token = fields.get(b"authorization", b"").strip().partition(b" ")
    return token.strip() or None if scheme.lower() == b"bearer" else None


def presented_key(fields: Fields) -> bytes | None:
    """The credential of a request: the bearer token, else Azure's or Anthropic's key header. None
    without any."""
    token = bearer(fields)
    if token is not None:
        return token
    return fields.get(b"api-key", b"").strip() or fields.get(b"x-api-key", b"").strip() or None


class Tenants:
    """The tenants of one generation of settings."""

    def __init__(self, settings: Settings) -> None:
        self._by_digest = {
            bytes.fromhex(key.removeprefix("sha256:")): tenant
            for tenant in settings.tenants
            for key in tenant.keys
        }
        self._anonymous = next((t for t in settings.tenants if t.anonymous), None)
        self.only_one = len(settings.tenants) == 1

    def authenticate(self, fields: Fields) -> Tenant:
        """The caller's tenant. Raises Unauthorized."""
        key = presented_key(fields)
        if key is not None:
            tenant = self._by_digest.get(hashlib.sha256(key).digest())
            if tenant is not None:
                return tenant
        if self._anonymous is not None:
            return self._anonymous
        if key is None:
            raise Unauthorized(
                "No API key given: send it as `Authorization: Bearer KEY`.", should_retry=False
            )
        raise Unauthorized("Incorrect API key.", should_retry=False)

    def stateful(self, tenant: Tenant) -> bool:
        """True where the tenant may use routes whose objects live at the provider.

        The provider keeps such objects by account, so tenants that share one could read each
        other's. Unless the settings say otherwise, only a lone tenant may use them.
        """
        return self.only_one if tenant.stateful is None else tenant.stateful


def check_model(tenant: Tenant, model: str) -> None:
    """Raises ModelNotFound where the tenant may not use the model, as for one that does not
    exist."""
    if tenant.models and model not in tenant.models:
        raise model_not_found(model)


def model_not_found(model: str) -> ModelNotFound:
    """The error for a model that does not exist, or that the tenant may not use."""
    return ModelNotFound(
        f"The model `{model[:200]}` does not exist or you do not have access to it.",
        param="model",
        should_retry=False,
    )


class AdminToken:
    """The operator's token, kept as a digest."""

    def __init__(self, token: str) -> None:
        self._digest = digest(token)

    def check(self, fields: Fields) -> None:
        """Raises Unauthorized without `Authorization: Bearer <admin token>`."""
        key = bearer(fields)
        if key is None or not hmac.compare_digest(digest(key), self._digest):
            raise Unauthorized(
                "This route wants `Authorization: Bearer <admin token>`.",
                code="invalid_admin_token",
                should_retry=False,
            )


def stateful_forbidden(path: str) -> Forbidden:
    """The error for a stateful route, with the setting that allows it."""
    return Forbidden(
        f"`/v1{path}` keeps its objects at the provider, where tenants share an account; "
        "set `stateful = true` for this tenant to relay it.",
        code="stateful_route",
        should_retry=False,
    )
