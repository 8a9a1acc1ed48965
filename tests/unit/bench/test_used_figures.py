"""The forecast that counts as used, and the τ of used forecasts."""

from __future__ import annotations

from math import isnan, nan
from typing import Any

import pytest

from tests.bench.prompts import Prompt
from tests.bench.used_figures import FEWEST, TAUS, JobForecasts, job_forecasts, taus

Event = dict[str, Any]


def event(kind: str, job: str = "a", **detail: Any) -> Event:
    return {"event": kind, "job": job, "wall_s": 0.0, "detail": detail}


BEFORE = event("reforecast", p50=20.0, rung="model_only")
DISPATCHED = event("dispatched", queue_s=0.5)
AFTER = event("reforecast", p50=30.0, rung="tenant_neighbors")


def life(*between: Event) -> list[Event]:
    begin = event("submitted", p50=10.0, rung="heuristic")
    return [begin, *between, event("finished", outcome="ok")]


def test_used_forecast_is_the_last_before_dispatch() -> None:
    """A forecast that comes after the dispatch is the job's last one, but not the used one."""
    found = job_forecasts(life(BEFORE, DISPATCHED, AFTER))["a"]
    assert found == JobForecasts(10.0, 20.0, 30.0, "model_only", 0.5, True)


def test_used_forecast_of_a_job_that_starts_at_once_is_stage_0() -> None:
    """The twin: the same forecasts after dispatch leave the first in use."""
    found = job_forecasts(life(DISPATCHED, BEFORE, AFTER))["a"]
    assert found == JobForecasts(10.0, 10.0, 30.0, "heuristic", 0.5, True)


def test_job_forecasts_count_the_first_dispatch_alone() -> None:
    """A retry's dispatch changes neither the wait nor what was used."""
    again = event("dispatched", queue_s=9.0)
    found = job_forecasts(life(DISPATCHED, AFTER, again))["a"]
    assert (found.queue_s, found.used) == (0.5, 10.0)


def test_job_forecasts_ignore_what_is_no_job_of_ours() -> None:
    """Events without a job, or of one submitted before the journal began, say nothing."""
    strange = {"event": "mode", "wall_s": 0.0}
    assert job_forecasts([strange, event("finished", "b", outcome="ok")]) == {}


def made(count: int) -> tuple[list[str], dict[str, JobForecasts], dict[str, Prompt]]:
    """Jobs whose used forecast is the truth and whose stage 0 is its opposite."""
    names = [f"job {i}" for i in range(count)]
    lengths = [10 * (i + 1) for i in range(count)]
    pairs = list(zip(names, lengths, strict=True))
    jobs = {name: JobForecasts(-tokens, tokens, 1.0, "") for name, tokens in pairs}
    asked = {name: Prompt(b"", "m", tokens, False) for name, tokens in pairs}
    return names, jobs, asked


def test_taus_compare_each_forecast_with_the_truth() -> None:
    """1 for the truth's order, −1 for its opposite, 0 for a constant."""
    names, jobs, asked = made(FEWEST)
    found = taus(names, jobs, dict.fromkeys(names, 5.0), asked)
    assert found == pytest.approx({"used": 1.0, "stage 0": -1.0, "at the end": 0.0, "full": 0.0})


def test_taus_of_a_few_jobs_are_none() -> None:
    """τ of a handful of jobs is None, since it means nothing."""
    names, jobs, asked = made(FEWEST - 1)
    found = taus(names, jobs, dict.fromkeys(names, nan), asked)
    assert all(isnan(found[name]) for name in TAUS)
