"""The small derivations of the values that cross rooms."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.types import (
    INTERACTIVE_P_SHORT,
    QUANTILE_LEVELS,
    Job,
    JobClass,
    Rung,
    SizeBucket,
    Usage,
    Workload,
)

QUICK = hypothesis_settings(max_examples=100, deadline=None, database=None)
GRID = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)


def workload(**fields: Any) -> Workload:
    values: dict[str, Any] = {
        "prompt_tokens": 10,
        "p50": 40.0,
        "p90": 160.0,
        "grid": GRID,
        "p_short": 0.6,
        "cost_p50": 170.0,
        "cost_p90": 650.0,
        "risk": 0.2,
        "confidence": 0.7,
        "rung": Rung.MODEL_ONLY,
    }
    return Workload(**{**values, **fields})


def job(**fields: Any) -> Job:
    values: dict[str, Any] = {
        "id": "j",
        "tenant": "t",
        "model": "m",
        "pool": "p",
        "accounts": ("a",),
        "workload": workload(),
        "arrived_s": 0.0,
    }
    return Job(**{**values, **fields})


@pytest.mark.parametrize(
    ("tokens", "bucket"),
    [
        (0, "short"),
        (64, "short"),
        (64.5, "medium"),
        (256, "medium"),
        (256.5, "long"),
        (1e9, "long"),
    ],
)
def test_size_bucket_goes_by_the_median(tokens: float, bucket: str) -> None:
    """The bounds 64 and 256 belong to the smaller bucket."""
    assert SizeBucket.of(tokens).value == bucket
    assert workload(p50=tokens).size_bucket.value == bucket


@pytest.mark.parametrize(
    ("p_short", "job_class"),
    [(0.0, "heavy"), (0.2999, "heavy"), (INTERACTIVE_P_SHORT, "interactive"), (1.0, "interactive")],
)
def test_job_class_protects_true_shorts(p_short: float, job_class: str) -> None:
    """A job is interactive from a chance of 0.3 to be short, whatever its median."""
    assert workload(p_short=p_short, p50=500.0).job_class.value == job_class
    assert job(workload=workload(p_short=p_short)).job_class.value == job_class


@pytest.mark.parametrize("override", list(JobClass))
def test_job_class_may_be_overridden(override: JobClass) -> None:
    """An override decides the class; the forecast stays as it was."""
    forced = job(class_override=override)
    assert forced.job_class is override
    assert forced.workload.job_class is JobClass.INTERACTIVE


@pytest.mark.parametrize(
    ("level", "tokens"),
    [
        *zip(QUANTILE_LEVELS, GRID, strict=True),
        (0.0, 5.0),
        (0.01, 5.0),
        (0.99, 320.0),
        (1.0, 320.0),
        (0.375, 30.0),
        (0.7, 72.0),
    ],
)
def test_quantile_is_linear_between_levels_and_flat_outside(level: float, tokens: float) -> None:
    """A quantile is the grid's value at its levels and does not leave its ends."""
    assert workload().quantile(level) == pytest.approx(tokens)


@QUICK
@given(
    steps=st.lists(st.floats(0, 1000), min_size=7, max_size=7),
    levels=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_quantile_never_falls(steps: list[float], levels: tuple[float, float]) -> None:
    """A higher level never has fewer tokens, and no level leaves the grid."""
    grid = tuple(sum(steps[: i + 1]) for i in range(7))
    low, high = (workload(grid=grid).quantile(level) for level in sorted(levels))
    assert grid[0] <= low <= high + 1e-9
    assert high <= grid[-1] + 1e-9


def test_values_are_frozen() -> None:
    """A value that crosses rooms cannot be changed; a changed one is a new value."""
    for value, field in ((workload(), "p50"), (job(), "id"), (Usage(1, 2), "output_tokens")):
        with pytest.raises(AttributeError):
            setattr(value, field, 0)
    assert msgspec.structs.replace(Usage(1, 2), output_tokens=3) == Usage(1, 3)


def test_usage_says_when_it_is_estimated() -> None:
    """A usage counts as the provider's own unless it is marked as estimated."""
    assert not Usage(1, 2).estimated
    assert (Usage(1, 2).cached_tokens, Usage(1, 2).reasoning_tokens) == (0, 0)
