"""The predictor's figures: `python -m tests.bench.predict --data FILE [--out FILE.md]`.

    used     τ of the forecasts that decided something, at 50, 200 and 500 requests/s (used.py)
    memory   of the gateway's process and the predictor's, window full (added.py)
    added    p99 latency, prediction on minus off, at those rates (added.py)
    refit    the same during a refit against without (added.py)
    stage0   the forecast on the event loop, alone and under load (stage0.py)
    speed    microseconds of the parts (predict_speed.py)

FILE is a file of conversations as `sagesched evaluate` takes it; its test side is asked. Without
one the prompts are made up, and τ says nothing about real ones. `--quick` shows in less than
five minutes that everything works; its figures are no figures. The gateway and its children run
on one core, the load on another; a load that takes more than 70 % of its own ends the run.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from gateway.errors import SettingsError
from gateway.settings.schema import Predict
from gateway.types import HistoryRow
from gateway.workbench.tables import table
from tests.bench import added, stage0, used, used_figures
from tests.bench.cores import Unfit, load_and_gateway, on_core, stay_on
from tests.bench.full_window import artefacts, rows, stored, wait_full
from tests.bench.gateways import measured_gateway
from tests.bench.overhead import commit, machine
from tests.bench.overhead_figures import cell_table
from tests.bench.prompts import Prompt, generated, of_file
from tests.bench.turns import OFF, ON, Target, in_turns, mock, target, warm_up
from tests.kit.gateway import ROOT

PARTS = ("used", "memory", "added", "refit", "stage0", "speed")
MOST_PROMPTS = 4000  # as many as the encoder remembers: the reference reads each once


class Plan(Struct, frozen=True):
    """Sizes of all parts of the run."""

    seconds: float = 3.0  # of one turn
    repeat: int = 8  # turns of each target at each rate
    used_s: float = 60.0  # of load at each rate, as long as there are prompts
    prompts: int = MOST_PROMPTS
    orders: tuple[str, ...] = tuple(used.ORDERS)
    rows: int = Predict().refit_rows  # of history: a full window, and a refit's fill
    refits: int = 2
    refit_turns: int = 60  # of a phase, at most
    stage0_s: float = 20.0


QUICK = Plan(
    seconds=1.0,
    repeat=1,
    used_s=6.0,
    prompts=400,
    orders=("as shipped",),
    rows=12_000,
    refits=1,
    refit_turns=3,
    stage0_s=2.0,
)


class Figure(Struct, frozen=True):
    """A line of the table at the head."""

    name: str
    goal: str
    measured: str


class Section(Struct, frozen=True):
    """One part's figures and what they rest on."""

    title: str
    figures: tuple[Figure, ...]
    text: str


class Data(Struct, frozen=True):
    """Inputs of every part."""

    file: Path | None
    store: Path
    history: list[HistoryRow]
    cores: tuple[int, int]  # of load and provider; of the gateway


def of_used(plan: Plan, prompts: Sequence[Prompt], data: Data) -> Section:
    found = used.run(prompts, plan.used_s, data.store, data.history, data.cores, plan.orders)
    goals = {50: "as full", 200: "≥ 0.90 of full", 500: "≥ 0.80 of full"}
    figures = tuple(
        Figure(
            f"τ of the forecasts used at {one.rate}/s, {one.order}",
            goals[one.rate],
            f"{one.ratio(one.tau):.2f} of full ({one.tau['used']:.3f} / {one.tau['full']:.3f};"
            f" stage 0 {one.tau['stage 0']:.3f}; {one.waited:.0%} waited)",
        )
        for one in found
    )
    return Section("Forecasts used", figures, used_figures.table(found))


def of_gateways(plan: Plan, parts: Sequence[str], data: Data) -> Iterator[Section]:
    """Memory, added latency and refits, of the same gateways."""
    with ExitStack() as running:
        direct = running.enter_context(mock(data.cores[0]))

        def begun(kind: str, **more: Any) -> Target:
            context = measured_gateway(direct.port, data.cores[1], predict=kind == ON, **more)
            return target(running.enter_context(context), kind)

        on = begun(ON, history=data.store)
        assert on.process is not None
        wait_full(on.process)
        if "memory" in parts:  # while no other gateway shares its pages
            yield of_memory(added.memories(on, 2 * plan.seconds, data.cores))
        off = begun(OFF)
        running.callback(off.resume)
        running.callback(on.resume)
        warm_up([direct, off, on], data.cores)
        if "added" in parts:
            cells = [added.cell(rate) for rate in added.RATES]
            found = in_turns(cells, [direct, off, on], plan.seconds, plan.repeat, data.cores)
            added.check_rows(found)
            yield of_added(found)
        if "refit" in parts:
            on.resume()
            refits = added.refits(
                direct, on, plan.seconds, plan.refits, plan.refit_turns, data.cores
            )
            yield of_refit(refits, plan)


def of_memory(found: dict[str, added.Memory]) -> Section:
    most = max(found.values(), key=lambda one: one.total)
    idle = found["idle, as started"]
    figure = Figure(
        "memory with a full window, gateway + predictor",
        "≤ 400 MB",
        f"{most.total:.0f} MB under load ({most.pss[0]:.0f} + {most.pss[1]:.0f}),"
        f" {idle.total:.0f} MB idle ({idle.pss[0]:.0f} + {idle.pss[1]:.0f})",
    )
    return Section("Memory", (figure,), added.memory_table(found))


