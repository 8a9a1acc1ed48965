"""Scopes, and the layout of their keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.predict.scopes import family, of_script, scopes, script_scopes, tenant_of

NAMES = st.text(st.characters(exclude_characters="\x1f"))
"""No name of a tenant, and none of a model that settings know, has a control character."""


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-5.4-mini-2026-03-01", "gpt"),
        ("openai/gpt-4o", "gpt"),
        ("claude-opus-4-1", "claude-opus"),
        ("llama3.1-70b", "llama"),
        ("o3-mini", "o"),
        ("Qwen/Qwen2.5-72B-Instruct", "qwen"),
        ("plain", "plain"),
        ("7b", "7b"),
    ],
)
def test_family_is_the_name_up_to_version_or_size(model: str, name: str) -> None:
    """Vendor, version, size and date do not tell families apart."""
    assert family(model) == name


@given(model=NAMES, tenant=NAMES, template=NAMES, script=NAMES)
def test_tenant_is_read_from_every_key_that_is_made(
    model: str, tenant: str, template: str, script: str
) -> None:
    """Of lengths and of scripts; the kinds are told apart."""
    lengths, scripts = scopes(model, tenant, template), script_scopes(model, tenant, script)
    for keys, kind in ((lengths.models + lengths.templates, False), (scripts.models, True)):
        assert {tenant_of(key) for key in keys} == {tenant}
        assert {of_script(key) for key in keys} == {kind}


def test_tenant_is_read_from_every_kind_of_key() -> None:
    """Tenant, family, model, template; those of scripts have it third."""
    for one in ("t\x1fa", "f\x1fa\x1fgpt", "m\x1fa\x1fgpt-5", "p\x1fa\x1fgpt-5\x1fhash"):
        assert tenant_of(one) == "a"
    for one in ("b\x1fgpt\x1fa\x1flatin", "c\x1fgpt-5\x1fa\x1flatin"):
        assert tenant_of(one) == "a"
    assert tenant_of("odd") == ""
