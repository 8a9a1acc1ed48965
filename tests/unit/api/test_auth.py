"""Authentication of tenants and of the operator."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from gateway.api.auth import (
    AdminToken,
    Tenants,
    bearer,
    check_model,
    digest,
    model_not_found,
    presented_key,
    stateful_forbidden,
)
from gateway.errors import ModelNotFound, Unauthorized
from gateway.settings.schema import Tenant
from tests.unit.settings.trees import valid

KEY, OTHER = b"sk-one", b"sk-other"


def headers(**named: bytes) -> dict[bytes, bytes]:
    return {name.replace("_", "-").encode(): value for name, value in named.items()}


def tenants(**anonymous: bool) -> Tenants:
    """Tenant `one` with two keys, tenant `other` with one, and an anonymous one on demand."""
    listed: list[dict[str, Any]] = [
        {"name": "one", "keys": [digest(b"sk-first"), digest(KEY)]},
        {"name": "other", "keys": [digest(OTHER)]},
    ]
    if anonymous:
        listed.append({"name": "anyone", "anonymous": True})
    return Tenants(valid(tenants=listed))


def tenant(**fields: Any) -> Tenant:
    found: Tenant = valid(tenants=[{"name": "t", "anonymous": True, **fields}]).tenants[0]
    return found


# -- keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["sk-one", "", "ü", "\udcff"])
def test_digest_is_sha256_of_the_bytes(key: str) -> None:
    """A digest is what `printf %s KEY | sha256sum` prints; a key need not be text."""
    raw = key.encode("utf-8", "surrogateescape")
    assert digest(key) == digest(raw) == "sha256:" + hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        ({}, None),
        (headers(authorization=b"Bearer sk-one"), KEY),
        (headers(authorization=b"bearer sk-one"), KEY),
        (headers(authorization=b"BEARER   sk-one "), KEY),
        (headers(authorization=b" Bearer sk-one"), KEY),
        (headers(authorization=b"Bearer"), None),
        (headers(authorization=b"Bearer "), None),
        (headers(authorization=b"Basic sk-one"), None),
        (headers(authorization=b"sk-one"), None),
        (headers(api_key=b"sk-one"), KEY),
        (headers(x_api_key=b" sk-one "), KEY),
        (headers(x_api_key=b""), None),
        (headers(x_api_key=b"", api_key=b"sk-one"), KEY),
        (headers(authorization=b"Basic dTpw", x_api_key=b"sk-one"), KEY),
        (headers(cookie=b"sk-one", x_key=b"sk-one"), None),
    ],
)
def test_presented_key_reads_the_header_of_every_client(sent: Any, key: bytes | None) -> None:
    """OpenAI's, Azure's and Anthropic's clients each have a header of their own."""
    assert presented_key(sent) == key


def test_presented_key_prefers_the_bearer_token() -> None:
    """Of two credentials it is the bearer token that counts."""
    assert presented_key(headers(authorization=b"Bearer sk-one", x_api_key=b"sk-other")) == KEY


def test_bearer_reads_authorization_alone() -> None:
    """The key headers of other clients are read for tenants alone."""
    assert bearer(headers(authorization=b"Bearer sk-one")) == KEY
    assert bearer(headers(api_key=b"sk-one", x_api_key=b"sk-one")) is None


# -- tenants -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "name"), [(KEY, "one"), (b"sk-first", "one"), (OTHER, "other")])
def test_authenticate_finds_the_tenant_of_a_key(key: bytes, name: str) -> None:
    """A tenant may have several keys, so that they can be rotated."""
    assert tenants().authenticate(headers(authorization=b"Bearer " + key)).name == name


@pytest.mark.parametrize("key", [b"sk-on", b"sk-one2", b"SK-ONE", b"\xff", digest(KEY).encode()])
def test_authenticate_refuses_other_keys(key: bytes) -> None:
    """A key that only resembles one is refused, and so is the digest in the settings file."""
    with pytest.raises(Unauthorized) as caught:
        tenants().authenticate(headers(authorization=b"Bearer " + key))
    error = caught.value
    assert (error.status, error.code, error.should_retry) == (401, "invalid_api_key", False)
    assert error.message == "Incorrect API key."


