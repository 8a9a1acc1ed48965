"""The shadow scheduler gets the events and the trust of the one that relays."""

from __future__ import annotations

import pytest

from gateway.balance.accounts import Accounts
from gateway.engine.shadow import Shadow
from gateway.schedule.scheduler import Scheduler
from gateway.settings.schema import Settings
from gateway.types import JobRecord, ObservedRow, Outcome, Usage
from tests.unit.schedule.build import job, settings


def record(job_id: str, tokens: int) -> JobRecord:
    """The record of a job that was relayed for a second."""
    return JobRecord(
        id=job_id, wall_s=0.0, route="/v1/chat/completions", tenant="t", model="m",
        outcome=Outcome.OK, status=200, account="a", usage=Usage(10, tokens), upstream_s=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(("trust", "first"), [(1.0, "small"), (0.0, "large")])
def test_shadow_orders_by_the_trust_in_forecasts(trust: float, first: str) -> None:
    """At full trust the smaller job would go first, at no trust the one that came first."""

    def build(given: Settings) -> Scheduler:
        return Scheduler(given, Accounts(given.accounts, given.balance))

    now = 0.0
    rows: list[ObservedRow] = []
    given = settings({"a": {"initial_concurrency": 1}}, schedule={"mode": "observe"})
    shadow = Shadow(given, build, lambda: (), lambda: now, rows.append)
    shadow.recalibrated(trust)
    for name, tokens in (("runs", 300), ("large", 3000), ("small", 100)):
        shadow.submitted(job(name, tokens))
    now = 1.0
    for name, tokens in (("runs", 300), ("large", 3000), ("small", 100)):
        shadow.ended(record(name, tokens))
    now = 10.0
    shadow.tick()
    assert not shadow.broken
    waits = {row.output_tokens: row.would_wait_s for row in rows}
    assert waits == {300: 0.0} | (
        {100: 1.0, 3000: 2.0} if first == "small" else {3000: 1.0, 100: 2.0}
    )
