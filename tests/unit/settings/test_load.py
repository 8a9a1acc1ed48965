"""Loading settings from file, patch and environment, and the message of each failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.errors import SettingsError
from gateway.settings.load import (
    ENVIRONMENT,
    RETIRED,
    Replacement,
    build,
    load,
    merge,
    merge_patches,
    overlay_environment,
    read_file,
    read_settings,
    secret,
    secrets,
)
from tests.unit.settings.trees import SMALLEST_TOML, account, tree, valid


def message_of(**sections: Any) -> str:
    """Message for a tree that is not valid."""
    with pytest.raises(SettingsError) as caught:
        build(tree(**sections), "gateway.toml")
    return caught.value.message


# -- the file ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[server\nport = 1", "not valid TOML"),
        (b"port = \n", "line 1"),
        (b"\xff\xfe", "not valid TOML"),
        (b"a = " + b"[" * 100_000, "not valid TOML"),
    ],
)
def test_read_file_names_the_file_that_is_no_toml(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    """The message names the file and the place in it."""
    path = tmp_path / "gateway.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read_file(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert expected in caught.value.message


def test_read_file_names_the_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file or a folder gives the system's own reason."""
    for path, reason in ((tmp_path / "no.toml", "No such file"), (tmp_path, "directory")):
        with pytest.raises(SettingsError) as caught:
            read_file(path)
        assert caught.value.message.startswith(f"{path}: cannot be read: ")
        assert reason in caught.value.message


def test_read_file_takes_a_byte_order_mark(tmp_path: Path) -> None:
    """A byte order mark, which some editors write, is no part of the first key."""
    path = tmp_path / "gateway.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALLEST_TOML.encode())
    assert read_file(path) == tree()


# -- validation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"server": {"port": "x"}}, "server.port: expected `int`, got `str`"),
        ({"server": {"port": 70_000}}, "server.port: expected `int` <= 65535"),
        ({"server": {"prot": 1}}, "server: unknown key `prot`, did you mean `port`?"),
        ({"servr": {}}, "unknown key `servr`, did you mean `server`?"),
        ({"zzz": {}}, "unknown key `zzz`"),
        ({"server": 5}, "server: expected a table, got `int`"),
        ({"accounts": {}}, "accounts: expected an array, got a table"),
        ({"accounts": None}, "missing key `accounts`"),
        ({"accounts": []}, "accounts: expected at least one"),
        ({"accounts": ["x"]}, "accounts[0]: expected a table, got `str`"),
        (
            {"accounts": [account(), {"name": "b"}]},
            "accounts[1] (name = 'b'): missing key `base_url`",
        ),
        (
            {"accounts": [account(provider="azur")]},
            "accounts[0].provider (name = 'a'): "
            "expected one of openai, openai-compatible, got 'azur'",
        ),
        (
            {"tenants": [{"name": "t", "anonymous": True, "job_class": "x"}]},
            "tenants[0].job_class (name = 't'): expected one of interactive, heavy, background, "
            "got 'x'",
        ),
        ({"observe": {"log_level": 7}}, "observe.log_level: expected `str`, got `int`"),
        (
            {"accounts": [account(models="m")]},
            "accounts[0].models (name = 'a'): expected a table or an array, got `str`",
        ),
        (
            {"accounts": [account(models=["m", 5])]},
            "accounts[0].models[1] (name = 'a'): expected `str`, got `int`",
        ),
        (
            {"accounts": [account(models={"m": 5})]},
            "accounts[0].models (name = 'a'): expected `str`, got `int`",
        ),
        (
            {"accounts": [account(name="a b")]},
            "accounts[0].name (name = 'a b'): "
            "expected 1 to 64 letters, digits, `.`, `_` or `-`, a letter or digit first",
        ),
        (
            {"accounts": [account(base_url="ftp://h")]},
            "accounts[0] (name = 'a'): base_url: expected http://… or https://…",
        ),
        (
            {"schedule": {"tier_caps": {"short": -1}}},
            "schedule.tier_caps.short: expected `int` >= 0",
        ),
        (
            {"schedule": {"tier_caps": {"shrt": 1}}},
            "schedule.tier_caps: unknown key `shrt`, did you mean `short`?",
        ),
        (
            {"admin": {"token": "abc"}},
            "admin: token: expected env:NAME or file:PATH, not the token itself",
        ),
    ],
)
def test_build_names_file_path_and_what_was_expected(
    sections: dict[str, Any], message: str
) -> None:
    """The message names file, path and expectation, so that one reading is enough."""
    assert message_of(**sections) == f"gateway.toml: {message}"


