"""Trust in forecasts follows how often their p90 held."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gateway.engine.trust import SURE, Trust
from gateway.types import JobRecord, Outcome, Usage
from tests.unit.schedule.build import workload


def answer(tokens: int, **more: object) -> JobRecord:
    """An answer of so many tokens whose forecast's p90 was 100."""
    record = JobRecord(
        id="j", wall_s=0.0, route="/v1/chat/completions", tenant="t", model="m",
        outcome=Outcome.OK, status=200, workload=workload(100), usage=Usage(10, tokens),
    )  # fmt: skip
    return replace(record, **more)


def trust_after(covered: float, **more: object) -> tuple[float, list[float]]:
    told: list[float] = []
    trust = Trust(told.append)
    held = 0
    for i in range(1, 401):  # spread evenly
        if held < covered * i:
            held += 1
            trust.ended(answer(50, **more))
        else:
            trust.ended(answer(500, **more))
    return trust.value, told


@pytest.mark.parametrize(
    ("covered", "low", "high"), [(0.9, 1.0, 1.0), (0.7, 0.3, 0.7), (0.4, 0.0, 0.0), (1.0, 0.8, 1.0)]
)
def test_trust_falls_with_coverage(covered: float, low: float, high: float) -> None:
    """Full at nine of ten, none where hardly any holds; each step told once."""
    value, told = trust_after(covered)
    assert low <= value <= high
    assert len(told) < 40
    assert not told or told[-1] == value


@pytest.mark.parametrize(
    "more",
    [
        {"outcome": Outcome.CANCELLED},
        {"finish_reason": "length"},
        {"usage": Usage(10, 500, estimated=True)},
        {"usage": None},
        {"workload": None},
    ],
)
def test_trust_learns_nothing_from_what_says_nothing(more: dict[str, object]) -> None:
    """Cut, cancelled, uncounted, without a forecast."""
    assert trust_after(0.0, **more) == (1.0, [])


def test_trust_is_whole_at_a_cold_start() -> None:
    """A few misses are no news."""
    trust = Trust(lambda value: None)
    for _ in range(int(SURE) - 1):
        trust.ended(answer(500))
    assert trust.value == 1.0


def test_trust_comes_back() -> None:
    """When forecasts hold again."""
    told: list[float] = []
    trust = Trust(told.append)
    for _ in range(200):
        trust.ended(answer(500))
    assert trust.value == 0.0
    for i in range(1500):
        trust.ended(answer(500 if i % 10 == 0 else 50))
    assert trust.value == told[-1] == 1.0
