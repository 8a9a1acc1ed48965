"""What the gateway itself says of a volley: how good its forecasts were, and its window.

A missed goal is the forecast's, the window's or the order's; these figures tell which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gateway.types import SHORT_TOKENS
from gateway.workbench.figures import Floats, auc, kendall_tau, percentile


def seen(events: Sequence[Mapping[str, Any]], account: Mapping[str, Any]) -> dict[str, float]:
    """Figures of the requests whose end is among `events` (GET /events, oldest first), and of
    the `account` (GET /_stats) they ran on. Seconds are the wall's."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    p_short: dict[str, float] = {}
    truth: dict[str, float] = {}
    waits: dict[str, float] = {}
    for event in events:
        job, detail = event.get("job"), event.get("detail", {})
        if job is None:
            continue
        match event["event"]:
            case "submitted":
                first[job] = last[job] = detail["p50"]
                p_short[job] = detail["p_short"]
            case "reforecast":
                last[job], p_short[job] = detail["p50"], detail["p_short"]
            case "finished" if detail.get("output_tokens"):
                truth[job] = detail["output_tokens"]
                waits[job] = detail["queue_s"]
    known = [job for job in truth if job in first]
    tokens = np.array([truth[job] for job in known], float)
    short = tokens <= SHORT_TOKENS
    short_waits = np.array([waits[job] for job in known])[short]
    windows = account.get("windows") or [{}]
    return {
        "forecast_tau": _tau([last[job] for job in known], tokens),
        "first_forecast_tau": _tau([first[job] for job in known], tokens),
        "short_auc": _or_nan(auc(np.array([p_short[job] for job in known], float), short)),
        "short_queue_p50_s": percentile(short_waits, 50),
        "window_end": float(windows[0].get("window", float("nan"))),
    }


def _tau(said: Sequence[float], truth: Floats) -> float:
    return _or_nan(kendall_tau(np.array(said, float), truth))


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
