"""The settings in force, and changing them: read, validate, prepare every part, swap, apply.

A change (SIGHUP, an admin patch) is applied whole or not at all. A part that can refuse
(a secret does not resolve, say) does so in its `prepare`, before anything changes; the
functions the parts return are called afterwards, and must not fail.

Settings equal to those in force are no change: no part is touched and the generation stays.
What the settings only point to, the secrets, may have changed all the same; a part that finds
that out in `prepare` asks for the change by returning a function.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gateway.errors import SettingsError
from gateway.settings import load
from gateway.settings.schema import Demo, Settings

Apply = Callable[[], None]
Prepare = Callable[[Settings], Apply | None]
"""Builds what can fail for new settings (raises SettingsError) and returns the function that
puts it in force; None where the part stays as it is."""

RESTART_ONLY = (
    ("server", "host"),
    ("server", "port"),
    ("store", "path"),
    ("predict", "embedding_model_name"),
    ("predict", "models_path"),
    *(("demo", field) for field in Demo.__struct_fields__),
)
"""Keys that a reload accepts but only a restart puts in force."""


class ReloadState(Struct, frozen=True):
    """Generation of the settings in force, and the result of the last reload."""

    generation: int
    ok: bool
    success_wall_s: float  # of the last reload that succeeded, the start included
    error: str = ""


class ReloadResult(Struct, frozen=True):
    """Result of a reload or patch that was accepted."""

    changed: bool  # False: the settings equal those in force, nothing was touched
    needs_restart: list[str] = []  # changed keys that only a restart puts in force
    ignored: tuple[str, ...] = ()  # retired keys, each as a sentence


class LiveSettings:
    """The current `Settings` and the admin patches over the file. For the loop's thread only."""

    def __init__(
        self, path: Path, environ: Mapping[str, str] = os.environ, settings: Settings | None = None
    ) -> None:
        self.path = path
        self._environ = environ
        self._patch: dict[str, Any] = {}
        self.current = settings if settings is not None else load.load(path, environ)
        self.state = ReloadState(1, True, time.time())
        self._prepares: list[Prepare] = []

    def __repr__(self) -> str:
        return f"LiveSettings({str(self.path)!r}, generation {self.state.generation})"

    def on_change(self, prepare: Prepare) -> None:
        """Add a part that takes new settings."""
        self._prepares.append(prepare)

    def reload(self) -> ReloadResult:
        """Read the file again. Raises SettingsError."""
        return self._change(self._patch)

    def patch(self, patch: Mapping[str, Any]) -> ReloadResult:
        """Lay a merge patch (RFC 7396) over the file and earlier patches. Raises SettingsError."""
        return self._change(load.merge_patches(self._patch, patch))

    def _change(self, patch: dict[str, Any]) -> ReloadResult:
        try:
            loaded = load.read_settings(self.path, self._environ, patch)
            settings = loaded.settings
            applies = [apply for prepare in self._prepares if (apply := prepare(settings))]
        except Exception as error:  # of a fault of ours, too: nothing has changed yet
            text = error.message if isinstance(error, SettingsError) else type(error).__name__
            self.state = msgspec.structs.replace(self.state, ok=False, error=text)
            raise
        self._patch = patch  # kept though it changes nothing: the file below it may change
        before, changed = self.current, settings != self.current or bool(applies)
        if changed:
            self.current = settings
            for apply in applies:
                apply()
        self.state = ReloadState(self.state.generation + changed, True, time.time())
        return ReloadResult(changed, _restart_keys(before, settings), loaded.ignored)

    def pinned(self, patch: Mapping[str, Any]) -> list[str]:
        """Keys of `patch` that the environment overrides, as `section.key (NAME)`."""
        return [
            f"{section}.{key} ({name})"
            for name, (section, key, _) in load.ENVIRONMENT.items()
            if self._environ.get(name)
            and isinstance(patch.get(section), Mapping)
            and key in patch[section]
        ]


def _restart_keys(before: Settings, after: Settings) -> list[str]:
    return [
        f"{section}.{key}"
        for section, key in RESTART_ONLY
        if getattr(getattr(before, section), key) != getattr(getattr(after, section), key)
    ]
