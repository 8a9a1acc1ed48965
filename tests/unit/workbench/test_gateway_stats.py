"""What the gateway's journal says of a volley."""

from __future__ import annotations

import math
from typing import Any

from gateway.workbench.bench.gateway_stats import seen


def life(job: str, first: float, last: float | None, tokens: int, queue_s: float) -> list[Any]:
    said = {"p50": first, "p_short": 1.0 / first}
    events = [{"event": "submitted", "job": job, "detail": said}]
    if last is not None:
        said = {"p50": last, "p_short": 1.0 / last}
        events.append({"event": "reforecast", "job": job, "detail": said})
    detail = {"output_tokens": tokens, "queue_s": queue_s}
    return [*events, {"event": "finished", "job": job, "detail": detail}]


def test_seen_tells_the_first_forecasts_from_the_last() -> None:
    """Both orders are told; a job without a better forecast keeps its first."""
    events = [
        *life("a", 30, 10, 10, 0.0),
        *life("b", 20, None, 20, 0.5),
        *life("c", 10, 30, 300, 9.0),
        {"event": "mode", "pool": "m", "detail": {}},
    ]
    found = seen(events, {"windows": [{"window": 12.0}]})
    assert found["first_forecast_tau"] == -1.0
    assert found["forecast_tau"] == 1.0
    assert found["short_auc"] == 1.0  # the last chance of being short, too
    assert found["short_queue_p50_s"] == 0.25  # the heavy one's wait is not a short's
    assert found["window_end"] == 12.0


def test_seen_leaves_out_what_it_saw_half() -> None:
    """Who came before the journal's stretch, or got no answer; nothing to tell is NaN."""
    began_before = life("a", 1, None, 5, 0.0)[1:]
    unanswered = [{"event": "finished", "job": "b", "detail": {"outcome": "client_gone"}}]
    found = seen([*began_before, *unanswered], {})
    assert all(math.isnan(value) for value in found.values())
