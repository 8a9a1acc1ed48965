"""Writes models/manifest.toml: what each artefact is, where from, and its sha256."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
HEAD = """# What lies in this folder. Every file named here is checked by sha256 when the gateway
# starts; written by the build scripts beside it (`make models`), not by hand.
"""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record(
    table: str,
    file: str,
    *,
    origin: str,
    licence: str,
    command: str,
    folder: Path = FOLDER,
    **figures: object,
) -> None:
    """Put or replace one artefact's table in the manifest.

    Figures belong to bytes: while the file is the same, those not measured this time stay.
    """
    path = folder / "manifest.toml"
    tables = tomllib.loads(path.read_text()) if path.exists() else {}
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
    path.write_text(HEAD + "".join(_table(key, tables[key]) for key in sorted(tables)))


def _table(name: str, values: dict[str, object]) -> str:
    # A JSON scalar or list of scalars is a TOML one too; nothing else is stored.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return f"\n[{name}]\n" + "\n".join(lines) + "\n"
