"""Quality of the forecasts that decide something, at given rates on one core.

Gateway and predictor share one core; load generator and provider the other. Requests come at
Poisson times, more than the provider serves, so that jobs wait and forecasts have an order to
decide: at every rate by so much that, first come, first served, the last would wait 4 s (half
the run where it is shorter than 8 s). The forecasts of each job and their times are read from the
gateway's journal afterwards (`GET /events`), so nothing watches while it is measured.

- *used*: the last forecast before a job's first dispatch: what its place in the queue and its
  reserve rested on. A job that can start at once is dispatched by its first forecast; the
  share that waited stands beside, and the same figure for those alone. In the shipped order
  short jobs hardly wait; served first come, first served, all wait alike and give the
  predictor the time it needs: both are measured.
- *stage 0*: the first forecast, made on the event loop as the request comes in.
- *at the end*: the last forecast before the answer was complete.
- *full*: the whole predictor, unhurried: the journal's events once more, in their order, a full
  forecast for each request as it comes and each answer learned as it ended.

τ is Kendall's τ-b of p50 against the true length, of answers that were not cut.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from msgspec import Struct

from gateway.predict.artefacts import Artefacts
from gateway.predict.lesson import Lesson
from gateway.predict.teaching import LearningForecaster
from gateway.settings.schema import Predict
from gateway.types import HistoryRow
from tests.bench.cores import check_load, children, on_core
from tests.bench.full_window import artefacts, wait_full
from tests.bench.prompts import Prompt, models
from tests.bench.used_figures import Used, job_forecasts, taus
from tests.kit.gateway import ROOT, TENANT_KEY, GatewayProcess, account

RATES = (50, 200, 500)
LAST_WAIT_S = 4.0  # first come, first served; it grows evenly up to that
MEAN_S, CAP_S = 1.0, 8.0  # of service: 300 tokens a second, and nobody longer than the cap
ORDERS: Mapping[str, Mapping[str, float]] = {
    "as shipped": {},
    "first come": {"max_overtake_s": 0.0},
}
EVENTS = 100_000
WAITED_S = 0.001
TENANT = "kit"


def unhurried(
    events: Iterable[Mapping[str, Any]],
    asked: Mapping[str, Prompt],
    whole: Artefacts,
    history: Sequence[HistoryRow],
) -> dict[str, float]:
    """p50 by job, of a predictor that has time for everything."""
    settings = Predict()
    forecaster = LearningForecaster(settings, whole, b"bench", {})
    for row in history[-settings.history_window_size :]:
        forecaster.remember(row)
    found: dict[str, float] = {}
    for event in events:
        prompt = asked.get(event.get("job") or "")
        if prompt is None or event["event"] not in ("submitted", "finished"):
            continue
        view = prompt.view(TENANT, settings.max_chars)
        if event["event"] == "submitted":
            found[event["job"]] = forecaster.forecast(view).p50
        elif event["detail"]["outcome"] == "ok":
            lesson = Lesson(
                view=view,
                output_tokens=prompt.output_tokens,
                prompt_tokens=None,
                censored=prompt.censored,
                success=True,
                wall_s=event["wall_s"],
            )
            forecaster.learn(lesson)
    return found


def run(
    prompts: Sequence[Prompt],
    seconds: float,
    store: Path,
    history: Sequence[HistoryRow],
    cores: tuple[int, int],
    orders: Sequence[str] = tuple(ORDERS),
    rates: Sequence[int] = RATES,
) -> list[Used]:
    """Every rate with a gateway of its own, on the first prompts, `seconds` of them at most.

    Args:
        store, history: what each gateway begins with; the same rows.
        cores: of load and provider; of the gateway.
        orders: of ORDERS.
        rates: requests a second.

    Raises:
        Unfit: the load was too busy to be believed.
    """
    whole = artefacts()
    found = []
    for order, rate in product(orders, rates):
        sent = prompts[: max(50, round(rate * seconds))]
        with tempfile.TemporaryDirectory() as name:
            journal = _measured(rate, order, sent, store, Path(name), cores)
        found.append(_judged(rate, order, sent, journal, whole, history))
        sys.stderr.write(f"used at {rate}/s, {order}: {found[-1].tau}\n")
    return found


def token_s(prompts: Sequence[Prompt]) -> float:
    """Seconds a token so that a mean answer takes MEAN_S, none longer than CAP_S."""
    lengths = np.array([one.output_tokens for one in prompts], np.float64)
    low, high = 0.0, MEAN_S
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if np.minimum(lengths * middle, CAP_S).mean() > MEAN_S else (middle, high)
        )
    return high


class Journal(Struct, frozen=True):
    """The journal and the counts that one run leaves."""

    events: list[dict[str, Any]]
    report: dict[str, Any]  # the generator's
    predictor: dict[str, Any]  # its snapshot, at the end


def _measured(
    rate: int,
    order: str,
    prompts: Sequence[Prompt],
    store: Path,
    directory: Path,
    cores: tuple[int, int],
) -> Journal:
    load_core, gateway_core = cores
    bodies = directory / "bodies"
    bodies.write_bytes(b"\n".join(one.body for one in prompts))
    with ExitStack() as running:
        provider, port = _provider(running, prompts, load_core)
        gateway = _gateway(rate, order, prompts, directory, port)
        shutil.copy(store, directory / "sagesched.db")
        with on_core(gateway_core):
            running.enter_context(gateway)
        wait_full(gateway)
        assert gateway.process is not None
        pid = gateway.process.pid
        watched = [provider.pid, os.getpid(), pid, *children(pid)]
        command = [sys.executable, "-m", "tests.bench.row_load", "--port", str(gateway.port)]
        command += ["--key", TENANT_KEY, "--rate", str(rate), "--file", str(bodies)]
        command += ["--watch", ",".join(map(str, watched))]
        with on_core(load_core):
            done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, check=True)
        tail = _get(gateway, f"/events?since=0&n={EVENTS}")
        assert tail["dropped"] == 0, "the journal is too short"
        predictor = _get(gateway, "/stats")["predictor"]
        return Journal(tail["events"], json.loads(done.stdout), predictor)


def _provider(
    running: ExitStack, prompts: Sequence[Prompt], core: int
) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "tests.bench.timed_upstream", "--cap-s", str(CAP_S)]
    command += ["--token-us", str(1e6 * token_s(prompts))]
    with on_core(core):
        provider = running.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        )
    running.callback(provider.terminate)
    assert provider.stdout is not None
    return provider, int(provider.stdout.readline())


def _gateway(
    rate: int, order: str, prompts: Sequence[Prompt], directory: Path, port: int
) -> GatewayProcess:
    lasts_s = len(prompts) / rate
    served = rate * (1 - min(LAST_WAIT_S / lasts_s, 0.5))  # requests a second
    wide, slots = 1_000_000_000, max(2, round(served * MEAN_S))
    return GatewayProcess(
        directory,
        accounts=[
            account(
                f"http://127.0.0.1:{port}/v1",
                models=models(prompts),
                initial_concurrency=slots,
                max_concurrency=slots,
            )
        ],
        schedule={
            "interactive_inflight_tokens": wide,
            "heavy_inflight_tokens": wide,
            "max_queue_items": 100_000,
            **ORDERS[order],
        },
        predict={"enabled": True},
        observe={"events": EVENTS},
        start_timeout_s=60.0,
        stop_timeout_s=60.0,
    )


def _get(gateway: GatewayProcess, path: str) -> dict[str, Any]:
    answer = httpx.get(gateway.url(path), headers=gateway.admin_headers, timeout=60)
    tree: dict[str, Any] = answer.raise_for_status().json()
    return tree


def _judged(
    rate: int,
    order: str,
    prompts: Sequence[Prompt],
    journal: Journal,
    whole: Artefacts,
    history: Sequence[HistoryRow],
) -> Used:
    report, events = journal.report, journal.events
    provider, own, *gateway = report["shares"]
    load_share = report["own_share"] + provider + own
    check_load(load_share, f"{rate} requests/s")
    asked = {job: one for job, one in zip(report["ids"], prompts, strict=True) if job}
    full, jobs = unhurried(events, asked, whole, history), job_forecasts(events)
    known = [j for j, one in asked.items() if not one.censored and j in jobs and jobs[j].ok]
    late = [j for j in known if (jobs[j].queue_s or 0.0) > WAITED_S]
    waits = [jobs[j].queue_s or 0.0 for j in known] or [float("nan")]
    rungs = Counter(jobs[j].rung for j in known)
    return Used(
        rate=rate,
        order=order,
        compared=len(known),
        asked=len(prompts),
        failed=sum(status != 200 for status in report["statuses"]),
        waited=len(late) / max(1, len(known)),
        wait_s=(float(np.percentile(waits, 50)), float(np.percentile(waits, 99))),
        tau=taus(known, jobs, full, asked),
        tau_waited=taus(late, jobs, full, asked),
        rungs={rung: count / len(known) for rung, count in rungs.most_common()},
        refined=sum(jobs[j].used != jobs[j].stage0 for j in known) / max(1, len(known)),
        predictor=journal.predictor,
        gateway_share=tuple(gateway),
        load_share=load_share,
    )
