"""The trust in forecasts follows the share of answers within their p90."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from gateway.balance.accounts import Accounts
from gateway.engine.engine import Engine
from gateway.engine.forecast_trust import SURE, ForecastTrust
from gateway.schedule.events import Recalibrated
from gateway.schedule.scheduler import Scheduler
from gateway.types import CUT_FINISH_REASONS, JobRecord, Outcome, Usage
from tests.unit.schedule.build import job, settings, workload


def answer(tokens: int, **more: object) -> JobRecord:
    """The record of an answer of so many tokens whose forecast's p90 was 100."""
    record = JobRecord(
        id="j", wall_s=0.0, route="/v1/chat/completions", tenant="t", model="m",
        outcome=Outcome.OK, status=200, workload=workload(100), usage=Usage(10, tokens),
    )  # fmt: skip
    return replace(record, **more)


def trust_after(covered: float, **more: object) -> tuple[float, list[float]]:
    reported: list[float] = []
    trust = ForecastTrust(reported.append)
    held = 0
    for i in range(1, 401):  # spread evenly
        if held < covered * i:
            held += 1
            trust.ended(answer(50, **more))
        else:
            trust.ended(answer(500, **more))
    return trust.value, reported


@pytest.mark.parametrize(
    ("covered", "low", "high"), [(0.9, 1.0, 1.0), (0.7, 0.3, 0.7), (0.4, 0.0, 0.0), (1.0, 0.8, 1.0)]
)
def test_trust_falls_with_coverage(covered: float, low: float, high: float) -> None:
    """The trust is full at a coverage of 0.9 and none where hardly any forecast holds; each step is
    reported once."""
    value, reported = trust_after(covered)
    assert low <= value <= high
    assert len(reported) < 40
    assert not reported or reported[-1] == value


@pytest.mark.parametrize(
    "more",
    [
        {"outcome": Outcome.CANCELLED},
        *({"finish_reason": reason} for reason in sorted(CUT_FINISH_REASONS)),
        {"usage": Usage(10, 500, estimated=True)},
        {"usage": None},
        {"workload": None},
    ],
)
def test_trust_leaves_out_answers_without_a_true_length(more: dict[str, object]) -> None:
    """Cut, cancelled and uncounted answers, and those without a forecast, change nothing."""
    assert trust_after(0.0, **more) == (1.0, [])


def test_trust_is_full_at_a_cold_start() -> None:
    """Misses among the first answers do not lower it."""
    trust = ForecastTrust(lambda value: None)
    for _ in range(int(SURE) - 1):
        trust.ended(answer(500))
    assert trust.value == 1.0


def test_trust_comes_back() -> None:
    """The trust returns to full once forecasts hold again."""
    reported: list[float] = []
    trust = ForecastTrust(reported.append)
    for _ in range(200):
        trust.ended(answer(500))
    assert trust.value == 0.0
    for i in range(1500):
        trust.ended(answer(500 if i % 10 == 0 else 50))
    assert trust.value == reported[-1] == 1.0


def test_trust_that_is_lost_widens_windows_through_the_engine() -> None:
    """Answers that leave their forecasts make the engine's core widen its windows and start jobs
    that waited for them."""

    async def play() -> None:
        account = {"initial_concurrency": 4, "max_concurrency": 64}
        given = settings({"a": account}, balance={"window": "auto"})
        accounts = Accounts(given.accounts, given.balance)
        accounts._accounts["a"].limit.value = 64.0
        core = Scheduler(given, accounts)
        engine = Engine(core, lambda given, old: core, clock=lambda: 0.0)
        trust = ForecastTrust(lambda value: engine.feed(Recalibrated(value)))
        engine.listeners.replace((trust,))
        permits = [engine.submit(job(f"j{n}", 300), 0) for n in range(8)]
        assert sum(permit.account is not None for permit in permits) == 4
        for _ in range(200):
            engine.ended(answer(500))
        assert trust.value == core.trust == 0.0
        assert sum(permit.account is not None for permit in permits) == 6
        assert engine.snapshot().accounts[0].windows[0].window == 6.0
        engine.check()
        engine.close()

    asyncio.run(play())
