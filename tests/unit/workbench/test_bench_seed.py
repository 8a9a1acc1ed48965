"""Figures of a seed from the gateway's journal."""

from __future__ import annotations

import math
from typing import Any

from gateway.workbench.bench.bench_seed import gateway_figures


def life(job: str, first: float, last: float | None, tokens: int, queue_s: float) -> list[Any]:
    forecast = {"p50": first, "p_short": 1.0 / first}
    events = [{"event": "submitted", "job": job, "detail": forecast}]
    if last is not None:
        forecast = {"p50": last, "p_short": 1.0 / last}
        events.append({"event": "reforecast", "job": job, "detail": forecast})
    detail = {"output_tokens": tokens, "queue_s": queue_s}
    return [*events, {"event": "finished", "job": job, "detail": detail}]


def test_gateway_figures_judge_first_and_last_forecasts() -> None:
    """Both orders are judged; a job without a better forecast keeps its first."""
    events = [
        *life("a", 30, 10, 10, 0.0),
        *life("b", 20, None, 20, 0.5),
        *life("c", 10, 30, 300, 9.0),
        {"event": "mode", "pool": "m", "detail": {}},
    ]
    found = gateway_figures(events, {"windows": [{"window": 12.0}]})
    assert found["first_forecast_tau"] == -1.0
    assert found["forecast_tau"] == 1.0
    assert found["short_auc"] == 1.0  # the last chance of being short, too
    assert found["short_queue_p50_s"] == 0.25  # the heavy one's wait is not a short's
    assert found["window_end"] == 12.0


def test_gateway_figures_leave_out_incomplete_jobs() -> None:
    """Jobs submitted before the events begin, or without an answer, do not count; none is NaN."""
    began_before = life("a", 1, None, 5, 0.0)[1:]
    unanswered = [{"event": "finished", "job": "b", "detail": {"outcome": "client_gone"}}]
    found = gateway_figures([*began_before, *unanswered], {})
    assert all(math.isnan(value) for value in found.values())
