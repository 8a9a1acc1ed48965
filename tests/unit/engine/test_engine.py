"""Permits and engine in a debugger."""

from __future__ import annotations

import asyncio

from gateway.balance.accounts import Accounts
from gateway.engine.engine import Engine
from gateway.schedule.scheduler import Scheduler
from gateway.settings.schema import Settings
from gateway.types import Outcome, Verdict
from tests.unit.schedule.build import job, settings


def test_reprs_name_job_state_and_faults() -> None:
    """A permit shows its job and account or outcome, the engine its jobs and its core's state."""

    def build(given: Settings, old: Scheduler | None) -> Scheduler:
        return Scheduler(given, Accounts(given.accounts, given.balance))

    async def play() -> list[str]:
        engine = Engine(build(settings({"a": {"initial_concurrency": 1}}), None), build)
        first, second = (engine.submit(job(name, at=engine.clock()), 0) for name in ("one", "two"))
        shown = [repr(first), repr(second), repr(engine)]
        first.end(Outcome.OK, Verdict.SUCCESS)
        engine.drain()
        shown += [repr(first), repr(engine)]
        engine.close()
        return shown

    assert asyncio.run(play()) == [
        "<Permit one on a, 1 attempts>",
        "<Permit two waiting, 0 attempts>",
        "<Engine 2 jobs, <Failsafe sound, 0 rebuilds, 0 jobs around>>",
        "<Permit one ok, 1 attempts>",
        "<Engine 1 jobs, draining, <Failsafe sound, 0 rebuilds, 0 jobs around>>",
    ]
