"""Learning a tenant's correction, and its limits."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest
from msgspec import structs

from gateway.predict import tenant_correction
from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import GroupKeys, group_keys
from gateway.predict.quantiles import NEIGHBOUR_NAMES
from gateway.predict.tenant_correction import (
    FAR,
    NO_CORRECTION,
    Correction,
    CorrectionColumns,
    Inputs,
    TenantCorrections,
)

COLUMNS = CorrectionColumns(["text", "digits"], [4.0, 0.1], [2.0, 0.2], [0.5, 0.5, 0.5])
NEAR = [nan] * len(NEIGHBOUR_NAMES)
HERE = group_keys("m", "a")


@pytest.fixture
def corrections() -> TenantCorrections:
    return TenantCorrections(COLUMNS)


def drawn(corrections: TenantCorrections, rng: np.random.Generator) -> Inputs:
    """Features of a request at random."""
    return np.clip(rng.standard_normal(corrections.width), -FAR, FAR)


def taught(
    corrections: TenantCorrections,
    slope: float,
    *,
    of: GroupKeys = HERE,
    answers: int = 400,
    seed: int = 1,
) -> None:
    """Answers whose residual is a slope of the second feature, and noise."""
    rng = np.random.default_rng(seed)
    for _ in range(answers):
        inputs = drawn(corrections, rng)
        residual = slope * float(inputs[1]) + 0.5 * float(rng.standard_normal())
        corrections.learn(of, inputs, residual, float(residual < 0) - 0.5)


def on(corrections: TenantCorrections, value: float, of: GroupKeys = HERE) -> Correction:
    """The correction of a request with only the second feature."""
    inputs = np.zeros(corrections.width)
    inputs[1] = value
    return corrections.of(of, inputs)


def test_correction_finds_the_order_inside_a_source(corrections: TenantCorrections) -> None:
    """A feature that lengthens a tenant's answers lengthens its forecasts and lowers P(short)."""
    assert on(corrections, 1.0) == NO_CORRECTION
    taught(corrections, 0.6)
    assert on(corrections, 1.0).length == pytest.approx(0.6, abs=0.2)
    assert on(corrections, -1.0).length == pytest.approx(-0.6, abs=0.2)
    assert on(corrections, 1.0).short < -0.1 < 0.1 < on(corrections, -1.0).short


def test_correction_of_noise_is_none(
    corrections: TenantCorrections,
) -> None:
    """From noise no correction comes; from a rule one does."""
    taught(corrections, 0.0)
    assert abs(on(corrections, 1.0).length) < 0.05
    ruled = TenantCorrections(COLUMNS)
    taught(ruled, 0.6)
    assert abs(on(ruled, 1.0).length) > 0.3


def test_correction_is_given_to_the_sources_it_is_true_of(corrections: TenantCorrections) -> None:
    """A source whose answers do not follow the tenant's rule gets almost no correction."""
    plain = group_keys("another", "a")
    for part in range(8):
        taught(corrections, 0.6, answers=50, seed=part)
        taught(corrections, 0.0, of=plain, answers=50, seed=100 + part)
    assert on(corrections, 1.0).length > 2 * abs(on(corrections, 1.0, plain).length)
    assert on(corrections, 1.0, group_keys("unheard of", "a")).length == 0.0


def test_correction_of_one_tenant_is_not_another_s(corrections: TenantCorrections) -> None:
    """One tenant's answers correct no other's forecast."""
    taught(corrections, 0.6)
    assert on(corrections, 1.0, group_keys("m", "b")) == NO_CORRECTION


def test_correction_follows_a_rule_that_turns(corrections: TenantCorrections) -> None:
    """Old answers fade, so the opposite rule wins in the end."""
    taught(corrections, 0.6)
    taught(corrections, -0.6, answers=1500, seed=2)
    assert on(corrections, 1.0).length < -0.3


def test_correction_learns_nothing_from_an_undecided_bound(corrections: TenantCorrections) -> None:
    """A bound that decides nothing teaches nothing, and one that says "not short" teaches only
    that."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        corrections.learn(HERE, drawn(corrections, rng), None, None)
    assert on(corrections, 1.0) == NO_CORRECTION
    for _ in range(200):
        inputs = drawn(corrections, rng)
        corrections.learn(HERE, inputs, None, -float(inputs[1] > 0))
    assert on(corrections, 1.0).length == 0.0
    assert on(corrections, 1.0).short < -0.1


def test_correction_is_bounded(corrections: TenantCorrections) -> None:
    """No answer, however odd, takes a correction beyond its bounds."""
    for _ in range(300):
        corrections.learn(HERE, np.full(corrections.width, FAR), 1e6, 1e6)
    correction = corrections.of(HERE, np.full(corrections.width, FAR))
    assert 0.0 < correction.length <= tenant_correction.LARGEST
    assert 0.0 < correction.short <= 1.0


def test_correction_forgets_the_tenant_longest_without_an_answer(
    corrections: TenantCorrections,
) -> None:
    """Memory is bounded: in a flood of tenants the one longest without an answer is forgotten."""
    taught(corrections, 0.6)
    for number in range(tenant_correction.TENANTS - 1):
        corrections.learn(group_keys("m", f"t{number}"), np.ones(corrections.width), 0.1, 0.1)
    assert on(corrections, 1.0).length > 0.3
    for number in range(tenant_correction.TENANTS):
        corrections.learn(group_keys("m", f"t{number}"), np.ones(corrections.width), 0.1, 0.1)
    assert on(corrections, 1.0) == NO_CORRECTION


def test_inputs_are_scaled_clipped_and_complete(corrections: TenantCorrections) -> None:
    """Each column is scaled by its own deviation and clipped, and a missing value is the mean."""
    cheap = [6.0, *[nan] * 15]
    inputs = corrections.inputs(cheap, [0.5, -0.5, 9.0], NEAR, 5.0, None)
    assert inputs.tolist() == [1.0, 0.0, 1.0, -1.0, FAR, *[0.0] * 7]
    near = [0.5, 0.5, 1.0, 6.0, 4.0, 5.0, 7.0, 6.0, nan, 0.0]
    inputs = corrections.inputs(cheap, [0.0] * 3, near, 5.0, (4.0,) * 7)
    assert inputs[5:].tolist() == [0.5, -0.5, 0.0, 1.0, 0.5, 0.0, -1.0]


def test_columns_that_do_not_fit_are_refused() -> None:
    """Unknown features and lists of different lengths are errors."""
    with pytest.raises(ValueError):
        TenantCorrections(structs.replace(COLUMNS, names=["no such feature", "text"]))
    with pytest.raises(ValueError):
        TenantCorrections(structs.replace(COLUMNS, mean=[1.0]))


def test_shipped_columns_fit(artefacts: Artefacts) -> None:
    """The shipped tables list the inputs, and every scale is positive."""
    assert artefacts.tables is not None
    columns = artefacts.tables.correction_columns
    assert columns is not None
    assert TenantCorrections(columns).width > 90
    assert min(*columns.deviation, *columns.projected) > 0.0
