"""The rules of gateway.toml; test_load.py has the messages of broken ones."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.settings.schema import LOOPBACK, Settings
from gateway.types import JobClass
from tests.unit.settings.trees import SMALLEST_TOML, account, tree, valid

HASH = "sha256:" + "0" * 64


def refused(**sections: Any) -> str:
    """The message with which a tree is refused."""
    with pytest.raises(msgspec.ValidationError) as caught:
        valid(**sections)
    return str(caught.value)


def test_settings_need_accounts_and_tenants_alone() -> None:
    """Every other key has a default."""
    settings = valid()
    assert settings == msgspec.convert(tomllib.loads(SMALLEST_TOML), Settings)
    assert settings.server.port == 3000
    assert settings.schedule.interactive_inflight_tokens == 3000
    assert settings.schedule.heavy_inflight_tokens == 7000
    for name in ("accounts", "tenants"):
        assert name in refused(**{name: None})
        assert "at least one" in refused(**{name: []})


def test_settings_defaults_are_valid() -> None:
    """msgspec does not check defaults, so they are checked here: written out and read again."""
    settings = valid()
    assert msgspec.convert(msgspec.to_builtins(settings), Settings) == settings


def test_settings_shipped_with_the_repository_are_valid() -> None:
    """The shipped gateway.toml is valid and has the demo on."""
    shipped = Path(__file__).parents[3] / "gateway.toml"
    settings = msgspec.convert(tomllib.loads(shipped.read_text(encoding="utf-8")), Settings)
    assert settings.demo.enabled


@pytest.mark.parametrize(
    "sections",
    [
        {"servr": {}},
        {"server": {"prot": 1}},
        {"schedule": {"tier_caps": {"tiny": 1}}},
        {"accounts": [account(key="x")]},
    ],
)
def test_settings_refuse_unknown_keys(sections: dict[str, Any]) -> None:
    """A misspelt key must not be silently without effect."""
    assert "unknown field" in refused(**sections)


@pytest.mark.parametrize(
    "name", ["", " a", "a b", "a\n", "\na", "a" * 65, "ä", "-a", ".a", "a/b", "a\r\nx: y"]
)
@pytest.mark.parametrize("section", ["accounts", "tenants"])
def test_names_can_stand_in_a_header(section: str, name: str) -> None:
    """Names go into response headers and metric labels: no blank, no line break, none at the
    end either, which `$` in a pattern would let pass."""
    entry = account(name=name) if section == "accounts" else {"name": name, "anonymous": True}
    assert f"$.{section}[0].name" in refused(**{section: [entry]})


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "7", "a" * 64])
def test_names_may_be_plain(name: str) -> None:
    """The twin: a name that may stand in a header is accepted."""
    assert valid(accounts=[account(name=name)]).accounts[0].name == name


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h.example/v1",
        "ftp://h/v1",
        "http://",
        "http:///v1",
        "http://:80/v1",
        "http://h:99999/v1",
        "http://h:0/v1",
        "http://h:x/v1",
        "http://[::1/v1",
        "http://[::zz]/v1",
        "http://[::1]x/v1",
        "http://1.2.3.999/v1",
        "http://ex ample/v1",
        "http://h/v1 ",
        "http://h/v1\n",
        "http://h/\x01",
        "http://bücher.example/v1",
        "http://user@h/v1",
        "http://user:pass@h/v1",
        "http://@h/v1",
        "http://h/v1?key=1",
        "http://h/v1?",
        "http://h/v1#x",
        "http://h/v1#",
        "http://*/v1",
        "http://h\\evil/v1",
    ],
)
def test_base_url_is_a_plain_address(url: str) -> None:
    """A base URL with credentials, a query or an ambiguous address is refused."""
    assert "base_url: expected" in refused(accounts=[account(base_url=url)])


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:4010/v1",
        "https://api.example.com/v1/",
        "HTTPS://API.EXAMPLE.COM",
        "http://localhost",
        "http://[::1]:8000/v1",
        "https://my_host-1.internal:65535/openai/v1",
        "https://h/a%20b/v1",
    ],
)
def test_base_url_takes_hosts_and_addresses(url: str) -> None:
    """The twin: usual host names and addresses are accepted as they are."""
    assert valid(accounts=[account(base_url=url)]).accounts[0].base_url == url


@pytest.mark.parametrize(
    "reference", ["", "sk-123", "env:", "env:A B", "env:1A", "env:A\n", "file:"]
)
def test_secrets_are_references(reference: str) -> None:
    """A key in the file itself is refused, and is not repeated in the message."""
    for message in (
        refused(accounts=[account(api_key=reference)]),
        refused(admin={"token": reference}),
    ):
        assert "expected env:NAME or file:PATH" in message
        assert "sk-123" not in message


@pytest.mark.parametrize("name", ["", "a b", "m\n", "\tm", "m\x7f", "m" * 201])
@pytest.mark.parametrize("mapped", [False, True])
def test_model_names_have_no_blanks(name: str, mapped: bool) -> None:
    """A client's or provider's model name with a blank is refused."""
    models = {"m": name, "m2": "m2"} if mapped else ["m", "m2", name]
    assert "is not a model name" in refused(accounts=[account(models=models)])


def test_model_map_takes_both_ways_to_write() -> None:
    """A list names models as they are; a table maps the client's name to the upstream's."""
    listed, mapped = valid(
        accounts=[account(), account(name="b", models={"m": "org/up:stream@1"})]
    ).accounts
    assert listed.model_map == {"m": "m", "m2": "m2"}
    assert mapped.model_map == {"m": "org/up:stream@1"}
    for none in ([], {}):
        assert "at least one" in refused(accounts=[account(models=none)])


@pytest.mark.parametrize(
    "key", ["", "sk-1", "sha256:", "sha256:" + "0" * 63, "sha256:" + "A" * 64, HASH + "\n"]
)
def test_tenant_keys_are_hashes(key: str) -> None:
    """A key in the clear is refused, and the message says how to make a hash."""
    assert "sagesched key" in refused(tenants=[{"name": "t", "keys": [key]}])


def test_tenant_needs_a_way_in() -> None:
    """A tenant without keys that is not anonymous could never be used."""
    assert "at least one" in refused(tenants=[{"name": "t"}])


def test_tenant_may_override_the_class() -> None:
    """A tenant's class is one of the three, and no other word."""
    tenant = {"name": "t", "anonymous": True, "job_class": "heavy"}
    assert valid(tenants=[tenant]).tenants[0].job_class is JobClass.HEAVY
    assert "enum" in refused(tenants=[{**tenant, "job_class": "batch"}])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "gateway.example", ""])
