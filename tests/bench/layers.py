"""Microseconds of the event loop's CPU by layer, per request.

    python -m tests.bench.layers [--connections 16] [--rate 200] [--stream] [--only off]
                                 [--against REV] [--python FILE] [--functions 30]

A gateway and its child share one core, load and mock the other (with one core: no pinning).
Turns of load alternate: unsampled ones, whose CPU time per request is what is shared out, and
sampled ones (profiled.py), whose samples say how. The µs of a layer are its share of the samples
times the least CPU of the loop's thread per request. A sample counts for the innermost function
whose file has a layer; C code, the standard library and system calls count for the Python
function that called them, what uvloop does by itself for `uvloop, kernel, parser`. With 3,000
samples a layer of 10 % is known to ± 1 point. `--functions` prints the dearest functions, too.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from gateway.workbench.tables import table
from tests.bench import turns
from tests.bench.cores import Spent, spent
from tests.bench.gateways import (
    HERE,
    MeasuredGateway,
    Revision,
    interpreter,
    measured_gateway,
    revision,
)

LAYERS: Mapping[str, Sequence[str]] = {
    "upstream client": ("/gateway/upstream/", "/aiohttp/", "/httpx/", "/httpx_aiohttp/", "/yarl/"),
    "engine": ("/gateway/engine/",),
    "api": ("/gateway/api/", "/gateway/app.py"),
    "schedule": ("/gateway/schedule/",),
    "balance": ("/gateway/balance/",),
    "predict": ("/gateway/predict/",),
    "observe": ("/gateway/observe/",),
    "store": ("/gateway/store/",),
    "uvicorn": ("/uvicorn/",),
    "litestar": ("/litestar/",),
    "asyncio": ("/asyncio/",),
}
LOOP = "uvloop, kernel, parser"
OTHER = "other"
PATIENCE_S = 10.0


class Shares(NamedTuple):
    """Samples by layer, and by layer and function."""

    layers: Counter[str]
    functions: Counter[tuple[str, str]]


class Found(NamedTuple):
    """One gateway's figures, CPU µs a request."""

    shares: Shares
    loop_us: float  # the least of the unsampled turns
    spent_us: Sequence[Spent]  # of all of them; `_s` is µs here
    per_s: float


def shares(stacks: Iterable[tuple[int, bool, Sequence[str]]]) -> Shares:
    """Of a sampler's stacks; pure."""
    found = Shares(Counter(), Counter())
    for count, entered, places in stacks:
        layer, function = LOOP, "(between callbacks)"
        if not entered and "/asyncio/runners.py" not in places[0]:
            layer, function = next(filter(None, map(_placed, places)), (OTHER, places[0]))
        found.layers[layer] += count
        found.functions[layer, function] += count
    return found


def _placed(place: str) -> tuple[str, str] | None:
    file, _, name = place.partition("|")
    for layer, parts in LAYERS.items():
        for part in parts:
            if part in file:
                return layer, f"{file[file.rindex(part) + 1 :]} {name}"
    return None


def sampled(gateway: MeasuredGateway, file: Path, run: Callable[[], object]) -> Shares:
    """Samples of the gateway while `run` runs."""
    gateway.signal(signal.SIGUSR1)
    run()
    file.unlink(missing_ok=True)
    gateway.signal(signal.SIGUSR1)
    deadline = time.monotonic() + PATIENCE_S
    while not file.exists():
        assert time.monotonic() < deadline, "the gateway wrote no samples"
        time.sleep(0.02)
    return shares(json.loads(file.read_bytes())["stacks"])


