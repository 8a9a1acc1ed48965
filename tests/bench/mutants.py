"""How many faults, put into the pure rooms one at a time, their tests notice.

    make mutants                                    # or, in the environment it makes:
    .venv-mutants/bin/python -m tests.bench.mutants [--sample 40] [--seed 0] [--out FILE]
        [--only balance/limit schedule/pace] [--survivors]

mutmut makes the mutants (`a < b` to `a <= b`, an argument to None, `and` to `or` …), learns which
test calls which function, and runs those tests in a forked process for each. All of them would
take hours, so a seeded sample of each file is run, and the share comes with its interval. A
verdict is kept in `mutants/` until its function changes: `--survivors` asks those that lived
again, after tests were added; remove the folder to begin anew.

mutmut leaves out what stands outside of functions (constants, fields) and decorated functions
(properties). Time-outs count as killed: a loop that no longer ends is noticed. Mutants that
change nothing one could see are told one by one in `mutants_judged.toml`, with the reason;
the share is given with them and without.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from random import Random

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import get_mutant_name

from tests.bench.tables import table

ROOMS = ("schedule", "balance")
JUDGED = Path(__file__).with_name("mutants_judged.toml")
Z = 1.96  # of a 95 % interval


@dataclass
class File:
    """One source file: how many mutants it has, those sampled, and what became of them."""

    path: Path
    count: int
    names: list[str]
    status: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.stem}"

    def load(self) -> None:
        data = SourceFileMutationData(path=self.path)
        data.load()
        codes = data.exit_code_by_key
        self.status = {name: status_by_exit_code[codes.get(name)] for name in self.names}

    def having(self, *states: str) -> list[str]:
        return [name for name in self.names if self.status.get(name) in states]


def sampled(path: Path, size: int, seed: int) -> File:
    """A file's mutants, and `size` of them, the same ones for the same source and seed."""
    found = mutate_file_contents(str(path), path.read_text()).mutant_names
    names = sorted(get_mutant_name(path, name) for name in found)
    chosen = Random(f"{seed} {path}").sample(names, min(size, len(names)))
    return File(path, len(names), sorted(chosen))


def run(file: File, names: Sequence[str]) -> None:
    """mutmut on these mutants; what it prints is shown only where it fails."""
    mutmut = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", "1"]
    done = subprocess.run([*mutmut, *names], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{file.name}: mutmut failed\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
        )


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if not of:
        return 0.0, 1.0
    share, z2 = hits / of, Z * Z
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = Z * sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return middle - half, middle + half


@dataclass(frozen=True)
class Survivor:
    """A mutant that no test noticed, and the judgement on it, if there is one."""

    file: str
    where: str
    old: str
    new: str
    verdict: str = ""
    why: str = ""

    @property
    def equivalent(self) -> bool:
        return self.verdict == "equivalent"


def survivors(file: File, judged: dict[tuple[str, ...], dict[str, str]]) -> Iterator[Survivor]:
    for name in file.having("survived", "no tests"):
        lines = get_diff_for_mutant(name, path=file.path).splitlines()[3:]
        old = "\n".join(line[1:].strip() for line in lines if line.startswith("-"))
        new = "\n".join(line[1:].strip() for line in lines if line.startswith("+"))
        where = name.rpartition("__mutmut_")[0].rpartition(".")[2]
        where = where.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
        found = judged.get((file.name, where, old, new), {})
        yield Survivor(
            file.name, where, old, new, found.get("verdict", ""), found.get("why", "").strip()
        )


def judgements() -> dict[tuple[str, ...], dict[str, str]]:
    given = tomllib.loads(JUDGED.read_text()).get("mutant", []) if JUDGED.exists() else []
    return {(m["file"], m["where"], m["old"].strip(), m["new"].strip()): m for m in given}


def percent(hits: int, of: int) -> str:
    if not of:
        return "–"
    low, high = wilson(hits, of)
    return f"{hits / of:.1%} ({low:.0%} to {high:.0%})"


def row(name: str, files: Sequence[File], alive: Sequence[Survivor]) -> list[str]:
    total = sum(len(f.names) for f in files)
    timeouts = sum(len(f.having("timeout")) for f in files)
    killed = total - len(alive)
    equal = sum(s.equivalent for s in alive)
    counts = (sum(f.count for f in files), total, killed, timeouts, equal, len(alive) - equal)
    return [name, *map(str, counts), percent(killed, total), percent(killed, total - equal)]


HEAD = (
    "file", "mutants", "sampled", "killed", "by time-out", "equivalent", "gaps",
    "killed of all", "killed of those that differ",
)  # fmt: skip


def report(files: Sequence[File]) -> str:
    judged = judgements()
    alive = {file.name: list(survivors(file, judged)) for file in files}
    rows = []
    for room in ROOMS:
        of_room = [file for file in files if file.path.parent.name == room and file.count]
        rows += [row(file.name, [file], alive[file.name]) for file in of_room]
        rows.append(row(f"**{room}**", of_room, [s for f in of_room for s in alive[f.name]]))
    everything = [s for found in alive.values() for s in found]
    parts = [table(HEAD, rows), weighted(files, alive)]
    for title, chosen in (
        ("Gaps", [s for s in everything if not s.equivalent]),
        ("Equivalent", [s for s in everything if s.equivalent]),
    ):
        parts.append(f"## {title}\n\n" + ("\n".join(map(listed, chosen)) or "None."))
    return "\n\n".join(parts)


def weighted(files: Iterable[File], alive: dict[str, list[Survivor]]) -> str:
    """The files' shares by how many mutants each has: samples are alike, files are not."""
    told = []
    for room in ROOMS:
        of_room = [file for file in files if file.path.parent.name == room and file.names]
        shares = [
            (file.count, 1.0 - sum(not s.equivalent for s in alive[file.name]) / len(file.names))
            for file in of_room
        ]
        if shares:
            total = sum(count for count, _ in shares)
            told.append(f"{room} {sum(n * share for n, share in shares) / total:.1%}")
    return "Weighted by mutants per file, equivalent ones not counted as alive: " + ", ".join(told)


def listed(survivor: Survivor) -> str:
    old, new = (text.replace("\n", " ⏎ ") for text in (survivor.old, survivor.new))
    why = f"  \n  {survivor.why}" if survivor.why else ""
    return f"- `{survivor.file}` {survivor.where}: `{old}` → `{new}`{why}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=int, default=40, help="mutants of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="ROOM/FILE")
    parser.add_argument("--survivors", action="store_true", help="ask again those that lived")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    paths = [path for room in ROOMS for path in sorted(Path("gateway", room).glob("*.py"))]
    files = [sampled(path, args.sample, args.seed) for path in paths]
    files = [file for file in files if not args.only or file.name in args.only]
    for file in files:
        file.load()
        states = ("not checked", "survived", "no tests", "check was interrupted by user")
        ask = file.having(*states[: None if args.survivors else 1])
        if ask:
            run(file, ask)
            file.load()
        alive = len(file.having("survived", "no tests"))
        print(f"{file.name}: {len(file.names) - alive} of {len(file.names)}", flush=True)
    text = report(files)
    if args.out:
        command = " ".join(["python -m tests.bench.mutants", *sys.argv[1:]])
        args.out.write_text(f"# Mutants\n\n`{command}`\n\n{text}\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
