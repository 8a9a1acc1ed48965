"""The replay: nobody knows a truth before it was asked for a forecast."""

from __future__ import annotations

import pytest

from gateway.types import Rung, Workload
from gateway.workbench.evaluate.judged_rows import Case
from gateway.workbench.evaluate.row_replay import (
    BLOCK,
    DRIFT_ROWS,
    RUNGS,
    doubled,
    drifting,
    replay,
    replay_young,
)
from tests.unit.workbench.evaluate_cases import case


class Witness:
    """A forecaster that writes down the order of what happens to it."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def forecast(self, of: Case) -> Workload:
        self.events.append(("forecast", of.seq))
        value = float(of.seq)
        return Workload(
            prompt_tokens=1,
            p50=value,
            p90=value,
            grid=(value,) * 7,
            p_short=0.25,
            cost_p50=0.0,
            cost_p90=0.0,
            risk=0.5,
            confidence=0.75,
            rung=Rung.GLOBAL_NEIGHBORS,
        )

    def learn(self, of: Case) -> None:
        self.events.append(("learn", of.seq))


def test_strict_replay_learns_each_row_before_the_next_is_forecast() -> None:
    """A strict replay alternates between forecast and learning."""
    witness = Witness()
    replay([case(i) for i in range(4)], witness)
    assert witness.events == [
        *(("forecast", 0), ("learn", 0), ("forecast", 1), ("learn", 1)),
        *(("forecast", 2), ("learn", 2), ("forecast", 3)),
    ]


@pytest.mark.parametrize("in_flight", [0, 1, 5, 100])
def test_replay_learns_only_what_was_forecast(in_flight: int) -> None:
    """A row is learned after its forecast and after `in_flight` later ones."""
    witness = Witness()
    replay([case(i) for i in range(20)], witness, in_flight)
    order = {event: place for place, event in enumerate(witness.events)}
    learned = [seq for what, seq in witness.events if what == "learn"]
    assert learned == list(range(max(0, 19 - in_flight)))
    for seq in learned:
        assert order["learn", seq] > order["forecast", seq + in_flight]
        assert order["learn", seq] < order["forecast", seq + in_flight + 1]


def test_replay_records_each_forecast() -> None:
    """Each forecast is in its row, with the time it took; `at` takes some of the rows."""
    result = replay([case(i) for i in range(5)], Witness())
    assert result.grid[:, 3].tolist() == [0, 1, 2, 3, 4]
    assert set(result.p_short) == {0.25}
    assert {RUNGS[place] for place in result.rung} == {Rung.GLOBAL_NEIGHBORS}
    assert (result.seconds >= 0).all()


def test_drift_doubles_the_last_rows_of_one_source() -> None:
    """Only the last DRIFT_ROWS and their limits double; the control has the same rows undoubled."""
    cases = [case(i, 10 + i, max_tokens=500 if i % 4 == 0 else None) for i in range(800)]
    own = [each for each in cases if each.source == "left"]
    drifted, control = (drifting(cases, "left", drifts=yes) for yes in (True, False))
    assert control == own
    assert drifted[:-DRIFT_ROWS] == own[:-DRIFT_ROWS]
    assert drifted[-DRIFT_ROWS:] == [doubled(each) for each in own[-DRIFT_ROWS:]]
    assert doubled(cases[4]).output_tokens == 28
    assert doubled(cases[4]).view.max_tokens == 1000
    assert doubled(cases[5]).view.max_tokens is None


def test_young_forecasters_know_no_more_than_they_were_taught() -> None:
    """A block's forecaster has learned so many rows of other blocks, and each row is forecast once,
    in its place."""
    witnesses: list[Witness] = []

    def fresh() -> Witness:
        witnesses.append(Witness())
        return witnesses[-1]

    result = replay_young([case(i) for i in range(BLOCK + 50)], fresh, 30, in_flight=10**6)
    assert result.grid[:, 3].tolist() == list(range(BLOCK + 50))
    blocks = []
    for witness in witnesses:
        taught = {seq for what, seq in witness.events if what == "learn"}
        block = [seq for what, seq in witness.events if what == "forecast"]
        assert len(taught) == 30
        assert witness.events[:30] == [("learn", seq) for _, seq in witness.events[:30]]
        assert not taught & set(block)
        blocks.append(block)
    assert [len(block) for block in blocks] == [BLOCK, 50]
    assert sorted(seq for block in blocks for seq in block) == list(range(BLOCK + 50))
