"""The findings of mutants.py as a report: shares with their intervals, and every survivor."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

from gateway.workbench.tables import table

ROOMS = ("schedule", "balance")
Z = 1.96  # of a 95 % interval

HEAD = (
    "file", "mutants", "sampled", "killed", "by time-out", "equivalent", "gaps",
    "killed of all", "killed of those that differ",
)  # fmt: skip


@dataclass(frozen=True)
class Survivor:
    """A mutant that no test noticed, and why nobody could; "" where somebody could: a gap."""

    file: str
    where: str
    old: str
    new: str
    why: str = ""


@dataclass(frozen=True)
class File:
    """One source file: how many mutants it has, were sampled, ended by time-out, and lived."""

    name: str
    mutants: int
    sampled: int
    timeouts: int = 0
    alive: list[Survivor] = field(default_factory=list)

    @property
    def room(self) -> str:
        return self.name.partition("/")[0]

    @property
    def gaps(self) -> int:
        return sum(not survivor.why for survivor in self.alive)


Key = tuple[str, str, str, str]


def judgements(path: Path) -> dict[Key, str]:
    """File, function, old and new lines → why nobody could notice."""
    given = tomllib.loads(path.read_text()).get("mutant", []) if path.exists() else []
    return {(m["file"], m["where"], m["old"].strip(), m["new"].strip()): m["why"] for m in given}


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if not of:
        return 0.0, 1.0
    share, z2 = hits / of, Z * Z
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = Z * sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return middle - half, middle + half


def report(files: Sequence[File]) -> str:
    """Markdown. Files without mutants are left out."""
    files = [file for file in files if file.sampled]
    rows = []
    for room in ROOMS:
        mine = [file for file in files if file.room == room]
        rows += [_row(file.name, [file]) for file in mine]
        rows += [_row(f"**{room}**", mine)] if mine else []
    parts = [table(HEAD, rows), _weighted(files)]
    alive = [survivor for file in files for survivor in file.alive]
    for title, chosen in (
        ("Gaps", [s for s in alive if not s.why]),
        ("Equivalent", [s for s in alive if s.why]),
    ):
        parts.append(f"## {title}\n\n" + ("\n".join(map(_listed, chosen)) or "None."))
    return "\n\n".join(parts)


def _row(name: str, files: Sequence[File]) -> list[str]:
    total = sum(file.sampled for file in files)
    alive, gaps = sum(len(file.alive) for file in files), sum(file.gaps for file in files)
    killed, equal = total - alive, alive - gaps
    timeouts = sum(file.timeouts for file in files)
    counts = (sum(file.mutants for file in files), total, killed, timeouts, equal, gaps)
    return [name, *map(str, counts), _percent(killed, total), _percent(killed, total - equal)]


def _percent(hits: int, of: int) -> str:
    if not of:
        return "–"
    low, high = wilson(hits, of)
    return f"{hits / of:.1%} ({low:.0%} to {high:.0%})"


def _weighted(files: Sequence[File]) -> str:
    """The files' shares by how many mutants each has: samples are alike, files are not."""
    told: Mapping[str, list[File]] = {r: [f for f in files if f.room == r] for r in ROOMS}
    shares = ", ".join(
        f"{room} {sum(f.mutants * (1 - len(f.alive) / f.sampled) for f in mine) / total:.1%}"
        for room, mine in told.items()
        if (total := sum(f.mutants for f in mine))
    )
    return f"Killed of all, each file weighted by how many mutants it has: {shares}."


def _listed(survivor: Survivor) -> str:
    old, new = (text.replace("\n", " ⏎ ") for text in (survivor.old, survivor.new))
    why = f"  \n  {survivor.why}" if survivor.why else ""
    return f"- `{survivor.file}` {survivor.where}: `{old}` → `{new}`{why}"
