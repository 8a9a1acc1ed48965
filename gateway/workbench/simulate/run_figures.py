"""Figures of one run.

Short is ≤ 64 tokens and heavy > 256, by true length. Short by forecast stands beside it, since
a short answer taken for a long one ruins a tail. Percentiles interpolate linearly. A deadline is
1 s + 4 × the request's time alone at the unloaded provider; a request not answered in full has
missed it. Times are of completed requests only, so read `completed` first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.types import MEDIUM_TOKENS, SHORT_TOKENS, SizeBucket
from gateway.workbench.figures import NAN, Floats, percentile
from gateway.workbench.simulate.virtual_loop import RequestResult

DEADLINE_S, DEADLINE_TIMES = 1.0, 4.0

COUNTS = frozenset({"deadline_misses", "completed", "rejections_429", "goodput_per_s"})
"""Figures that may be 0 in a seed: two policies are compared by sums over the seeds."""


def figures(results: Sequence[RequestResult]) -> dict[str, float]:
    """Seconds, ratios and counts; NaN where there is nothing to measure."""
    done = [r for r in results if r.completed]
    latency = np.array([r.latency_s for r in done])
    wait = np.array([r.wait_s for r in done])
    alone = np.array([r.request.alone_s for r in done])
    tokens = np.array([r.request.row.output_tokens for r in done])
    forecast_short = np.array(
        [r.request.row.forecast.size_bucket is SizeBucket.SHORT for r in done], bool
    )
    short, heavy = tokens <= SHORT_TOKENS, tokens > MEDIUM_TOKENS
    met = int((latency <= DEADLINE_S + DEADLINE_TIMES * alone).sum())
    makespan_s = max(r.ended_s for r in results) - min(r.request.arrived_s for r in results)
    return {
        "short_mean_s": _mean(latency[short]),
        "short_p50_s": percentile(latency[short], 50),
        "short_p95_s": percentile(latency[short], 95),
        "short_alone_p50_s": percentile(alone[short], 50),
        "short_alone_p95_s": percentile(alone[short], 95),
        "short_by_forecast_p95_s": percentile(latency[forecast_short], 95),
        "heavy_p50_s": percentile(latency[heavy], 50),
        "heavy_p95_s": percentile(latency[heavy], 95),
        "p50_s": percentile(latency, 50),
        "p95_s": percentile(latency, 95),
        "p99_s": percentile(latency, 99),
        "mean_s": _mean(latency),
        "makespan_s": makespan_s,
        "deadline_misses": 1.0 - met / len(results),
        "goodput_per_s": met / makespan_s if makespan_s > 0 else NAN,
        "completed": len(done) / len(results),
        "slowdown_mean": _mean(latency / alone),
        "slowdown_p95": percentile(latency / alone, 95),
        "wait_mean_s": _mean(wait),
        "wait_max_s": float(wait.max()) if len(wait) else NAN,
        "rejections_429": float(sum(r.rejections for r in results)),
    }


def tenants_p95(results: Sequence[RequestResult]) -> dict[str, float]:
    """P95 latency in seconds, by tenant."""
    names = dict.fromkeys(r.request.tenant for r in results)
    return {
        name: percentile(
            np.array([r.latency_s for r in results if r.completed and r.request.tenant == name]), 95
        )
        for name in names
    }


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else NAN