def test_authenticate_says_how_to_send_a_key() -> None:
    """The error for a request without a key names the header."""
    with pytest.raises(Unauthorized, match="Authorization: Bearer KEY"):
        tenants().authenticate({})


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ({}, "anyone"),
        (headers(authorization=b"Bearer anything"), "anyone"),
        (headers(authorization=b"Bearer sk-other"), "other"),
    ],
)
def test_authenticate_takes_any_key_with_an_anonymous_tenant(sent: Any, name: str) -> None:
    """Any key or none gives the anonymous tenant, but a tenant's own key gives that tenant."""
    assert tenants(anonymous=True).authenticate(sent).name == name


def test_stateful_routes_are_for_lone_tenants() -> None:
    """Objects at the provider belong to an account: tenants that share it could read each other's,
    so several tenants need the operator's permission."""
    alone, denied = tenant(), tenant(stateful=False)
    assert Tenants(valid()).stateful(alone)
    assert not Tenants(valid()).stateful(denied)
    assert not tenants().stateful(alone)
    assert tenants().stateful(tenant(stateful=True))


def test_stateful_forbidden_names_the_setting() -> None:
    """The operator finds the setting in the message."""
    error = stateful_forbidden("/files")
    assert (error.status, error.code) == (403, "stateful_route")
    assert "`/v1/files`" in error.message
    assert "stateful = true" in error.message


# -- models ------------------------------------------------------------------------------------


def test_check_model_allows_all_models_or_the_listed() -> None:
    """A model that a tenant may not use gives the same 404 as a misspelt one."""
    check_model(tenant(), "whatever")
    check_model(tenant(models=["m"]), "m")
    for model in ("m2", "M", "m ", ""):
        with pytest.raises(ModelNotFound) as caught:
            check_model(tenant(models=["m"]), model)
        assert caught.value.wire() == model_not_found(model).wire()


def test_model_not_found_has_openais_form() -> None:
    """Status, param and code are those SDKs know, and the name in the message is bounded."""
    error = model_not_found("x" * 10_000)
    assert (error.status, error.param, error.code) == (404, "model", "model_not_found")
    assert error.should_retry is False
    assert len(error.message) < 300


# -- the operator ------------------------------------------------------------------------------


def test_admin_token_opens_with_the_token_alone() -> None:
    """The token passes in the documented header; other values and headers do not."""
    token = AdminToken("adm-1")
    token.check(headers(authorization=b"Bearer adm-1"))
    token.check(headers(x_api_key=b"sk-one", authorization=b"Bearer adm-1"))
    for sent in (
        {},
        headers(authorization=b"Bearer adm-2"),
        headers(authorization=b"Basic adm-1"),
        headers(authorization=b"Bearer"),
        headers(authorization=b"Bearer " + digest("adm-1").encode()),
        headers(x_api_key=b"adm-1"),
    ):
        with pytest.raises(Unauthorized) as caught:
            token.check(sent)
        assert (caught.value.status, caught.value.code) == (401, "invalid_admin_token")


def test_admin_token_and_keys_are_not_exchangeable() -> None:
    """A tenant's key opens no operator's route, and the admin token no tenant's."""
    with pytest.raises(Unauthorized):
        AdminToken("adm-1").check(headers(authorization=b"Bearer " + KEY))
    with pytest.raises(Unauthorized):
        tenants().authenticate(headers(authorization=b"Bearer adm-1"))


def test_keys_are_not_kept_in_the_clear() -> None:
    """A dump of the objects shows digests alone; the twin finds the digest."""
    dump = repr(vars(AdminToken("adm-1"))) + repr(vars(tenants()))
    assert "adm-1" not in dump
    assert "sk-" not in dump
    assert digest("adm-1") in dump
    assert repr(hashlib.sha256(KEY).digest()) in dump