def test_anonymous_is_for_loopback_alone(host: str) -> None:
    """An anonymous tenant is refused where the network can reach the gateway."""
    assert "loopback" in refused(server={"host": host})
    keyed = valid(server={"host": host}, tenants=[{"name": "t", "keys": [HASH]}])
    assert keyed.server.host == host


@pytest.mark.parametrize("host", sorted(LOOPBACK))
def test_anonymous_is_fine_on_loopback(host: str) -> None:
    """The twin: on a loopback address an anonymous tenant is accepted."""
    assert valid(server={"host": host}).tenants[0].anonymous


def test_settings_refuse_ambiguous_names_and_keys() -> None:
    """Names stand once, a key belongs to one tenant, at most one tenant is anonymous."""
    keyed = {"name": "t", "keys": [HASH]}
    assert "'a' stands twice" in refused(accounts=[account(), account()])
    assert "'t' stands twice" in refused(tenants=[keyed, {"name": "t", "anonymous": True}])
    assert "two tenants" in refused(tenants=[keyed, {**keyed, "name": "u"}])
    two = [{"name": n, "anonymous": True} for n in "tu"]
    assert "only one may be anonymous" in refused(tenants=two)


def test_tenant_models_exist() -> None:
    """A tenant limited to a model of no account is refused."""
    tenant = {"name": "t", "anonymous": True, "models": ["m2"]}
    assert valid(tenants=[tenant]).tenants[0].models == ["m2"]
    assert "'m3' of no account" in refused(tenants=[{**tenant, "models": ["m2", "m3"]}])


@pytest.mark.parametrize(
    "sections",
    [
        {"server": {"port": 65_536}},
        {"server": {"port": -1}},
        {"server": {"port": True}},
        {"server": {"port": "80"}},
        {"server": {"write_timeout_s": 0}},
        {"server": {"write_timeout_s": float("nan")}},
        {"server": {"write_timeout_s": float("inf")}},
        {"server": {"max_body_bytes": 100}},
        {"schedule": {"defer_above": 5.0, "reject_above": 5.0}},
        {"schedule": {"reserve_quantile": 0.99}},
        {"balance": {"cut_ratio": 1.0}},
        {"retry": {"attempts": 0}},
        {"predict": {"similarity_threshold": 1.5}},
        {"accounts": [account(weight=0)]},
        {"accounts": [account(initial_concurrency=9, max_concurrency=8)]},
        {"accounts": [account(provider="abacus")]},
        {"demo": {"host": "0.0.0.0"}},
    ],
)
def test_values_have_ranges(sections: dict[str, Any]) -> None:
    """A value that would hang, divide by zero or expose something is refused."""
    assert refused(**sections)


def test_tree_helper_is_valid_by_itself() -> None:
    """The tests above change one thing each of a tree that would pass."""
    assert msgspec.convert(tree(), Settings)


def test_private_tenants_are_those_that_do_not_share_their_history() -> None:
    """A tenant shares its history unless share_history is false."""
    tenants = [
        {"name": "open", "keys": ["sha256:" + "0" * 64]},
        {"name": "closed", "keys": ["sha256:" + "1" * 64], "share_history": False},
    ]
    assert valid(tenants=tenants).private_tenants == frozenset({"closed"})
