"""Pictures of an evaluation: calibration, forecast against truth, τ over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.types import QUANTILE_LEVELS
from gateway.workbench.charts import COLOURS, Axis, Chart
from gateway.workbench.evaluate.evaluation_report import Truth
from gateway.workbench.evaluate.row_replay import ForecastTable
from gateway.workbench.figures import MEDIAN

POINTS = 2000  # most points of a cloud


def calibration(shares: dict[str, Sequence[float]]) -> str:
    """Share of the truths at most each quantile, by variant; the diagonal is right."""
    ticks = (0, 0.25, 0.5, 0.75, 0.9, 1)
    chart = Chart(
        "Calibration", Axis("quantile forecast", 0, 1, ticks), Axis("share at most it", 0, 1, ticks)
    )
    chart.line([(0, 0), (1, 1)], "#999", "right", "4 4")
    for (name, values), colour in zip(shares.items(), COLOURS, strict=False):
        chart.line(list(zip(QUANTILE_LEVELS, values, strict=True)), colour, name)
    return chart.svg()


def predicted(truth: Truth, forecasts: ForecastTable, name: str) -> str:
    """Truth against the median forecast, both logarithmic; every k-th row where there are many."""
    ticks = (1, 10, 100, 1000, 10_000)
    chart = Chart(
        f"Predicted against actual: {name}",
        Axis("median forecast, tokens", 1, 10_000, ticks, log=True),
        Axis("actual output tokens", 1, 10_000, ticks, log=True),
    )
    step = max(1, len(truth) // POINTS)
    points = zip(
        forecasts.grid[::step, MEDIAN].tolist(), truth.tokens[::step].tolist(), strict=True
    )
    chart.cloud(list(points), COLOURS[0])
    chart.line([(1, 1), (10_000, 10_000)], "#999", "equal", "4 4")
    return chart.svg()


def tau_over_time(points: dict[str, Sequence[Sequence[float | None]]]) -> str:
    """τ of the latest rows along the replay, by variant."""
    last = max((p[0] or 0 for line in points.values() for p in line), default=1) or 1
    chart = Chart(
        "Kendall τ over the replay",
        Axis("rows so far", 0, last, [round(t) for t in np.linspace(0, last, 5)]),
        Axis("τ of the latest rows", 0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1)),
    )
    for (name, line), colour in zip(points.items(), COLOURS, strict=False):
        chart.line([(x, y) for x, y in line if x is not None and y is not None], colour, name)
    return chart.svg()
