"""The goals for the gateway's own cost, held against what overhead.py measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from gateway.workbench.tables import table
from tests.bench.turns import OFF, ON, Row
from tests.bench.used_figures import Used


class Goal(NamedTuple):
    """A bound; `most`: not more than it, else not less."""

    bound: float
    most: bool
    form: str = ".2f"

    def met(self, value: float) -> bool:
        return value <= self.bound if self.most else value >= self.bound

    def said(self) -> str:
        return f"{'≤' if self.most else '≥'} {self.bound:g}"


class Figure(NamedTuple):
    """The figures of one goal.

    Args:
        values: one of each turn; none: not measured.
        all_turns: the same of all turns as one, where that is not their median.
    """

    name: str
    goal: Goal
    values: Sequence[float]
    all_turns: float | None = None

    @property
    def typical(self) -> float:
        return median(self.values) if self.all_turns is None else self.all_turns

    @property
    def best(self) -> float:
        return (min if self.goal.most else max)(self.values)

    def verdict(self) -> str:
        if not self.values:
            return "not measured"
        if self.goal.met(self.typical):
            return "yes"
        return "in the best turn" if self.goal.met(self.best) else "no"

    def measured(self) -> str:
        if not self.values:
            return "–"
        form = self.goal.form
        return f"{self.typical:{form}} ({self.best:{form}})"


class Fresh(NamedTuple):
    """A gateway's first loads: 64 paced streams, its own saturation, the streams again."""

    of: str
    kind: str
    start_s: float
    ratios: tuple[float, ...]  # streams a second over direct: fresh, after each saturation


class Held(NamedTuple):
    """Streams that were all open at once."""

    of: str
    kind: str
    streams: int
    whole: int  # came complete, word for word
    kb: float  # of the gateway's memory, each
    cpu_share: float  # of a core, while they were open
    event_us: float  # CPU of the gateway, for each event relayed meanwhile
    rss_mb: float


@dataclass
class Measured:
    """Results of all parts of a run; parts that did not run are empty."""

    rows: list[Row] = field(default_factory=list)
    fresh: list[Fresh] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    memory_mb: dict[str, float] = field(default_factory=dict)  # by revision, with child
    used: list[Used] = field(default_factory=list)  # τ, of this commit
    queued_us: dict[str, list[float]] = field(default_factory=dict)  # by revision
    ceiling: float = 0.0  # requests a second of the load against the mock alone
    unsettled: int = 0  # turns that left more to learn than was waited for
    given_up: list[str] = field(default_factory=list)

    def row(self, cell: str, of: str, kind: str) -> Row | None:
        for row in self.rows:
            if (row.cell.name, row.target.of.name, row.target.kind) == (cell, of, kind):
                return row
        return None


def figures(measured: Measured, of: str) -> list[Figure]:
    """All of one revision, in a fixed order."""
    found = []
    for connections in (16, 64):
        for kind, wanted in ((ON, 2000), (OFF, 2800)):
            row = measured.row(f"{connections} connections", of, kind)
            per_s = row.each(lambda turn: turn.report["per_s"]) if row else []
            name = f"req/s at {connections} connections, prediction {kind}"
            found.append(Figure(name, Goal(wanted, False, ".0f"), per_s))
    for cell, kind, wanted_ms in (
        ("16 connections", ON, 0.5),
        ("16 connections", OFF, 0.4),
        ("100/s", ON, 2.0),
    ):
        name = f"CPU ms a request at {cell}, {kind}, child included"
        found.append(Figure(name, Goal(wanted_ms, True), _cpu_ms(measured.row(cell, of, kind))))
    return found + _latencies(measured, of) + _streams(measured, of) + _rest(measured, of)


def _cpu_ms(row: Row | None) -> list[float]:
    return row.each(lambda turn: turn.us(turn.spent.total_s) / 1000) if row else []


def _added(name: str, row: Row | None, q: str, bound: float) -> Figure:
    goal = Goal(bound, True)
    if row is None or row.direct is None:
        return Figure(name, goal, [])
    return Figure(name, goal, row.added_each_ms(q), row.added_ms(q))


def _latencies(measured: Measured, of: str) -> list[Figure]:
    at_300 = measured.row("300/s, upstream 50 ms", of, ON)
    found = [
        _added("added p50 ms at 300/s, upstream 50 ms, on", at_300, "p50", 1.5),
        _added("added p99 ms at 300/s, upstream 50 ms, on", at_300, "p99", 8.0),
    ]
    on, off = (measured.row("200/s", of, kind) for kind in (ON, OFF))
    name, goal = "p99 ms at 200/s, on − off", Goal(2.0, True)
    if on is None or off is None:
        found.append(Figure(name, goal, []))
    else:
        each = zip(on.turns, off.turns, strict=True)
        apart = [a.report["total_ms"]["p99"] - b.report["total_ms"]["p99"] for a, b in each]
        found.append(Figure(name, goal, apart, on.quantile("p99") - off.quantile("p99")))
    alone = measured.row("1 connection", of, ON)
    return [*found, _added("added p50 ms at 1 connection, on", alone, "p50", 0.8)]