def test_build_bounds_the_names_it_repeats() -> None:
    """A name of a megabyte does not become a log line of a megabyte."""
    assert len(message_of(accounts=[account(name="x" * 2**20)])) < 300


# -- environment -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PORT", "8080", 8080),
        ("EMBEDDING_MODEL_NAME", "other", "other"),
        ("TOP_K_NEIGHBORS", "9", 9),
        ("SIMILARITY_THRESHOLD", "0.5", 0.5),
        ("HISTORY_WINDOW_SIZE", "77", 77),
        ("INTERACTIVE_INFLIGHT_TOKENS", "100", 100),
        ("HEAVY_INFLIGHT_TOKENS", "200", 200),
    ],
)
def test_environment_lies_over_the_file(
    tmp_path: Path, name: str, text: str, value: int | float | str
) -> None:
    """The seed system's names work, and win over file and patch."""
    section, field, _ = ENVIRONMENT[name]
    other = {"port": 1, "embedding_model_name": "x"}.get(field, 1)
    path = tmp_path / "gateway.toml"
    path.write_text(SMALLEST_TOML)
    settings = load(path, {name: text}, {section: {field: other}})
    assert getattr(getattr(settings, section), field) == value
    assert getattr(getattr(load(path, {}, {section: {field: other}}), section), field) == other


def test_environment_names_are_all_tested() -> None:
    """Every name of the environment is covered by the test above."""
    assert len(ENVIRONMENT) == 7


def test_environment_ignores_what_is_empty_or_foreign() -> None:
    """`PORT=` in a compose file means unset."""
    assert overlay_environment(tree(), {"PORT": "", "PATH": "/bin", "port": "1"}) == tree()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("PORT", "many", "environment PORT: expected int, got 'many'"),
        ("PORT", "99999", "environment PORT: server.port: expected `int` <= 65535"),
        ("SIMILARITY_THRESHOLD", "x", "environment SIMILARITY_THRESHOLD: expected float"),
        ("SIMILARITY_THRESHOLD", "nan", "environment SIMILARITY_THRESHOLD: predict.similarity"),
        ("TOP_K_NEIGHBORS", "0", "environment TOP_K_NEIGHBORS: predict.top_k_neighbors: "),
    ],
)
def test_environment_names_itself_when_it_is_wrong(
    tmp_path: Path, name: str, text: str, expected: str
) -> None:
    """The message of a wrong value names the environment, not the file."""
    path = tmp_path / "gateway.toml"
    path.write_text(SMALLEST_TOML)
    with pytest.raises(SettingsError) as caught:
        load(path, {name: text})
    assert caught.value.message.startswith(expected)


def test_load_names_the_admin_patch(tmp_path: Path) -> None:
    """The message says that an admin patch lies over the file."""
    path = tmp_path / "gateway.toml"
    path.write_text(SMALLEST_TOML)
    with pytest.raises(SettingsError) as caught:
        load(path, {}, {"retry": {"attempts": 0}})
    assert caught.value.message.startswith(f"{path} with the admin patch: retry.attempts: ")


# -- merge patches -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({"a": "foo"}, {"a": {"b": None, "c": 1}}, {"a": {"c": 1}}),
    ],
)
def test_merge_is_rfc_7396(base: Any, patch: Any, result: Any) -> None:
    """The cases of RFC 7396's appendix A that end in objects hold."""
    assert merge(base, patch) == result


def test_merge_changes_neither_of_its_arguments() -> None:
    """A patch that is refused later must not have left traces."""
    base, patch = {"a": {"b": 1}}, {"a": {"c": {"d": 2}}}
    merged = merge(base, patch)
    merged["a"]["c"]["d"] = merged["a"]["b"] = 9
    assert (base, patch) == ({"a": {"b": 1}}, {"a": {"c": {"d": 2}}})


def test_merge_patches_remembers_that_something_is_gone() -> None:
    """A table that was removed and set anew holds the new keys alone."""
    both = merge_patches({"demo": None}, {"demo": {"port": 1}})
    assert merge({"demo": {"port": 4, "seed": 5}}, both) == {"demo": {"port": 1}}
    assert isinstance(both["demo"], Replacement)