def of_added(found: list[Any]) -> Section:
    figures = tuple(
        Figure(
            f"added latency p99 at {rate}/s, prediction on − off",
            "≤ 2 ms",
            f"{added.apart_ms(found, rate)['p99']:+.2f} ms",
        )
        for rate in added.RATES
    )
    return Section("Added latency", figures, cell_table(found))


def of_refit(found: added.Refit, plan: Plan) -> Section:
    figure = Figure(
        f"added p99 during a refit / without, at {added.REFIT_RATE}/s",
        "≤ 1.5",
        f"{found.ratio:.2f} ({found.during_ms[1]:.2f} / {found.without_ms[1]:.2f} ms)",
    )
    lasted = ", ".join(f"{s:.0f} s" for s in found.lasted_s)
    end = "" if found.whole else " (ended by the bench, not by itself)"
    text = f"Refits of {plan.rows} rows beside the load: {lasted}{end}."
    return Section("During a refit", (figure,), f"{text}\n\n{added.refit_table(found)}")


def of_stage0(plan: Plan, data: Data) -> Section:
    command = [sys.executable, "-m", "tests.bench.stage0", "--seconds", str(plan.stage0_s)]
    command += ["--data", str(data.file)] if data.file else []
    with on_core(data.cores[1]):
        done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, check=True)
    found = json.loads(done.stdout)
    figures = tuple(
        Figure(
            f"stage 0 on the loop, p99, {name}",
            "≤ 0.3 ms",
            f"{one['p99'] / 1000:.3f} ms (CPU {one['cpu_p99'] / 1000:.3f})",
        )
        for name, one in found.items()
    )
    return Section("Stage 0", figures, stage0.table(found))


def of_speed(data: Data) -> Section:
    command = [sys.executable, "-m", "tests.bench.predict_speed"]
    with on_core(data.cores[1]):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    return Section("Parts", (), f"```\n{done.stdout.rstrip()}\n```")


def sections(plan: Plan, parts: Sequence[str], data: Data) -> Iterator[Section]:
    """The parts asked for, each as it is done."""
    if "used" in parts:
        file = data.file
        prompts = of_file(file, plan.prompts) if file else generated(plan.prompts)
        yield of_used(plan, prompts, data)
    if {"memory", "added", "refit"} & set(parts):
        yield from of_gateways(plan, parts, data)
    last: dict[str, Callable[[], Section]] = {
        "stage0": lambda: of_stage0(plan, data),
        "speed": lambda: of_speed(data),
    }
    for name, part in last.items():
        if name in parts:
            yield part()


def report(
    found: Sequence[Section], options: argparse.Namespace, where: str, seconds: float
) -> str:
    """Markdown: the figures, then what each part says."""
    asked = f"the test side of `{options.data.name}`" if options.data else "generated prompts"
    figures = [figure for section in found for figure in section.figures]
    rows_of = ([one.name, one.goal, one.measured] for one in figures)
    return "\n\n".join(
        [
            f"## Prediction, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            f"`{said(options)}`",
            f"{where}; Python {platform.python_version()}; commit {commit()};"
            f" {asked}; {seconds / 60:.0f} minutes.",
            table(["figure", "goal", "measured"], rows_of),
            *(f"### {section.title}\n\n{section.text}" for section in found),
        ]
    )


def said(options: argparse.Namespace) -> str:
    """The command, of the data's path the name alone: where it lies says nothing to a reader."""
    words = sys.argv[1:]
    if options.data:
        words = [word.replace(str(options.data), options.data.name) for word in words]
    return shlex.join(["python", "-m", "tests.bench.predict", *words])


def main() -> int:
    parser = argparse.ArgumentParser(description="the predictor's figures")
    parser.add_argument("--data", type=Path, help="conversations, .jsonl or .jsonl.gz")
    parser.add_argument("--seconds", type=float, help="of one turn (3)")
    parser.add_argument("--repeat", type=int, help="turns of each target at each rate (8)")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--out", type=Path, help="append the result to this Markdown file")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if options.quick and options.only == parser.get_default("only"):
        parts.remove("speed")  # it takes minutes by itself
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    began_s = time.monotonic()
    found: list[Section] = []
    where = machine()  # before it shrinks to a core
    given_up = False
    try:
        cores = load_and_gateway()
        stay_on(cores[0])
        plan = planned(options)
        history = rows(plan.rows, artefacts())
        with tempfile.TemporaryDirectory() as directory:
            store = stored(Path(directory) / "sagesched.db", history)
            for section in sections(plan, parts, Data(options.data, store, history, cores)):
                found.append(section)
                sys.stderr.write(f"{section.title}: done\n")
    except (Unfit, SettingsError) as error:
        sys.stderr.write(f"given up: {error}\n")
        given_up = True
    text = report(found, options, where, time.monotonic() - began_s)
    print(text)
    if options.out is not None and not given_up:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}\n")
    return 2 if given_up else 0


def planned(options: argparse.Namespace) -> Plan:
    given = {name: getattr(options, name) for name in ("seconds", "repeat")}
    known = {name: value for name, value in given.items() if value is not None}
    return structs.replace(QUICK if options.quick else Plan(), **known)


if __name__ == "__main__":
    raise SystemExit(main())
