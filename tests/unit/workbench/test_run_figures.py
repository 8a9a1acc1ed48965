"""Figures of one run."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.workbench.simulate.run_figures import figures, tenants_p95
from gateway.workbench.simulate.virtual_loop import RequestResult
from tests.unit.workbench.simulate_cases import request


def result(
    i: int, output_tokens: int, latency_s: float, *, completed: bool = True
) -> RequestResult:
    return RequestResult(
        request=request(f"r{i}", float(i), output_tokens),
        started_s=i + 0.5,
        ended_s=i + latency_s,
        completed=completed,
        rejections=2,
    )


def test_figures_of_a_run_by_hand() -> None:
    """Alone, 100 tokens take 1 s: their deadline is at 5 s, that of 1,000 tokens at 41 s."""
    found = figures(
        [
            result(0, 64, 1.0),
            result(1, 65, 2.0),
            result(2, 1000, 40.0),
            result(3, 1000, 42.0),
            result(4, 50, 0.1, completed=False),
        ]
    )
    assert found["short_p95_s"] == 1.0
    assert found["heavy_p50_s"] == 41.0
    assert found["mean_s"] == pytest.approx(85 / 4)
    assert found["makespan_s"] == 45.0
    assert found["deadline_misses"] == pytest.approx(2 / 5)  # one late, one refused
    assert found["goodput_per_s"] == pytest.approx(3 / 45)
    assert found["completed"] == pytest.approx(4 / 5)
    assert found["wait_mean_s"] == 0.5
    assert found["rejections_429"] == 10
    assert found["slowdown_p95"] == pytest.approx(np.percentile([1 / 0.64, 2 / 0.65, 4.0, 4.2], 95))


def test_class_without_requests_has_no_figure() -> None:
    """A figure of no requests is NaN."""
    found = figures([result(0, 1000, 1.0)])
    assert np.isnan(found["short_p95_s"])
    assert found["heavy_p95_s"] == 1.0


def test_tenants_have_their_own_percentile() -> None:
    """Each tenant's P95 is of its own requests."""
    one, two = result(0, 10, 1.0), result(1, 10, 9.0)
    two.request = type(two.request)(
        **{
            **{name: getattr(two.request, name) for name in two.request.__struct_fields__},
            "tenant": "two",
        }
    )
    assert tenants_p95([one, two]) == {"one": 1.0, "two": 9.0}
