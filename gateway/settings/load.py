"""Loading: from gateway.toml, an admin patch and the environment to one validated `Settings`.

Precedence: environment > admin patch > file. Every failure is a `SettingsError` that names the
file, the path in it, and what was expected.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from gateway.errors import SettingsError
from gateway.settings.schema import Settings

Tree = dict[str, Any]

ENVIRONMENT: dict[str, tuple[str, str, type]] = {
    "PORT": ("server", "port", int),
    "EMBEDDING_MODEL_NAME": ("predict", "embedding_model_name", str),
    "TOP_K_NEIGHBORS": ("predict", "top_k_neighbors", int),
    "SIMILARITY_THRESHOLD": ("predict", "similarity_threshold", float),
    "HISTORY_WINDOW_SIZE": ("predict", "history_window_size", int),
    "INTERACTIVE_INFLIGHT_TOKENS": ("schedule", "interactive_inflight_tokens", int),
    "HEAVY_INFLIGHT_TOKENS": ("schedule", "heavy_inflight_tokens", int),
}
"""The seed system's environment names, each with its section, key and type."""

IGNORED_ENVIRONMENT = {
    "PREDICTOR_BASE_URL": "the predictor is part of this process; there is no second service",
}

RETIRED = {
    "schedule.moderate_above": "a constant, 0.7",
    "schedule.congested_above": "a constant, 1.2",
    "schedule.hysteresis": "a constant, 0.15",
    "schedule.moderate_caps": "a constant, 0.75",
    "schedule.congested_caps": "a constant, 0.5",
    "schedule.drain_longest_first": "deleted, the tail of a burst is ordered like the rest of it",
}
"""Keys of earlier versions, each with its fate. They are accepted and ignored, with a warning,
so that a gateway starts after an upgrade."""

_UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`$", re.DOTALL)
_WORDS = {
    "Object missing required field": "missing key",
    "`object | array`": "a table or an array",
    "`object`": "a table",
    "`array`": "an array",
}
_PATH = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)


def read_file(path: Path) -> Tree:
    """The file as a tree. Raises SettingsError when it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors write a BOM
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{path}: not valid TOML: nested too deeply") from None


class Replacement(dict[str, Any]):
    """A table of a patch that replaces the value in its place instead of merging with it.

    RFC 7396 cannot express it, and without it patches do not compose: first `{"x": null}`, then
    `{"x": {"y": 1}}` leaves only y in x, which no single plain patch does.
    """


def merge(base: Tree, patch: Mapping[str, Any]) -> Tree:
    """RFC 7396 merge patch: null removes, tables merge, anything else replaces."""
    merged = dict(base)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            stays = isinstance(below, dict) and not isinstance(value, Replacement)
            merged[key] = merge(cast(Tree, below) if stays else {}, value)
        else:
            merged[key] = value
    return merged


def merge_patches(first: Mapping[str, Any], second: Mapping[str, Any]) -> Tree:
    """One patch that does what both do in turn: nulls are kept, since they still remove."""
    merged = dict(first)
    for key, value in second.items():
        if key not in first or not isinstance(value, Mapping) or isinstance(value, Replacement):
            merged[key] = value
            continue
        below = first[key]
        if isinstance(below, Mapping) and not isinstance(below, Replacement):
            merged[key] = merge_patches(below, value)
        else:  # the first patch has removed or replaced the table
            merged[key] = Replacement(merge(below if isinstance(below, Replacement) else {}, value))
    return merged


def overlay_environment(tree: Tree, environ: Mapping[str, str]) -> Tree:
    """`tree` with the seed system's environment names laid over it."""
    patch: Tree = {}
    for name, (section, field, kind) in ENVIRONMENT.items():
        text = environ.get(name)
        if text is None or text == "":
            continue
        try:
            patch.setdefault(section, {})[field] = kind(text)
        except ValueError:
            raise SettingsError(
                f"environment {name}: expected {kind.__name__}, got {text[:40]!r}"
            ) from None
    return merge(tree, patch)


def build(tree: Tree, origin: str, origins: Mapping[str, str] | None = None) -> Settings:
    """Validate a tree. Raises SettingsError.

    Args:
        origin: the tree's source, for messages: the file's name.
        origins: sources of single values from elsewhere, by their path.
    """
    try:
        return msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        match = _PATH.match(str(error))
        what = match["what"] if match else str(error)
        path = ((match["path"] if match else None) or "$").removeprefix("$").removeprefix(".")
        path = path.removesuffix("[...]")
        origin = (origins or {}).get(path, origin)
        where = f"{origin}: {_named(tree, path)}: " if path else f"{origin}: "
        raise SettingsError(f"{where}{_plain(what, path)}") from None


class Loaded(msgspec.Struct, frozen=True):
    """Settings, and the retired keys that were found and ignored: each as a sentence."""

    settings: Settings
    ignored: tuple[str, ...]


def load(
    path: Path, environ: Mapping[str, str] = os.environ, patch: Mapping[str, Any] | None = None
) -> Settings:
    """The settings alone, of `read_settings`. Raises SettingsError."""
    return read_settings(path, environ, patch).settings


def read_settings(
    path: Path, environ: Mapping[str, str] = os.environ, patch: Mapping[str, Any] | None = None
) -> Loaded:
    """File, then patch, then environment, validated as one. Raises SettingsError."""
    tree, ignored = without_retired(merge(read_file(path), patch or {}))
    settings = build(
        overlay_environment(tree, environ),
        f"{path} with the admin patch" if patch else str(path),
        {
            f"{section}.{field}": f"environment {name}"
            for name, (section, field, _) in ENVIRONMENT.items()
            if environ.get(name)
        },
    )
    return Loaded(settings, ignored)


def without_retired(tree: Tree) -> tuple[Tree, tuple[str, ...]]:
    """`tree` without its retired keys, and a sentence for each of them."""
    ignored = []
    for name, reason in RETIRED.items():
        section, _, key = name.partition(".")
        table = tree.get(section)
        if isinstance(table, dict) and key in table:
            tree = {**tree, section: {k: v for k, v in table.items() if k != key}}
            ignored.append(f"{name} is retired and ignored: {reason}")
    return tree, tuple(ignored)


def _named(tree: Tree, path: str) -> str:
    """`accounts[1].port` with the entry's own name behind its index, where it has one."""
    match = re.match(r"^(\w+)\[(\d+)\]", path)
    if not match:
        return path
    try:
        name = tree[match[1]][int(match[2])]["name"]
    except (KeyError, IndexError, TypeError):
        return path
    return f"{path} (name = {str(name)[:64]!r})"


def _plain(what: str, path: str) -> str:
    """msgspec's message in an operator's words, with what would have been right."""
    if unknown := _UNKNOWN.match(what):
        if reason := RETIRED.get(f"{path}.{unknown[1]}"):
            return f"unknown key `{unknown[1]}`, retired: {reason}"
        near = difflib.get_close_matches(unknown[1], _keys_at(path), n=1)
        hint = f", did you mean `{near[0]}`?" if near else ""
        return f"unknown key `{unknown[1]}`{hint}"
    if what.startswith("Invalid enum value"):
        what = f"expected one of {', '.join(_choices_at(path))}, got {what.rpartition(' ')[2]}"
    if "matching regex" in what:  # names alone have a pattern in their type
        what = "expected 1 to 64 letters, digits, `.`, `_` or `-`, a letter or digit first"
    for theirs, ours in _WORDS.items():
        what = what.replace(theirs, ours)
    return what[:1].lower() + what[1:]


def _type_at(path: str) -> Any:
    """The schema's type at a path such as `accounts[0].provider`."""
    here: Any = msgspec.inspect.type_info(Settings)
    for step in re.findall(r"\w+|\[\d+\]", path):
        if step.startswith("["):
            here = here.item_type
        else:
            here = next(field.type for field in here.fields if field.encode_name == step)
        if isinstance(here, msgspec.inspect.UnionType):
            here = next(t for t in here.types if not isinstance(t, msgspec.inspect.NoneType))
    return here


def _keys_at(path: str) -> list[str]:
    return [field.encode_name for field in _type_at(path).fields]


def _choices_at(path: str) -> list[str]:
    here = _type_at(path)
    values = here.values if isinstance(here, msgspec.inspect.LiteralType) else list(here.cls)
    return [str(value) for value in values]


def secret(reference: str, where: str, environ: Mapping[str, str] = os.environ) -> str:
    """The secret behind `env:NAME` or `file:PATH`. Raises SettingsError naming `where`."""
    kind, _, rest = reference.partition(":")
    if kind == "env":
        value = environ.get(rest, "")
        missing = f"the environment variable {rest} is not set, or empty"
    else:
        missing = f"the file {rest} is empty"
        try:
            value = Path(rest).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise SettingsError(f"{where}: {rest} cannot be read: {reason}") from None
    value = value.strip()
    if not value:
        raise SettingsError(f"{where}: {missing}")
    if not value.isascii() or not value.isprintable():
        raise SettingsError(f"{where}: expected printable ASCII without line breaks")
    return value


class Secrets(msgspec.Struct, frozen=True):
    """Every secret the settings point to, resolved."""

    accounts: dict[str, str]  # by the account's name
    admin: str

    def values(self) -> list[str]:
        """Every secret, for the log's redaction."""
        return [*self.accounts.values(), self.admin]

    def __repr__(self) -> str:
        return "Secrets(…)"


def secrets(settings: Settings, environ: Mapping[str, str] = os.environ) -> Secrets:
    """Resolve the accounts' keys and the admin token. Raises SettingsError naming the first
    that does not resolve."""
    return Secrets(
        {
            a.name: secret(a.api_key, f"accounts ({a.name}).api_key", environ)
            for a in settings.accounts
        },
        secret(settings.admin.token, "admin.token", environ),
    )