def test_merge_patches_keeps_nulls() -> None:
    """Nulls stay in a joined patch, since they still remove keys of the file."""
    assert merge_patches({"a": {"b": 1}}, {"a": {"b": None}}) == {"a": {"b": None}}


# -- retired keys ------------------------------------------------------------------------------


def test_settings_with_retired_keys_load_without_them(tmp_path: Path) -> None:
    """A file of an earlier version, or a patch, starts a gateway; each such key is named."""
    path = tmp_path / "gateway.toml"
    path.write_text(SMALLEST_TOML + "[schedule]\nhysteresis = 0.2\nmax_wait_s = 5\n")
    loaded = read_settings(path, {}, {"schedule": {"moderate_caps": "any"}})
    assert loaded.settings == valid(schedule={"max_wait_s": 5})
    assert loaded.ignored == (
        "schedule.hysteresis is retired and ignored: a constant, 0.15",
        "schedule.moderate_caps is retired and ignored: a constant, 0.75",
    )
    assert read_settings(path, {}, {"schedule": None}).ignored == ()


@pytest.mark.parametrize("name", RETIRED)
def test_retired_key_is_none_of_the_schema(name: str) -> None:
    """A retired key is unknown to the schema, and its message gives the reason."""
    section, key = name.split(".")
    assert key not in getattr(valid(), section).__struct_fields__
    assert f"unknown key `{key}`, retired: " in message_of(**{section: {key: 1}})


# -- secrets -----------------------------------------------------------------------------------


def test_secret_comes_from_environment_or_file(tmp_path: Path) -> None:
    """Blanks and the line break at the end are no part of a secret."""
    path = tmp_path / "key"
    path.write_text("  sk-file\n")
    assert secret("env:KEY", "x", {"KEY": " sk-env\n"}) == "sk-env"
    assert secret(f"file:{path}", "x", {}) == "sk-file"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", "the environment variable KEY is not set"),
        (" \n", "the environment variable KEY is not set"),
        ("sk-a\nsk-b", "without line breaks"),
        ("sk-ü", "printable ASCII"),
        ("sk-\x00", "printable ASCII"),
        ("sk-\x7f", "printable ASCII"),
    ],
)
def test_secret_can_stand_in_a_header(value: str, expected: str) -> None:
    """A secret that cannot is refused at the start, by its place and never by its value."""
    with pytest.raises(SettingsError) as caught:
        secret("env:KEY", "accounts (a).api_key", {"KEY": value})
    assert caught.value.message.startswith("accounts (a).api_key: ")
    assert expected in caught.value.message
    assert "sk-" not in caught.value.message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe", "cannot be read: not text"),
        (b"sk-a\nsk-b\n", "without line breaks"),
    ],
)
def test_secret_file_that_is_unusable_is_named(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    """The message names the place in the settings, the file, and its fault."""
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        secret(f"file:{path}", "admin.token", {})
    assert caught.value.message.startswith("admin.token: ")
    assert expected in caught.value.message
    assert "sk-" not in caught.value.message


def test_secret_of_a_missing_variable_is_named() -> None:
    """The message names the variable that is not set."""
    with pytest.raises(SettingsError, match="environment variable KEY is not set"):
        secret("env:KEY", "x", {"OTHER": "1"})


def test_secrets_are_every_key_and_the_admin_token(tmp_path: Path) -> None:
    """Each account's key stands under its name; none shows in a debugger or a log."""
    path = tmp_path / "key"
    path.write_text("sk-file\n")
    settings = valid(
        accounts=[account(name="a"), account(name="b", api_key=f"file:{path}")],
        admin={"token": "env:ADMIN"},
    )
    found = secrets(settings, {"KEY": "sk-env", "ADMIN": "token"})
    assert found.accounts == {"a": "sk-env", "b": "sk-file"}
    assert found.values() == ["sk-env", "sk-file", "token"]
    assert "sk-" not in repr(found)


def test_secrets_that_do_not_resolve_are_named_by_account() -> None:
    """The message names the account, so that its entry is found."""
    with pytest.raises(SettingsError, match=r"accounts \(a\)\.api_key: the environment variable"):
        secrets(valid(), {})
