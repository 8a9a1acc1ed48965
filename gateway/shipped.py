"""Paths of shipped data, and the command that runs this program again: from a source tree, a
wheel or a frozen binary."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def shipped(name: str) -> Path:
    """Path of a shipped folder or file such as `models` or `config/prices.toml`.

    Looks in the frozen binary's unpacked folder, then beside the package (source tree),
    then under `sys.prefix/share/sagesched` (wheel). The first that exists wins; when none
    does, the source-tree path is returned so that the caller's error names a place.
    """
    roots = []
    frozen = getattr(sys, "_MEIPASS", None)
    if frozen:
        roots.append(Path(frozen))
    source = Path(__file__).resolve().parent.parent
    roots += [source, Path(sys.prefix) / "share" / "sagesched"]
    for root in roots:
        if (root / name).exists():
            return root / name
    return source / name


def own_command(*arguments: str) -> list[str]:
    """Command that starts this program anew, for a child process."""
    frozen = getattr(sys, "frozen", False)
    return [sys.executable, *([] if frozen else ["-m", "gateway"]), *arguments]


def own_environ(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment with which a child finds the package where this process found it."""
    paths = [str(Path(__file__).resolve().parent.parent), environ.get("PYTHONPATH", "")]
    return {**environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
