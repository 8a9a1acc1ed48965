"""A folder of artefacts and its manifest.toml: each file with its origin, licence and sha256.

Written by models/*.py and `sagesched models export`. A file whose hash is not the manifest's is not
loaded.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.toml"
HEAD = """# What lies in this folder. Every file named here is checked by sha256 when the gateway
# starts; written by whatever made the files, not by hand.
"""


class ArtefactError(Exception):
    """An artefact is missing, altered or of another format."""


class ArtefactFolder:
    """A folder and its manifest. Raises ArtefactError when the manifest is unusable."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._manifest = tomllib.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except OSError as error:
            raise ArtefactError(f"manifest.toml cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ArtefactError(f"manifest.toml is not valid: {error}") from None

    def about(self, name: str) -> Mapping[str, Any]:
        """The manifest's table of an artefact. Raises ArtefactError where it has none."""
        table = self._manifest.get(name)
        if not isinstance(table, dict) or "file" not in table or "sha256" not in table:
            raise ArtefactError(f"manifest.toml does not describe {name!r}")
        return table

    def has(self, name: str) -> bool:
        """True where the manifest names the artefact."""
        return name in self._manifest

    def path(self, name: str) -> Path:
        """The file of an artefact, its hash checked. Raises ArtefactError."""
        table = self.about(name)
        path = self._folder / str(table["file"])
        try:
            found = sha256(path)
        except OSError as error:
            raise ArtefactError(f"{path.name} cannot be read: {error.strerror}") from None
        if found != table["sha256"]:
            raise ArtefactError(f"{path.name}: the sha256 is not the manifest's")
        return path


def sha256(path: Path) -> str:
    """The sha256 of a file in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record(
    folder: Path,
    table: str,
    file: str,
    *,
    origin: str,
    licence: str,
    command: str,
    head: str = HEAD,
    **figures: Any,
) -> None:
    """Write or replace one artefact's table in a folder's manifest.

    Figures belong to the bytes: while the file is the same, figures not given this time stay.
    """
    path = folder / MANIFEST
    tables = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    before, digest = tables.get(table, {}), sha256(folder / file)
    tables[table] = {
        **(before if before.get("sha256") == digest else {}),
        "file": file,
        "sha256": digest,
        "origin": origin,
        "licence": licence,
        "command": command,
        **figures,
    }
    text = head + "".join(_table(key, tables[key]) for key in sorted(tables))
    path.write_text(text, encoding="utf-8")


def _table(name: str, values: dict[str, object]) -> str:
    # A JSON scalar or list of scalars is TOML too; nothing else is stored.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return f"\n[{name}]\n" + "\n".join(lines) + "\n"