def _streams(measured: Measured, of: str) -> list[Figure]:
    paced, burst = measured.row("64 paced streams", of, ON), measured.row("burst streams", of, ON)
    fresh = [one for one in measured.fresh if one.of == of]
    found = [
        _added("64 paced streams, on: first byte p99 ms over direct", paced, "p99", 10.0),
        Figure("64 paced streams, on: CPU ms a stream", Goal(2.0, True), _cpu_ms(paced)),
    ]
    for name, which in (("fresh", slice(1)), ("after own saturation", slice(1, None))):
        for kind in (ON, OFF):
            ratios = [ratio for one in fresh if one.kind == kind for ratio in one.ratios[which]]
            title = f"64 paced streams a second ÷ direct, {name}, {kind}"
            found.append(Figure(title, Goal(0.98, False, ".3f"), ratios))
    per_s = burst.each(lambda turn: turn.report["per_s"]) if burst else []
    found.append(Figure("burst streams/s (24 events), on", Goal(1500, False, ".0f"), per_s))
    return found


def _rest(measured: Measured, of: str) -> list[Figure]:
    held = [one.kb for one in measured.held if one.of == of]
    starts = [one.start_s for one in measured.fresh if (one.of, one.kind) == (of, ON)]
    memory = [measured.memory_mb[of]] if of in measured.memory_mb else []
    found = [
        Figure("KB an open stream, off", Goal(20.0, True, ".1f"), held),
        Figure("start, s, on", Goal(1.5, True), starts),
        Figure("memory MB with child, after the loads", Goal(250, True, ".0f"), memory),
    ]
    for rate, bound in ((200, 0.92), (500, 0.88)):
        used = [one for one in measured.used if of == "this" and one.rate == rate]
        ratio = [one.ratio(one.tau) for one in used]
        found.append(Figure(f"τ used ÷ full at {rate}/s", Goal(bound, False), ratio))
    name = "finish + dispatch at 10,000 queued, µs"
    return [*found, Figure(name, Goal(40.0, True, ".1f"), measured.queued_us.get(of, []))]


def goal_table(measured: Measured, revisions: Sequence[str]) -> str:
    """Markdown: a line a figure; of each revision the median of the turns, the best in brackets.

    Latencies are of all turns' requests together, which is no better than their median.
    """
    by: Mapping[str, list[Figure]] = {of: figures(measured, of) for of in revisions}
    lines = []
    for at, figure in enumerate(by[revisions[0]]):
        told = [by[of][at].measured() for of in revisions]
        lines.append([figure.name, figure.goal.said(), figure.verdict(), *told])
    return table(["figure", "goal", "met", *revisions], lines)


def cell_table(rows: Sequence[Row]) -> str:
    """Markdown: all rows, medians of their turns, latencies of all turns together."""
    head = [
        *("load", "through", "req/s (best)", "p50 ms", "p99 ms", "failed"),
        *("loop µs (best)", "threads", "child", "MB"),
        *("load's core", "strangers: load's core, gateway's"),
    ]
    return table(head, map(_cell_line, rows))


def _cell_line(row: Row) -> list[str]:
    per_s = row.each(lambda turn: turn.report["per_s"])
    loop, threads, child = (
        row.each(lambda turn, part=part: turn.us(turn.spent[part]))  # type: ignore[misc]
        for part in range(3)
    )
    sizes = zip(*(turn.rss_mb for turn in row.turns), strict=False)
    strangers = (median(row.each(lambda turn, at=at: turn.strangers[at])) for at in (0, 1))  # type: ignore[misc]
    return [
        row.cell.name,
        row.target.name,
        f"{median(per_s):.0f} ({max(per_s):.0f})",
        f"{row.quantile('p50'):.2f}",
        f"{row.quantile('p99'):.2f}",
        str(row.failed),
        f"{median(loop):.0f} ({min(loop):.0f})",
        f"{max(0.0, median(threads)):.0f}",
        f"{median(child):.0f}",
        " + ".join(f"{max(size):.0f}" for size in sizes),
        f"{row.load_share:.0%}",
        ", ".join(f"{share:.0%}" for share in strangers),
    ]


def fresh_table(found: Sequence[Fresh]) -> str:
    """Markdown: every fresh gateway's ratios."""
    lines = (
        [
            f"{one.of}, {one.kind}",
            f"{one.start_s:.2f}",
            f"{one.ratios[0]:.3f}",
            ", ".join(f"{ratio:.3f}" for ratio in one.ratios[1:]),
        ]
        for one in found
    )
    head = ["64 paced streams ÷ direct", "start s", "fresh", "after each saturation"]
    return table(head, lines)


def held_table(found: Sequence[Held]) -> str:
    """Markdown: the streams held open."""
    lines = (
        [
            f"{one.of}, {one.kind}",
            str(one.streams),
            str(one.whole),
            f"{one.kb:.1f}",
            f"{one.rss_mb:.0f}",
            f"{one.cpu_share:.0%}",
            f"{one.event_us:.0f}",
        ]
        for one in found
    )
    head = [
        "streams held open",
        "open",
        "whole",
        "KB each",
        "MB in all",
        "of its core",
        "CPU µs an event",
    ]
    return table(head, lines)
