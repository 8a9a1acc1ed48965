"""Writes models/manifest.toml: what each artefact is, where from, and its sha256."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from gateway.predict import manifest  # noqa: E402

HEAD = """# What lies in this folder. Every file named here is checked by sha256 when the gateway
# starts; written by the build scripts beside it (`make models`), not by hand.
"""


def record(table: str, file: str, *, folder: Path = FOLDER, **about: Any) -> None:
    """Put or replace one artefact's table."""
    manifest.record(folder, table, file, head=HEAD, **about)
