"""Cost of the gateway itself: the project's goals for it, measured in one command.

    python -m tests.bench.overhead [--against REV] [--python FILE] [--data FILE] [--quick]
                                   [--only PARTS] [--out FILE.md]

    load     requests and streams of several shapes, prediction off and on (turns.py)
    fresh    64 paced streams through a gateway just started, and after it was saturated itself
    held     2,000 streams open at once (open_streams.py)
    used     τ of the forecasts that were used, against that of unhurried ones (used.py)
    queue    the scheduler with 10,000 jobs that wait (core.py)

Gateway and child share one core; the mock, which answers at once or at a given pace, and the load
have another. Every prompt is new. Each pace has a model of its own in `load`, since no provider's
model takes a millisecond now and half a second then; in `fresh` one model has both. All targets of
a load take turns: this commit with and without prediction, the same of `--against`, and the mock
itself. Budgets are wide open: this measures work per request, not scheduling. CPU times are the
scheduler's own (schedstat), of the loop's thread, the other threads and the child apart.
Strangers are whatever else had a core meanwhile, the hypervisor included.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from tests.bench import fresh, open_streams, turns, used, used_figures
from tests.bench.cores import Unfit, on_core
from tests.bench.full_window import artefacts, rows, stored
from tests.bench.gateways import (
    HERE,
    PACED_MODEL,
    SLOW_MODEL,
    Revision,
    interpreter,
    measured_gateway,
    revision,
)
from tests.bench.overhead_figures import (
    Measured,
    cell_table,
    fresh_table,
    goal_table,
    held_table,
)
from tests.bench.plan import Plan
from tests.bench.prompts import generated, of_file
from tests.bench.turns import DIRECT, OFF, ON, Cell, Cores, Target
from tests.kit.gateway import ROOT

PARTS = ("load", "fresh", "held", "used", "queue")
PACED = ("--concurrency", "64", "--stream", "--words", "21", "--pace", "50-20.5-21")
BURST = ("--concurrency", "64", "--stream", "--words", "21")
TAU_RATES = (200, 500)
PACKAGES = ("uvicorn", "uvloop", "httptools", "httpx", "litestar", "msgspec")


def at_rate(rate: int, *more: str) -> tuple[str, ...]:
    return ("--rate", str(rate), "--concurrency", "64", *more)


def for_model(model: str) -> tuple[str, str]:
    return ("--model", model)


CELLS = (
    Cell("16 connections", ("--concurrency", "16"), (OFF, ON)),
    Cell("64 connections", ("--concurrency", "64"), (OFF, ON)),
    Cell("100/s", at_rate(100), (ON,), least_s=3.0, learned=True),
    Cell(
        "300/s, upstream 50 ms",
        at_rate(300, "--pace", "50-0-0", *for_model(SLOW_MODEL)),
        (DIRECT, ON),
    ),
    Cell("200/s", at_rate(200)),
    Cell("1 connection", ("--concurrency", "1"), (DIRECT, ON)),
    Cell("64 paced streams", (*PACED, *for_model(PACED_MODEL)), least_s=3.0),
    Cell("burst streams", BURST, (OFF, ON)),
)


QUICK = Plan(seconds=1.0, repeat=2, fresh=1, rounds=2, streams=1000, prompts=400, queued_turns=8)


class Run(NamedTuple):
    """A run's inputs."""

    plan: Plan
    revisions: Sequence[Revision]
    data: Path | None
    on: Cores


def of_load(run: Run, found: Measured) -> None:
    with ExitStack() as running:
        direct = running.enter_context(turns.mock(run.on[0]))
        targets = [direct]
        for of in run.revisions:
            for kind in (OFF, ON):
                gateway = running.enter_context(
                    measured_gateway(direct.port, run.on[1], predict=kind == ON, of=of)
                )
                targets.append(turns.target(gateway, kind))
        running.callback(_resume_all, targets)
        ceiling = turns.load(direct.port, ("--concurrency", "16"), 1.0, 0, run.on[0])
        found.ceiling = ceiling["per_s"]
        turns.warm_up(targets, run.on)
        found.rows += turns.in_turns(CELLS, targets, run.plan.seconds, run.plan.repeat, run.on)
        for one in targets:
            if one.kind == ON:
                found.memory_mb[one.of.name] = sum(one.rss_mb())
            found.unsettled += one.unsettled
            if one.kind == ON:
                one.resume()
                if restarts := one.restarts():
                    found.given_up.append(f"{one.name}: predictor begun again {restarts} times")


def _resume_all(targets: Sequence[Target]) -> None:
    """So that they can end."""
    for one in targets:
        one.resume()


def of_fresh(run: Run, found: Measured) -> None:
    with turns.mock(run.on[0]) as direct:
        for number in range(run.plan.fresh):
            straight = fresh.per_s(direct.port, PACED, run.plan.seconds, 500 + number, run.on)
            kinds = [(of, kind) for of in run.revisions for kind in (OFF, ON)]
            for of, kind in kinds if number % 2 == 0 else kinds[::-1]:
                found.fresh.append(
                    fresh.measure(direct, of, kind, PACED, run.plan, straight, run.on)
                )


