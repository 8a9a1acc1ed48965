"""`sagesched simulate`: the gateway's scheduler and accounts on a virtual clock.

It plays a day of traffic in seconds, again for each seed, against providers of every shape, beside
what people do without a gateway. It leaves out HTTP, the event loop and the predictor's own load:
it judges the scheduler's decisions; `sagesched bench` judges the whole gateway.

The report is one tree (simulation_report.py), as JSON, as Markdown, and pictures.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway.errors import SettingsError
from gateway.shipped import shipped
from gateway.workbench.arguments import (
    add_overrides,
    add_rows,
    check_names,
    history_of,
    numbers,
    this_command,
    words,
)
from gateway.workbench.figures import Floats
from gateway.workbench.progress import spread
from gateway.workbench.simulate import arrival_gaps as arrivals
from gateway.workbench.simulate import latency_charts as plots
from gateway.workbench.simulate import simulation_report as reports
from gateway.workbench.simulate.cells import POLICIES, PolicyFigures, given, play
from gateway.workbench.simulate.forecast_rows import real_rows
from gateway.workbench.simulate.policies import settings_of
from gateway.workbench.simulate.request_rows import MIXES, RequestRow, generated, noisy
from gateway.workbench.simulate.simulated_provider import SHAPES, Shape
from gateway.workbench.simulate.worlds import SCENARIOS, Cell, Plan, Scenario, world_of
from gateway.workbench.tables import write_report

GENERATED_ROWS = 4000
TAU = 0.55
REAL = "real"
RHO_NAMES = {"medium": 1.2, "high": 2.0}

DEFAULTS: dict[Scenario, tuple[tuple[float, ...], int]] = {
    "burst": ((2.0,), 200),
    "steady": ((0.7, 0.9, 1.1), 5000),
    "drop": ((0.8,), 2000),
    "drift": ((0.65,), 2000),
    "limits": ((2.0,), 200),
    "flood": ((2.0,), 600),
    "isolation": ((2.0,), 400),
}
"""Loads and numbers of requests, by scenario."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is played; a list or number left out is the default of each scenario."""
    _add_rows(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR")
    text = "burst, steady, drop, drift, limits, flood, isolation"
    add("--scenarios", type=words, default="burst", metavar="A,B", help=text)
    text = "linear, knee, power, quadratic, usl"
    add("--shapes", type=words, default="knee,power,quadratic,linear", metavar="A,B", help=text)
    text = "loads: × best throughput, or medium, high"
    add("--rho", type=words, default="", metavar="R,R", help=text)
    add("--requests", type=int, default=0, help="default: the scenario's")
    add("--seeds", type=int, default=20)
    add("--first-seed", type=int, default=0)
    add("--policies", type=words, default="", metavar="A,B", help="default: all")
    add("--warm-up", type=int, default=300, metavar="REQUESTS")
    add("--provider", action="append", default=[], metavar="KEY=NUMBER")
    add_overrides(parser)
    add("--jobs", type=int, default=0, help="processes; default: cores")


def _add_rows(parser: argparse.ArgumentParser) -> None:
    """Declare which requests come, when, and what is forecast of them."""
    add_rows(parser)
    add = parser.add_argument
    add("--forecasts", type=Path, metavar="FILE", help="default: DIR/forecasts.npz")
    text = "before each forecast; default: all earlier ones"
    add("--learned", type=int, default=0, metavar="ROWS", help=text)
    add("--tau", type=numbers, default="", metavar="T,T", help="forecasts of such a Kendall τ")
    text = "as-is, balanced, heavy, published: shares of sizes"
    add("--mix", default="published", help=text)
    text = "poisson, burst or a .csv[.gz]"
    add("--arrivals", default="poisson", metavar="KIND", help=text)
    add("--speed", type=float, default=0.0, help="of a file; default: to the load")


def run(args: argparse.Namespace) -> int:
    """Play everything and write OUT/report.json, report.md and pictures; 0.

    Raises:
        SettingsError: an option or a file is unusable.
    """
    started = time.monotonic()
    plan, cells = prepare(args)
    played = spread("cells", play, cells, given, (plan,), _processes(args))
    report: dict[str, Any] = {
        "about": {
            "command": this_command(),
            "rows_from": (args.data or history_of(args) or Path("generated")).name,
            "mix": plan.mix,
            "arrivals": args.arrivals,
            "speed": args.speed,
            "seeds": args.seeds,
            "first_seed": args.first_seed,
            "warm_up": args.warm_up,
            "provider": plan.fixed,
            "settings": plan.overrides,
            "seconds": round(time.monotonic() - started, 1),
        },
        "workload": reports.workload(plan.rows),
        "groups": reports.tree(cells, played),
    }
    _write(args.out, report, plan, cells, played)
    print(f"{len(cells)} cells; {report['about']['seconds']} s; see {args.out / 'report.md'}")
    return 0


def prepare(args: argparse.Namespace) -> tuple[Plan, list[Cell]]:
    """The plan and its cells; every option is checked before anything is played."""
    if args.data is not None and args.history is not None:
        raise SettingsError("simulate: expected --data or --history, not both")
    check_names("simulate", "scenario", args.scenarios, SCENARIOS)
    check_names("simulate", "shape", args.shapes, SHAPES)
    check_names("simulate", "policy", args.policies, POLICIES)
    check_names("simulate", "mix", [args.mix], tuple(MIXES))
    if args.seeds < 1 or args.jobs < 0:
        raise SettingsError("simulate: expected at least 1 seed and 1 job")
    if min(args.requests, args.warm_up, args.learned, args.first_seed) < 0:
        raise SettingsError("simulate: requests, warm-up and first seed cannot be less than 0")
    for tau in args.tau:
        if not 0.02 <= tau <= 0.98:
            raise SettingsError(f"simulate: τ {tau:g} is out of range: 0.02 to 0.98")
    overrides = _overrides(args.set)
    settings_of({"a": ("m",)}, ("one",), overrides)
    gaps = _gaps(args)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{args.out}: cannot be made: {error.strerror}") from None
    plan = Plan(
        rows=_rows(args),
        warm_up=args.warm_up,
        first_seed=args.first_seed,
        mix=args.mix,
        gaps=gaps,
        speed=args.speed,
        policies=args.policies,
        fixed=_numbers(args.provider),
        overrides=overrides,
    )
    cells = _cells(args, tuple(plan.rows))
    world_of(plan, cells[0])  # raises for a wrong parameter of the provider or mix
    return plan, cells


def _processes(args: argparse.Namespace) -> int:
    return args.jobs or os.cpu_count() or 1


def _cells(args: argparse.Namespace, forecasts: Sequence[str]) -> list[Cell]:
    found = []
    for name in args.scenarios:
        scenario = msgspec.convert(name, Scenario)
        rhos, requests = DEFAULTS[scenario]
        rhos = tuple(_rho(text) for text in args.rho) or rhos
        found += [
            Cell(
                scenario=scenario,
                shape=msgspec.convert(shape, Shape),
                rho=rho,
                forecast=forecast,
                requests=args.requests or requests,
                seed=seed,
            )
            for shape in args.shapes
            for rho in rhos
            for forecast in forecasts
            for seed in range(args.first_seed, args.first_seed + args.seeds)
        ]
    if not found:
        raise SettingsError("simulate: nothing to play")
    return found


def _rho(text: str) -> float:
    try:
        rho = RHO_NAMES.get(text) or float(text)
    except ValueError:
        rho = 0.0
    if not 0 < rho <= 100:
        raise SettingsError(f"simulate: load {text!r}: expected medium, high or a number above 0")
    return rho


def _rows(args: argparse.Namespace) -> dict[str, Sequence[RequestRow]]:
    """Rows by kind of forecast, all with the same sizes, so that the same ones are drawn."""
    found: dict[str, Sequence[RequestRow]] = {}
    if args.data is not None or args.history is not None:
        stored = args.forecasts or args.out / "forecasts.npz"
        rows = real_rows(
            args.data, history_of(args), stored, shipped("models"), _processes(args), args.learned
        )
        sizes = [(row.prompt_tokens, row.output_tokens) for row in rows]
        if not args.tau:
            found[REAL] = rows
    else:
        sizes = generated(GENERATED_ROWS, 0)
    for tau in args.tau or (() if found else (TAU,)):
        found[f"τ {tau:.2f}"] = noisy(sizes, tau, 1)
    return found


def _gaps(args: argparse.Namespace) -> Any:
    if args.arrivals in ("poisson", "burst"):
        if args.speed:
            raise SettingsError("simulate: --speed is for a file of arrivals")
        return args.arrivals
    gaps: Floats = arrivals.read(Path(args.arrivals))
    return gaps


def _numbers(pairs: Sequence[str]) -> dict[str, float]:
    """Parameters of the provider from KEY=NUMBER."""
    found = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            found[name] = float(text)
        except ValueError:
            raise SettingsError(f"simulate: {pair!r}: expected KEY=NUMBER") from None
    return found


def _overrides(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings by section from SECTION.KEY=VALUE, the value as JSON or else as text.

    A section `account` holds for every account.
    """
    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        section, dot, key = path.partition(".")
        if not equals or not dot:
            raise SettingsError(f"simulate: {pair!r}: expected SECTION.KEY=VALUE")
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError:
            value = text
        found.setdefault(section, {})[key] = value
    return found


def _write(
    out: Path,
    report: Mapping[str, Any],
    plan: Plan,
    cells: Sequence[Cell],
    played: Sequence[dict[str, PolicyFigures]],
) -> None:
    write_report(out, report, reports.markdown(report))
    for members in reports.groups(cells, played):
        _draw(out, plan, members[0][0], [found for _, found in members])


def _draw(out: Path, plan: Plan, cell: Cell, found: Sequence[Mapping[str, PolicyFigures]]) -> None:
    """Draw four pictures of a group; none where its scenario keeps no latencies."""
    by_policy = {name: [one[name] for one in found if one[name].latencies] for name in found[0]}
    if not any(by_policy.values()):
        return
    forecast = cell.forecast.replace("τ ", "tau-")
    name = f"{cell.scenario}-{cell.shape}-{cell.rho:g}-{forecast}.svg"
    title = f"{cell.scenario}, {cell.shape}, ρ {cell.rho:g}"
    pictures = {
        "all": plots.latencies(title, by_policy, short=False),
        "short": plots.latencies(title, by_policy, short=True),
    }
    if "ours" in by_policy:
        best = world_of(plan, cell).best_window
        pictures["waits"] = plots.waits(title, by_policy["ours"])
        pictures["window"] = plots.window(title, found[0]["ours"], best)
    for kind, picture in pictures.items():
        (out / f"{kind}-{name}").write_text(picture, encoding="utf-8")
