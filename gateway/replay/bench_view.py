"""What the gateway itself says of a volley: how good its forecasts were, and its window.

A missed goal is the forecast's, the window's or the order's; these figures tell which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gateway.replay.evaluate_figures import Floats, kendall_tau
from gateway.replay.simulate_metrics import percentile
from gateway.types import SHORT_TOKENS


def seen(events: Sequence[Mapping[str, Any]], account: Mapping[str, Any]) -> dict[str, float]:
    """Figures of the requests whose end is among `events` (GET /events, oldest first), and of
    the `account` (GET /_stats) they ran on. Seconds are the wall's."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    truth: dict[str, float] = {}
    waits: dict[str, float] = {}
    for event in events:
        job, detail = event.get("job"), event.get("detail", {})
        if job is None:
            continue
        match event["event"]:
            case "submitted":
                first[job] = last[job] = detail["p50"]
            case "reforecast":
                last[job] = detail["p50"]
            case "finished" if detail.get("output_tokens"):
                truth[job] = detail["output_tokens"]
                waits[job] = detail["queue_s"]
    known = [job for job in truth if job in first]
    tokens = np.array([truth[job] for job in known], float)
    short_waits = np.array([waits[job] for job in known if truth[job] <= SHORT_TOKENS])
    windows = account.get("windows") or [{}]
    return {
        "forecast_tau": _tau([last[job] for job in known], tokens),
        "first_forecast_tau": _tau([first[job] for job in known], tokens),
        "short_queue_p50_s": percentile(short_waits, 50),
        "window_end": float(windows[0].get("window", float("nan"))),
    }


def _tau(said: Sequence[float], truth: Floats) -> float:
    tau = kendall_tau(np.array(said, float), truth)
    return float("nan") if tau is None else tau
