"""A goal's verdict, and the pooling of turns."""

from __future__ import annotations

import pytest

from tests.bench.cores import Spent
from tests.bench.load import quantiles
from tests.bench.overhead_figures import Figure, Goal, Measured, figures, goal_table
from tests.bench.turns import DIRECT, OFF, ON, Cell, Row, Target, Turn


@pytest.mark.parametrize(
    ("values", "all_turns", "verdict"),
    [
        ([1.0, 1.9, 9.0], None, "yes"),  # by the median
        ([1.9, 2.1, 2.2], None, "in the best turn"),
        ([2.1, 2.2], None, "no"),
        ([1.0, 1.0], 2.5, "in the best turn"),  # by all turns as one
        ([], None, "not measured"),
    ],
)
def test_a_goal_is_met_by_the_typical_turn(
    values: list[float], all_turns: float | None, verdict: str
) -> None:
    assert Figure("p99 ms", Goal(2.0, True), values, all_turns).verdict() == verdict


def test_a_goal_to_reach_is_met_from_its_bound_on() -> None:
    assert Goal(2000, False).met(2000)
    assert not Goal(2000, False).met(1999)
    assert Figure("req/s", Goal(2000, False), [1000.0, 3000.0]).best == 3000.0


def turn(per_s: float, *times_ms: float, loop_s: float = 0.0) -> Turn:
    times = {"total_ms": list(times_ms), "first_ms": list(times_ms)}
    report = {"per_s": per_s, "answered": len(times_ms), "failed": 0, "unsent": 0, "all_ms": times}
    report |= {name: quantiles([ms / 1000 for ms in all_ms]) for name, all_ms in times.items()}
    return Turn(report, Spent(loop_s, 0.0, 0.0), (1.0,), (0.0, 0.0), 0.0)


def row(cell: Cell, kind: str, *turns: Turn) -> Row:
    return Row(cell, Target(kind, 0, 0), list(turns))


def test_latencies_are_of_all_turns_requests_together() -> None:
    """A turn with few requests does not weigh as much as one with many."""
    cell = Cell("1 connection", ())
    direct = row(cell, DIRECT, turn(1, 1.0), turn(1, 1.0))
    through = row(cell, ON, turn(1, 2.0, 2.0, 2.0), turn(1, 9.0))
    through.direct = direct
    assert through.added_ms("p50") == pytest.approx(1.0)
    assert through.added_each_ms("p50") == pytest.approx([1.0, 8.0])


def test_figures_find_their_rows() -> None:
    """CPU is of the whole turn, over all that was answered in it."""
    cell = Cell("16 connections", ())
    measured = Measured(rows=[row(cell, OFF, turn(2900, 1.0, 1.0, loop_s=0.0006))])
    by = {figure.name: figure for figure in figures(measured, "this")}
    assert by["req/s at 16 connections, prediction off"].verdict() == "yes"
    assert by["req/s at 16 connections, prediction on"].verdict() == "not measured"
    spent = by["CPU ms a request at 16 connections, off, child included"]
    assert spent.typical == pytest.approx(0.3)


def test_the_table_has_a_column_for_each_revision() -> None:
    text = goal_table(Measured(queued_us={"this": [30.0, 34.0], "abc": [80.0]}), ["this", "abc"])
    assert (
        "| finish + dispatch at 10,000 queued, µs | ≤ 40 | yes | 32.0 (30.0) | 80.0 (80.0) |"
        in text
    )
