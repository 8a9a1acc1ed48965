"""The forecast by which each job was dispatched, and τ of a run's forecasts against the truth.
Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from gateway.workbench.figures import kendall_tau
from gateway.workbench.tables import table as table_of
from tests.bench.prompts import Prompt

TAUS = ("used", "stage 0", "at the end", "full")
FEWEST = 30  # jobs whose order says something


class JobForecasts(Struct):
    """The forecasts of one job, as p50 in output tokens."""

    stage0: float
    used: float
    last: float
    rung: str  # of what was used
    queue_s: float | None = None  # None: never dispatched
    ok: bool = False


class Used(Struct, frozen=True):
    """Figures of the run at one rate."""

    rate: int
    order: str
    compared: int
    asked: int
    failed: int
    waited: float  # share of those compared
    wait_s: tuple[float, float]  # p50, p99
    tau: Mapping[str, float]  # used, stage 0, at the end, full
    tau_waited: Mapping[str, float]  # the same of jobs that waited
    rungs: Mapping[str, float]  # share of what was used
    refined: float  # share whose forecast changed before dispatch
    predictor: Mapping[str, Any]  # its counts at the end
    gateway_share: tuple[float, ...]  # of the core: the process's own, its predictor's
    load_share: float

    def ratio(self, taus: Mapping[str, float]) -> float:
        """used / full; NaN without a full τ above 0."""
        return taus["used"] / taus["full"] if taus["full"] > 0 else float("nan")


def job_forecasts(events: Iterable[Mapping[str, Any]]) -> dict[str, JobForecasts]:
    """The forecasts of each job, from the journal's events in their order."""
    jobs: dict[str, JobForecasts] = {}
    for event in events:
        kind, detail = event["event"], event.get("detail", {})
        if kind == "submitted":
            p50 = detail["p50"]
            jobs[event["job"]] = JobForecasts(p50, p50, p50, detail["rung"])
            continue
        job = jobs.get(event.get("job") or "")
        if job is None:
            continue
        if kind == "reforecast":
            job.last = detail["p50"]
            if job.queue_s is None:
                job.used, job.rung = detail["p50"], detail["rung"]
        elif kind == "dispatched" and job.queue_s is None:
            job.queue_s = detail["queue_s"]
        elif kind == "finished":
            job.ok = detail["outcome"] == "ok"
    return jobs


def taus(
    which: Sequence[str],
    jobs: Mapping[str, JobForecasts],
    full: Mapping[str, float],
    asked: Mapping[str, Prompt],
) -> dict[str, float]:
    """By TAUS; NaN of fewer than FEWEST jobs."""
    truth = np.array([asked[j].output_tokens for j in which], np.float64)

    def tau(said: list[float]) -> float:
        found = kendall_tau(np.array(said, np.float64), truth)
        return float("nan") if found is None or len(which) < FEWEST else found

    return {
        "used": tau([jobs[j].used for j in which]),
        "stage 0": tau([jobs[j].stage0 for j in which]),
        "at the end": tau([jobs[j].last for j in which]),
        "full": tau([full[j] for j in which]),
    }


def table(found: Sequence[Used]) -> str:
    """Markdown: the forecasts, then what the predictor came to do."""
    forecasts = table_of(
        [
            *("req/s", "order", "compared (asked, failed)", "waited", "wait p50, p99 s"),
            *(f"τ {name}" for name in TAUS),
            *("used / full", "the same, those that waited"),
        ],
        map(_forecasts, found),
    )
    work = table_of(
        [
            *("req/s", "order", "better forecast in time", "rungs of what was used"),
            *(
                "skipped late",
                "queue full",
                "lessons learned, counted only, lost",
                "repeats from cache",
            ),
            *("core: gateway + predictor", "core: load"),
        ],
        map(_work, found),
    )
    return f"{forecasts}\n\n{work}"


def _forecasts(one: Used) -> list[str]:
    waited = one.tau_waited
    return [
        str(one.rate),
        one.order,
        f"{one.compared} ({one.asked}, {one.failed})",
        f"{one.waited:.0%}",
        f"{one.wait_s[0]:.2f}, {one.wait_s[1]:.2f}",
        *(f"{one.tau[name]:.3f}" for name in TAUS),
        f"{one.ratio(one.tau):.2f}",
        f"{one.ratio(waited):.2f} ({waited['used']:.3f} / {waited['full']:.3f})",
    ]


def _work(one: Used) -> list[str]:
    of = one.predictor
    return [
        str(one.rate),
        one.order,
        f"{one.refined:.0%}",
        ", ".join(f"{rung} {share:.1%}" for rung, share in one.rungs.items()),
        str(of["skipped_late"]),
        str(of["dropped_full"]),
        f"{of['learned']}, {of['sampled_out']}, {of['learn_lost']}",
        str(of["cache_hits"]),
        " + ".join(f"{share:.0%}" for share in one.gateway_share),
        f"{one.load_share:.0%}",
    ]
