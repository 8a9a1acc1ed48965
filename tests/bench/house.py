"""Size of the code, the links between its files, and the path of one request through it.

    python -m tests.bench.house [--no-trace] [--root FOLDER]

Read from the code itself: files and lines by room beside their budgets, class and file names
that stand twice, circles of imports (those for types alone count), functions over 40 lines.
Measured on a running gateway: the files, functions, calls and hops of one streamed chat request
with prediction on, the median of some requests with new prompts. A hop is a call in another file
than the call before it. `--root` names a checkout to read and run instead of this one.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONG_FUNCTION = 40
SERVING_LINES, ALL_LINES = 21_500, 30_000
REQUEST_FILES, REQUEST_HOPS = 68, 400
BUDGETS = {
    "(top)": 1_665,
    "settings": 640,
    "schedule": 3_700,
    "balance": 2_240,
    "upstream": 1_110,
    "engine": 1_950,
    "api": 2_830,
    "predict": 6_180,
    "store": 1_015,
    "observe": 1_540,
    "demo": 1_480,
    "workbench": 7_200,
}
HEAD_LINES = 20  # of a module's docstring
RIDDLES = frozenset(
    {
        "who",
        "whoever",
        "what",
        "whatever",
        "whose",
        "whom",
        "how",
        "whether",
        "where",
        "when",
        "why",
        "which",
        "its",
    }
)  # first words that leave the reader without a noun or a verb
TOOLS = ("demo", "workbench")  # the rooms that serve no request
TRACED = 9  # requests
EVENTS = 8  # content events of each answer
SETTLE_S = 0.3  # for what a request leaves to do, before the next


class Code:
    """The files under `gateway/`, parsed."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "gateway"
        self.trees = {
            path: ast.parse(path.read_text(encoding="utf-8"))
            for path in sorted(self.folder.rglob("*.py"))
        }

    def room(self, path: Path) -> str:
        """The folder under `gateway/`; "(top)" for files beside the rooms."""
        parts = path.relative_to(self.folder).parts
        return parts[0] if len(parts) > 1 else "(top)"

    def module(self, path: Path) -> str:
        parts = path.relative_to(self.folder.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def rooms(self) -> dict[str, tuple[int, int]]:
        """Files and lines by room; files without code are not counted as files."""
        found: dict[str, list[int]] = defaultdict(list)
        for path in self.trees:
            found[self.room(path)].append(len(path.read_text(encoding="utf-8").splitlines()))
        return {
            room: (sum(n > 1 for n in lines), sum(lines)) for room, lines in sorted(found.items())
        }

    def double_classes(self) -> dict[str, list[str]]:
        """Names of classes, private ones too, that stand in several files. Settings structs do
        not count: their module tells them apart."""
        places: dict[str, list[str]] = defaultdict(list)
        for path, tree in self.trees.items():
            name = str(path.relative_to(self.folder))
            if name == "settings/schema.py":
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(name)
        return {name: files for name, files in sorted(places.items()) if len(files) > 1}

    def double_files(self) -> dict[str, list[str]]:
        """Names of files that stand in several folders."""
        places: dict[str, list[str]] = defaultdict(list)
        for path in self.trees:
            if path.stem not in ("__init__", "__main__"):
                places[path.name].append(str(path.relative_to(self.folder)))
        return {name: files for name, files in sorted(places.items()) if len(files) > 1}

    def long_functions(self) -> list[tuple[int, str]]:
        """Lines and place of each function over the bound, longest first."""
        found = []
        for path, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    if lines > LONG_FUNCTION:
                        place = f"{path.relative_to(self.folder)}:{node.lineno} {node.name}"
                        found.append((lines, place))
        return sorted(found, reverse=True)

    def docstrings(self) -> Iterator[tuple[str, str]]:
        """Place and text of each docstring."""
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        for path, tree in self.trees.items():
            name = str(path.relative_to(self.folder))
            for node in ast.walk(tree):
                text = ast.get_docstring(node) if isinstance(node, kinds) else None
                if text:
                    yield f"{name}:{getattr(node, 'name', 'head')}", text

    def riddles(self) -> list[str]:
        """Places of docstrings that start with a word of `RIDDLES`."""
        return [
            place
            for place, text in self.docstrings()
            if text.split()[0].strip(".,:;").lower() in RIDDLES
        ]

    def long_heads(self) -> list[str]:
        """Modules whose docstring has more lines than the bound."""
        return [
            place
            for place, text in self.docstrings()
            if place.endswith(":head") and len(text.splitlines()) > HEAD_LINES
        ]

    def imports(self) -> dict[str, set[str]]:
        """For each module the modules of `gateway` that it imports, wherever and for whatever."""
        modules = {self.module(path) for path in self.trees}
        found: dict[str, set[str]] = {}
        for path, tree in self.trees.items():
            seen = found[self.module(path)] = set()
            for node in ast.walk(tree):
                for name in _imported(node):
                    if name in modules:
                        seen.add(name)
            seen.discard(self.module(path))
        return found


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            yield f"{node.module}.{alias.name}"
        yield node.module


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of more than one module (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            place = stack.index(name)
            part = stack[place:]
            del stack[place:]
            if len(part) > 1:
                found.append(sorted(part))

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return found


def trace(root: Path) -> dict[str, float]:
    """Files, functions, calls and hops of one streamed chat request; medians."""
    script = Path(__file__).with_name("house_trace.py")
    done = subprocess.run(
        [sys.executable, str(script), str(TRACED), str(EVENTS), str(SETTLE_S)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the traced gateway failed:\n{done.stderr[-2000:]}")
    runs = json.loads(done.stdout)
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def report(root: Path, traced: bool) -> Iterable[str]:
    """Lines of Markdown."""
    code = Code(root)
    rooms = code.rooms()
    yield "| room | files | lines | budget | over |"
    yield "|---|---|---|---|---|"
    for room, (files, lines) in rooms.items():
        budget = BUDGETS.get(room, 0)
        yield f"| {room} | {files} | {lines:,} | {budget:,} | {max(lines - budget, 0) or ''} |"
    serving = [count for room, count in rooms.items() if room not in TOOLS]
    for name, chosen, wanted in (
        ("serving", serving, SERVING_LINES),
        ("all", list(rooms.values()), ALL_LINES),
    ):
        files, lines = (sum(numbers) for numbers in zip(*chosen, strict=True))
        yield f"| **{name}** | {files} | {lines:,} | {wanted:,} | {max(lines - wanted, 0) or ''} |"
    yield ""
    for title, doubles in (
        ("class names", code.double_classes()),
        ("file names", code.double_files()),
    ):
        yield f"- {title} that stand twice: {len(doubles)} (wanted 0)"
        yield from (f"  - {name}: {', '.join(files)}" for name, files in doubles.items())
    found = circles(code.imports())
    yield f"- circles of imports, by type too: {len(found)} (wanted 0)"
    yield from (f"  - {', '.join(part)}" for part in found)
    long = code.long_functions()
    yield f"- functions over {LONG_FUNCTION} lines: {len(long)}"
    yield from (f"  - {lines}: {place}" for lines, place in long)
    for title, places in (
        ("docstrings that start without a noun or verb", code.riddles()),
        (f"module heads over {HEAD_LINES} lines", code.long_heads()),
    ):
        yield f"- {title}: {len(places)} (wanted 0)"
        yield from (f"  - {place}" for place in places)
    if traced:
        way = trace(root)
        yield (
            f"- one streamed chat request ({EVENTS} content events, prediction on):"
            f" {way['files']:.0f} files (wanted {REQUEST_FILES}), {way['functions']:.0f} functions,"
            f" {way['calls']:.0f} calls, {way['hops']:.0f} hops (wanted {REQUEST_HOPS})"
        )


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout; default: this one")
    parser.add_argument("--no-trace", action="store_true", help="read the code only")
    args = parser.parse_args()
    print("\n".join(report(args.root.resolve(), not args.no_trace)))


if __name__ == "__main__":
    main()