def measure(of: Revision, predict: bool, options: argparse.Namespace, cores: turns.Cores) -> Found:
    """A gateway of its own, in turns without and with samples."""
    load_core, core = cores
    how = ["--concurrency", str(options.connections), "--rate", str(options.rate)]
    how += ["--stream"] if options.stream else []
    found, spent_us, rates = Shares(Counter(), Counter()), [], []
    with ExitStack() as running:
        port = running.enter_context(turns.mock(load_core)).port
        file = Path(running.enter_context(tempfile.TemporaryDirectory())) / "samples"
        script, env = turns.FOLDER / "profiled.py", {"BENCH_PROFILE": str(file)}
        gateway = running.enter_context(
            measured_gateway(port, core, predict=predict, of=of, script=script, env=env)
        )
        assert gateway.process is not None
        pid = gateway.process.pid

        def load(seconds: float, seed: int) -> float:
            report = turns.load(gateway.port, how, seconds, seed, load_core)
            rates.append(report["per_s"])
            return float(max(1, report["answered"]))

        load(1.0, 0)
        for turn in range(options.repeat):
            before = spent(pid)
            answered = load(options.seconds, 2 * turn + 1)
            used = spent(pid) - before
            spent_us.append(Spent(*(1e6 * seconds / answered for seconds in used)))
            run = (options.seconds, 2 * turn + 2)
            more = sampled(gateway, file, lambda run=run: load(*run))  # type: ignore[misc]
            found.layers.update(more.layers)
            found.functions.update(more.functions)
    return Found(found, min(one.loop_s for one in spent_us), spent_us, max(rates))


def report(found: Mapping[str, Found], functions: int) -> str:
    """Markdown: layers by column, then the dearest functions of each."""
    names = [*LAYERS, LOOP, OTHER]
    rows = [
        [name, *(f"{_us(one, one.shares.layers[name]):.0f}" for one in found.values())]
        for name in names
        if any(one.shares.layers[name] for one in found.values())
    ]
    rows += [
        ["**loop, all** (least of the turns)", *(f"**{o.loop_us:.0f}**" for o in found.values())],
        ["… each turn", *(_each(o, "loop_s") for o in found.values())],
        ["other threads", *(_each(o, "threads_s") for o in found.values())],
        ["child", *(_each(o, "children_s") for o in found.values())],
        ["best req/s", *(f"{o.per_s:.0f}" for o in found.values())],
        ["samples", *(str(o.shares.layers.total()) for o in found.values())],
    ]
    parts = [table(["CPU µs a request", *found], rows)]
    for name, one in found.items() if functions else ():
        dear = one.shares.functions.most_common(functions)
        lines = (
            [f"{_us(one, count):.1f}", layer, function.replace("|", " ")]
            for (layer, function), count in dear
        )
        parts.append(f"{name}:\n\n" + table(["µs", "layer", "function"], lines))
    return "\n\n".join(parts)


def _us(one: Found, count: int) -> float:
    return one.loop_us * count / max(1, one.shares.layers.total())


def _each(one: Found, field: str) -> str:
    return ", ".join(f"{max(0.0, getattr(turn, field)):.0f}" for turn in one.spent_us)


def main() -> None:
    parser = argparse.ArgumentParser(description="µs of the event loop by layer, per request")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: saturated")
    parser.add_argument("--stream", action="store_true", help="streams whose events come at once")
    parser.add_argument("--only", choices=["off", "on"], help="of prediction")
    parser.add_argument("--against", metavar="REV", help="another revision beside this one")
    parser.add_argument("--python", help="another interpreter beside this one, with the packages")
    parser.add_argument("--functions", type=int, default=0, help="print so many of the dearest")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each kind")
    options = parser.parse_args()
    cores = turns.pinned()
    found: dict[str, Found] = {}
    with ExitStack() as running:
        revisions = [HERE]
        if options.against:
            revisions.append(running.enter_context(revision(options.against)))
        if options.python:
            revisions.append(interpreter(options.python))
        for of in revisions:
            for kind in ("off", "on"):
                if options.only in (None, kind):
                    name = f"{of.name}, {kind}"
                    found[name] = measure(of, kind == "on", options, cores)
                    sys.stderr.write(f"{name}: {found[name].loop_us:.0f} µs\n")
    print(report(found, options.functions))


if __name__ == "__main__":
    main()
