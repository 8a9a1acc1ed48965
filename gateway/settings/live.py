"""The settings in force: read, validate, let every part build what may fail, swap, tell.

A change (SIGHUP, an admin patch) is applied whole or not at all. Parts that can refuse
(secrets that do not resolve, say) build in `prepare`, before anything changes; what they
return is applied in one go afterwards, which must not fail.
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
Prepare = Callable[[Settings], Apply]
"""Builds what can fail for new settings (raises SettingsError) and returns the swap."""

RESTART_ONLY = (
    ("server", "host"),
    ("server", "port"),
    ("store", "path"),
    ("server", "keepalive_s"),
    ("predict", "embedding_model_name"),
    ("predict", "models_path"),
    *(("demo", field) for field in Demo.__struct_fields__),
)
"""What a reload accepts but only a restart puts in force."""


class ReloadState(Struct, frozen=True):
    generation: int
    ok: bool
    success_wall_s: float  # the last change that succeeded, the start included
    error: str = ""


class LiveSettings:
    """Holds the current `Settings`. Used on the loop's thread only."""

    def __init__(
        self, path: Path, environ: Mapping[str, str] = os.environ, settings: Settings | None = None
    ) -> None:
        self.path = path
        self._environ = environ
        self._patch: dict[str, Any] = {}
        self.current = settings if settings is not None else load.load(path, environ)
        self.state = ReloadState(1, True, time.time())
        self._prepares: list[Prepare] = []

    def on_change(self, prepare: Prepare) -> None:
        self._prepares.append(prepare)

    def reload(self) -> list[str]:
        """Read the file again. Returns the keys that need a restart; raises SettingsError."""
        return self._change(self._patch)

    def patch(self, patch: Mapping[str, Any]) -> list[str]:
        """Lay a merge patch (RFC 7396) over the file, on top of earlier ones."""
        return self._change(load.merge_patches(self._patch, patch))

    def _change(self, patch: dict[str, Any]) -> list[str]:
        try:
            settings = load.load(self.path, self._environ, patch)
            applies = [prepare(settings) for prepare in self._prepares]
        except Exception as error:  # of a fault of ours, too: nothing has changed yet
            said = error.message if isinstance(error, SettingsError) else type(error).__name__
            self.state = msgspec.structs.replace(self.state, ok=False, error=said)
            raise
        before, self.current, self._patch = self.current, settings, patch
        for apply in applies:
            apply()
        self.state = ReloadState(self.state.generation + 1, True, time.time())
        return [
            f"{section}.{key}"
            for section, key in RESTART_ONLY
            if getattr(getattr(before, section), key) != getattr(getattr(settings, section), key)
        ]

    def pinned(self, patch: Mapping[str, Any]) -> list[str]:
        """Keys of `patch` that the environment overrides, as `section.key (NAME)`."""
        return [
            f"{section}.{key} ({name})"
            for name, (section, key, _) in load.ENVIRONMENT.items()
            if self._environ.get(name)
            and isinstance(patch.get(section), Mapping)
            and key in patch[section]
        ]