def of_held(run: Run, found: Measured) -> None:
    with turns.mock(run.on[0]) as direct:
        for of in run.revisions:
            one = open_streams.held(direct, of, OFF, run.plan.streams, run.on)
            found.held.append(one)


def of_used(run: Run, found: Measured) -> None:
    """Of this commit alone."""
    if run.on[0] is None or run.on[1] is None:
        raise Unfit("two cores are needed for τ: one for the gateway, one for load and provider")
    cores = run.on[0], run.on[1]
    data, count = run.data, run.plan.prompts
    history = rows(run.plan.rows, artefacts())
    prompts = of_file(data, count) if data else generated(count)
    with tempfile.TemporaryDirectory() as folder:
        store = stored(Path(folder) / "sagesched.db", history)
        orders = ("as shipped",)
        found.used += used.run(prompts, 60.0, store, history, cores, orders, TAU_RATES)


def of_queue(run: Run, found: Measured) -> None:
    """Each revision's own core.py, in turns; both begin with a checkout's own interpreter."""
    size = ["--queued", "10000", "--tenants", "1", "--models", "1"]
    size += ["--turns", str(run.plan.queued_turns)]
    for _ in range(2):
        for of in run.revisions:
            command = [of.python, "-m", "tests.bench.core", *size]
            with on_core(run.on[1]):
                done = subprocess.run(command, cwd=of.root, capture_output=True, text=True)
            for line in done.stdout.splitlines():
                name, _, figures = line[24:].partition("dispatch")
                if name.startswith("finish"):
                    found.queued_us.setdefault(of.name, []).append(float(figures.split()[0]))


STEPS: dict[str, Callable[[Run, Measured], None]] = {
    "load": of_load,
    "fresh": of_fresh,
    "held": of_held,
    "used": of_used,
    "queue": of_queue,
}


def report(found: Measured, run: Run, where: str, minutes: float) -> str:
    """Markdown: the goals, then what each part says."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    notes = [f"{where}; Python {platform.python_version()}, {packages}; commit {commit()}"]
    notes.append(f"{minutes:.0f} minutes")
    if found.used:
        notes.append(
            f"τ of {f'the test side of `{run.data.name}`' if run.data else 'made-up prompts'}"
        )
    if found.ceiling:
        notes.append(f"the load alone, on one core with the mock: {found.ceiling:,.0f} req/s")
    parts = [
        f"## Overhead, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"`{said(run)}`",
        "; ".join(notes) + ". Medians of the turns, latencies of all turns' requests together; in"
        " brackets the best turn.",
        goal_table(found, [of.name for of in run.revisions]),
    ]
    if found.rows:
        parts += ["### Loads", cell_table(found.rows)]
    if found.fresh:
        parts += ["### Fresh gateways", fresh_table(found.fresh)]
    if found.held:
        parts += ["### Open streams", held_table(found.held)]
    if found.used:
        parts += ["### Forecasts used", used_figures.table(found.used)]
    if found.given_up:
        parts += [f"Not as it should be: {sentence}." for sentence in found.given_up]
    if found.unsettled:
        parts.append(f"{found.unsettled} turns left more to learn than {turns.SETTLE_S:g} s allow.")
    return "\n\n".join(parts)


def said(run: Run) -> str:
    """The command, of the data's path the name alone: where it lies says nothing to a reader."""
    words = sys.argv[1:]
    if run.data:
        words = [word.replace(str(run.data), run.data.name) for word in words]
    return shlex.join(["python", "-m", "tests.bench.overhead", *words])


def machine() -> str:
    """The CPU, memory and system of this computer, in words."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}, {gib:.0f} GiB, {platform.system()} {platform.release()}"


def commit() -> str:
    ask = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(ask, capture_output=True, text=True).stdout.strip() or "none"


def main() -> int:
    parser = argparse.ArgumentParser(description="the gateway's own cost, against its goals")
    parser.add_argument("--against", metavar="REV", help="another revision beside this one")
    parser.add_argument("--python", help="another interpreter beside this one, with the packages")
    parser.add_argument("--data", type=Path, help="conversations for τ, .jsonl or .jsonl.gz")
    parser.add_argument("--seconds", type=float, help="of one turn (3)")
    parser.add_argument("--repeat", type=int, help="turns of each target at each load (3)")
    parser.add_argument("--quick", action="store_true", help="short turns: a smoke test")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--out", type=Path, help="append the result to this Markdown file")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    given = {name: getattr(options, name) for name in ("seconds", "repeat")}
    plan = (QUICK if options.quick else Plan())._replace(**{k: v for k, v in given.items() if v})
    began_s, where, found = time.monotonic(), machine(), Measured()
    with ExitStack() as running:
        revisions = [HERE]
        if options.against:
            revisions.append(running.enter_context(revision(options.against)))
        if options.python:
            revisions.append(interpreter(options.python))
        run = Run(plan, revisions, options.data, turns.pinned())
        for part in parts:
            try:
                STEPS[part](run, found)
            except Unfit as error:
                found.given_up.append(f"{part}: {error}")
            sys.stderr.write(f"{part}: done after {time.monotonic() - began_s:.0f} s\n")
    text = report(found, run, where, (time.monotonic() - began_s) / 60)
    print(text)
    if options.out is not None:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}\n")
    return int(any(row.failed for row in found.rows))


if __name__ == "__main__":
    raise SystemExit(main())
