"""Number of faults, put into the pure rooms one at a time, that their unit tests notice.

    make mutants                                    # or, in the environment it makes:
    .venv-mutants/bin/python -m tests.bench.mutants [--sample 40] [--seed 0] [--out FILE]
        [--only balance/limit schedule/pace] [--survivors]

mutmut makes the mutants (`a < b` to `a <= b`, an argument to None, `and` to `or` …), learns which
test calls which function, and runs those tests in a forked process for each. All of them would
take hours, so a seeded sample of each file is run, and the share comes with its interval. A
verdict is kept in `mutants/` until its function changes: `--survivors` asks those that lived
again, after tests were added; remove the folder to begin anew.

mutmut leaves out what stands outside of functions (constants, fields) and decorated functions
(properties), and what runs only while a module is imported cannot be seen. Time-outs count as
killed: a loop that no longer ends is noticed. Mutants that change nothing one could see are told
one by one in `mutants_judged.toml`, with the reason; the share is given with them and without.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import get_mutant_name

from tests.bench.mutants_figures import ROOMS, File, Survivor, judgements, report

JUDGED = Path(__file__).with_name("mutants_judged.toml")
KILLED = ("killed", "timeout")  # whatever else became of one, it counts as alive
UNKNOWN = ("not checked", "check was interrupted by user")


class Sampled:
    """One source file's mutants: all there are, those drawn, what became of each."""

    def __init__(self, path: Path, size: int, seed: int) -> None:
        """The same ones for the same source and seed."""
        found = mutate_file_contents(str(path), path.read_text()).mutant_names
        names = sorted(get_mutant_name(path, name) for name in found)
        self.path = path
        self.name = f"{path.parent.name}/{path.stem}"
        self.count = len(names)
        self.names = sorted(Random(f"{seed} {path}").sample(names, min(size, len(names))))

    def verdicts(self) -> dict[str, str]:
        """Verdicts of the mutants drawn, read anew from mutmut's folder."""
        data = SourceFileMutationData(path=self.path)
        data.load()
        codes = data.exit_code_by_key
        return {name: status_by_exit_code[codes.get(name)] for name in self.names}

    def alive(self) -> list[str]:
        return [name for name, verdict in self.verdicts().items() if verdict not in KILLED]

    def run(self, names: list[str]) -> None:
        """mutmut on these mutants; what it prints is shown only where it fails."""
        mutmut = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", "1"]
        done = subprocess.run([*mutmut, *names], capture_output=True, text=True, check=False)
        if done.returncode:
            told = f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
            raise SystemExit(f"{self.name}: mutmut failed\n{told}")

    def figures(self) -> File:
        timeouts = list(self.verdicts().values()).count("timeout")
        return File(self.name, self.count, len(self.names), timeouts, list(self._survivors()))

    def _survivors(self) -> Iterator[Survivor]:
        judged = judgements(JUDGED)
        for name in self.alive():
            lines = get_diff_for_mutant(name, path=self.path).splitlines()[3:]
            old = "\n".join(line[1:].strip() for line in lines if line.startswith("-"))
            new = "\n".join(line[1:].strip() for line in lines if line.startswith("+"))
            where = name.rpartition("__mutmut_")[0].rpartition(".")[2]
            where = where.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
            why = judged.get((self.name, where, old.strip(), new.strip()), "")
            yield Survivor(self.name, where, old, new, why)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=int, default=40, help="mutants of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="ROOM/FILE")
    parser.add_argument("--survivors", action="store_true", help="ask again those that lived")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    paths = [path for room in ROOMS for path in sorted(Path("gateway", room).glob("*.py"))]
    files = [
        Sampled(path, args.sample, args.seed)
        for path in paths
        if not args.only or f"{path.parent.name}/{path.stem}" in args.only
    ]
    for file in files:
        ask = file.alive()
        if not args.survivors:
            ask = [name for name in ask if file.verdicts()[name] in UNKNOWN]
        if ask:
            file.run(ask)
        print(f"{file.name}: {len(file.alive())} of {len(file.names)} live", flush=True)
    text = report([file.figures() for file in files])
    if args.out:
        command = f"python -m tests.bench.mutants --sample {args.sample} --seed {args.seed}"
        args.out.write_text(f"# Mutants\n\n`{command}`\n\n{text}\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
