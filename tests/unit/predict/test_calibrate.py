"""Running residuals by tenant and model."""

from __future__ import annotations

import pytest

from gateway.predict.calibrate import LARGEST, PAIRS, Residuals

M = ("t", "m")


def taught(count: int, residual: float, *, censored: bool = False) -> Residuals:
    residuals = Residuals()
    for _ in range(count):
        residuals.learn(M, 5.0 + residual, stage0=5.0, full=5.0, censored=censored)
    return residuals


def test_residuals_of_an_unknown_model_are_zero() -> None:
    """What was never seen is not corrected."""
    table = taught(5, 1.0).table
    assert (table.stage0("t", "other"), table.full("t", "other")) == (0.0, 0.0)


def test_residuals_approach_the_true_bias() -> None:
    """Few answers move the bias a little, many move it there."""
    few, many = taught(2, 0.7).table.stage0(*M), taught(2000, 0.7).table.stage0(*M)
    assert 0.0 < few < 0.2
    assert many == pytest.approx(0.7, rel=0.06)


def test_residuals_forget_an_old_bias() -> None:
    """After a change the new bias takes over within a few hundred answers."""
    residuals = taught(1000, 1.0)
    for _ in range(600):
        residuals.learn(M, 4.0, stage0=5.0, full=5.0, censored=False)
    assert residuals.table.stage0(*M) < -0.8


def test_residuals_take_a_cut_answer_as_a_lower_bound() -> None:
    """Cut below the forecast it says nothing; cut above it says too short."""
    assert taught(50, -1.0, censored=True).table.stage0(*M) == 0.0
    assert taught(50, +1.0, censored=True).table.stage0(*M) > 0.5


def test_residuals_bound_one_answer() -> None:
    """One absurd length moves the bias no more than the largest residual allows."""
    assert taught(1, 99.0).table.stage0(*M) <= LARGEST / 10


def test_residuals_keep_the_two_forecasts_apart() -> None:
    """Stage 0 and the full model each have their own bias; no full forecast, no lesson."""
    residuals = Residuals()
    residuals.learn(M, 6.0, stage0=5.0, full=None, censored=False)
    assert residuals.table.stage0(*M) > 0
    assert residuals.table.full(*M) == 0.0


def test_residuals_publish_a_table_that_never_changes() -> None:
    """A table in the loop's hands stays as it was; a new one replaces it."""
    residuals = taught(3, 1.0)
    before = residuals.table
    was = before.stage0(*M)
    residuals.learn(M, 9.0, stage0=5.0, full=5.0, censored=False)
    assert before.stage0(*M) == was
    assert residuals.table.stage0(*M) > was


def test_residuals_are_bounded_in_models() -> None:
    """The model longest without an answer is forgotten first."""
    residuals = taught(1, 1.0)
    for i in range(PAIRS):
        residuals.learn(("t", f"model {i}"), 6.0, stage0=5.0, full=5.0, censored=False)
    assert len(residuals.table.bias) == PAIRS
    assert residuals.table.stage0(*M) == 0.0


def test_residuals_of_one_tenant_leave_another_alone() -> None:
    """What a tenant reports, true or not, moves its own forecasts only."""
    table = taught(100, 2.0).table
    assert table.stage0(*M) > 1.0
    assert (table.stage0("other", "m"), table.full("other", "m")) == (0.0, 0.0)
