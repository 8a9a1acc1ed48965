"""From gateway.toml, an admin patch and the environment to one validated `Settings`.

Precedence: environment > admin patch > file (DESIGN.md, pattern 4). Every failure is a
`SettingsError` that names the file, the path in it, and what was expected.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
"""The seed system's environment names and where they land."""

IGNORED_ENVIRONMENT = {
    "PREDICTOR_BASE_URL": "the predictor is part of this process; there is no second service",
}

_PATH = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)


def read_file(path: Path) -> Tree:
    """The file as a tree; SettingsError when it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None


def merge(base: Tree, patch: Mapping[str, Any]) -> Tree:
    """RFC 7396 merge patch: null removes, tables merge, anything else replaces."""
    merged = dict(base)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, dict) else {}, value)
        else:
            merged[key] = value
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


def build(tree: Tree, origin: str) -> Settings:
    """Validate a tree; `origin` is the file's name for messages."""
    try:
        return msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        match = _PATH.match(str(error))
        what = match["what"] if match else str(error)
        path = ((match["path"] if match else None) or "$").removeprefix("$").removeprefix(".")
        if path.endswith("[...]"):
            path = path.removesuffix("[...]")
        where = f"{origin}: {_named(tree, path)}: " if path else f"{origin}: "
        raise SettingsError(f"{where}{_plain(what)}") from None


def load(
    path: Path, environ: Mapping[str, str] = os.environ, patch: Mapping[str, Any] | None = None
) -> Settings:
    """File, then patch, then environment, validated as one."""
    tree = merge(read_file(path), patch or {})
    return build(overlay_environment(tree, environ), str(path))


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


def _plain(what: str) -> str:
    what = what.replace("Object contains unknown field", "unknown key")
    what = what.replace("Object missing required field", "missing key")
    return what[:1].lower() + what[1:]


def merge_patches(first: Mapping[str, Any], second: Mapping[str, Any]) -> Tree:
    """One patch that does what both do in turn: nulls are kept, since they still remove."""
    merged = dict(first)
    for key, value in second.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = merge_patches(below, value)
        else:
            merged[key] = dict(value) if isinstance(value, Mapping) else value
    return merged


def secret(reference: str, where: str, environ: Mapping[str, str] = os.environ) -> str:
    """The secret behind `env:NAME` or `file:PATH`. Raises SettingsError naming `where`."""
    kind, _, rest = reference.partition(":")
    if kind == "env":
        value = environ.get(rest, "")
        missing = f"the environment variable {rest} is not set"
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
