"""Pictures of a group: latencies, waits by size, and the window over one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gateway.types import MEDIUM_TOKENS, SHORT_TOKENS
from gateway.workbench.charts import COLOURS, Axis, Chart, Point
from gateway.workbench.simulate.cells import PolicyFigures

SHOWN = ("naive", "fifo", "dual_budget", "ours", "true")
POINTS = 200  # of a line
LOG_TICKS = (0.01, 0.1, 1, 10, 100, 1000, 10_000)
SHARE_TICKS = (0, 0.25, 0.5, 0.75, 0.95, 1)


def latencies(title: str, played: Mapping[str, Sequence[PolicyFigures]], *, short: bool) -> str:
    """Share of the answers that came within a time, by policy; the shorts alone or all."""
    lines = {}
    for name in (name for name in SHOWN if name in played):
        values = [
            latency
            for one in played[name]
            for latency, tokens in zip(one.latencies, one.tokens, strict=True)
            if not short or tokens <= SHORT_TOKENS
        ]
        lines[name] = values
    which = "short answers" if short else "all answers"
    return _shares(f"{title}: {which}", "latency, seconds", lines)


def waits(title: str, played: Sequence[PolicyFigures]) -> str:
    """Share of the requests that started within a time, by true size."""
    bounds = (("short", 0, SHORT_TOKENS), ("medium", SHORT_TOKENS, MEDIUM_TOKENS))
    lines = {
        name: [
            wait
            for one in played
            for wait, tokens in zip(one.waits, one.tokens, strict=True)
            if low < tokens <= high
        ]
        for name, low, high in (*bounds, ("long", MEDIUM_TOKENS, 10**9))
    }
    return _shares(f"{title}: waits under ours", "wait before dispatch, seconds", lines)


def window(title: str, played: PolicyFigures, best: float) -> str:
    """Requests in flight over one run beside the found window and the provider's best."""
    trace = played.trace[:: max(1, len(played.trace) // (5 * POINTS))]
    last = trace[-1][0] if trace else 1.0
    top = 1.15 * max([best, *(room for _, room, _ in trace), *(float(n) for _, _, n in trace)])
    chart = Chart(
        f"{title}: window, first seed",
        Axis("seconds", 0, last, _ticks(last)),
        Axis("requests in flight", 0, top, _ticks(top)),
    )
    chart.line([(t, float(n)) for t, _, n in trace], COLOURS[0], "in flight")
    chart.line([(t, room) for t, room, _ in trace], COLOURS[1], "without probes")
    chart.line([(0, best), (last, best)], "#999", "best", "4 4")
    return chart.svg()


def _shares(title: str, unit: str, lines: Mapping[str, Sequence[float]]) -> str:
    positive = [value for values in lines.values() for value in values if value > 0]
    largest, least = max(positive, default=1.0), min(positive, default=LOG_TICKS[0])
    high = next(tick for tick in LOG_TICKS[2:] if tick >= min(largest, LOG_TICKS[-1]))
    low = max(tick for tick in LOG_TICKS if tick <= max(least, LOG_TICKS[0]) and tick < high)
    chart = Chart(
        title,
        Axis(unit, low, high, [t for t in LOG_TICKS if low <= t <= high], log=True),
        Axis("share at most it", 0, 1, SHARE_TICKS),
    )
    for (name, values), colour in zip(lines.items(), COLOURS, strict=False):
        chart.line(_steps(values), colour, name)
    return chart.svg()


def _steps(values: Sequence[float]) -> list[Point]:
    """Points of the values' distribution."""
    if not values:
        return []
    levels = np.linspace(0, 1, min(POINTS, len(values)) + 1)
    quantiles = np.quantile(np.array(values), levels)
    return list(zip(quantiles.tolist(), levels.tolist(), strict=True))


def _ticks(high: float) -> list[float]:
    """About five round numbers from 0."""
    step = 10.0 ** np.floor(np.log10(high / 4))
    step *= next(times for times in (1, 2, 5, 10) if high / (times * step) <= 6)
    return [float(t) for t in np.arange(0.0, high, step).round(6)]
