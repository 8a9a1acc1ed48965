"""What a tenant's answers teach beyond the shipped models, and what they must not."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest
from msgspec import structs

from gateway.predict import leaning
from gateway.predict.artefacts import Artefacts
from gateway.predict.leaning import FAR, UPRIGHT, Columns, Leanings, Seen
from gateway.predict.quantiles import NEIGHBOUR_NAMES
from gateway.predict.scopes import Scopes, scopes

COLUMNS = Columns(["text", "digits"], [4.0, 0.1], [2.0, 0.2], [0.5, 0.5, 0.5])
NEAR = [nan] * len(NEIGHBOUR_NAMES)
HERE = scopes("m", "a")


@pytest.fixture
def leanings() -> Leanings:
    return Leanings(COLUMNS)


def drawn(leanings: Leanings, rng: np.random.Generator) -> Seen:
    """Features of a request at random."""
    return np.clip(rng.standard_normal(leanings.width), -FAR, FAR)


def taught(
    leanings: Leanings, slope: float, *, of: Scopes = HERE, answers: int = 400, seed: int = 1
) -> None:
    """Answers whose residual is a slope of the second feature, and noise."""
    rng = np.random.default_rng(seed)
    for _ in range(answers):
        seen = drawn(leanings, rng)
        residual = slope * float(seen[1]) + 0.5 * float(rng.standard_normal())
        leanings.learn(of, seen, residual, float(residual < 0) - 0.5)


def on(leanings: Leanings, value: float, of: Scopes = HERE) -> leaning.Lean:
    """What is said of a request with only the second feature."""
    seen = np.zeros(leanings.width)
    seen[1] = value
    return leanings.said(of, seen)


def test_leaning_finds_the_order_inside_a_source(leanings: Leanings) -> None:
    """A feature that lengthens a tenant's answers lengthens its forecasts, and makes short
    ones unlikelier."""
    assert on(leanings, 1.0) == UPRIGHT
    taught(leanings, 0.6)
    assert on(leanings, 1.0).offset == pytest.approx(0.6, abs=0.2)
    assert on(leanings, -1.0).offset == pytest.approx(-0.6, abs=0.2)
    assert on(leanings, 1.0).tilt < -0.1 < 0.1 < on(leanings, -1.0).tilt


def test_leaning_gives_out_nothing_that_has_not_proved_itself(leanings: Leanings) -> None:
    """From noise nothing is learned: the shipped forecast stands, where a rule moves it."""
    taught(leanings, 0.0)
    assert abs(on(leanings, 1.0).offset) < 0.05
    ruled = Leanings(COLUMNS)
    taught(ruled, 0.6)
    assert abs(on(ruled, 1.0).offset) > 0.3


def test_leaning_is_given_to_the_sources_it_is_true_of(leanings: Leanings) -> None:
    """A source whose answers do not follow the tenant's rule goes without it."""
    plain = scopes("another", "a")
    for part in range(8):
        taught(leanings, 0.6, answers=50, seed=part)
        taught(leanings, 0.0, of=plain, answers=50, seed=100 + part)
    assert on(leanings, 1.0).offset > 2 * abs(on(leanings, 1.0, plain).offset)
    assert on(leanings, 1.0, scopes("unheard of", "a")).offset == 0.0


def test_leaning_of_one_tenant_is_not_another_s(leanings: Leanings) -> None:
    """What a tenant teaches moves no other's forecast."""
    taught(leanings, 0.6)
    assert on(leanings, 1.0, scopes("m", "b")) == UPRIGHT


def test_leaning_follows_a_rule_that_turns(leanings: Leanings) -> None:
    """Old answers fade: the opposite rule wins in the end."""
    taught(leanings, 0.6)
    taught(leanings, -0.6, answers=1500, seed=2)
    assert on(leanings, 1.0).offset < -0.3


def test_leaning_takes_an_unknown_for_no_surprise(leanings: Leanings) -> None:
    """A bound that decides nothing teaches nothing; one that says "not short" only that."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        leanings.learn(HERE, drawn(leanings, rng), None, None)
    assert on(leanings, 1.0) == UPRIGHT
    for _ in range(200):
        seen = drawn(leanings, rng)
        leanings.learn(HERE, seen, None, -float(seen[1] > 0))
    assert on(leanings, 1.0).offset == 0.0
    assert on(leanings, 1.0).tilt < -0.1


def test_leaning_is_bounded(leanings: Leanings) -> None:
    """No answer, however odd, takes a correction beyond its bounds."""
    for _ in range(300):
        leanings.learn(HERE, np.full(leanings.width, FAR), 1e6, 1e6)
    said = leanings.said(HERE, np.full(leanings.width, FAR))
    assert 0.0 < said.offset <= leaning.LARGEST
    assert 0.0 < said.tilt <= 1.0


def test_leaning_forgets_the_tenants_longest_unheard_of(leanings: Leanings) -> None:
    """Memory is bounded: a flood of tenants takes the place of the one heard least lately."""
    taught(leanings, 0.6)
    for number in range(leaning.TENANTS - 1):
        leanings.learn(scopes("m", f"t{number}"), np.ones(leanings.width), 0.1, 0.1)
    assert on(leanings, 1.0).offset > 0.3
    for number in range(leaning.TENANTS):
        leanings.learn(scopes("m", f"t{number}"), np.ones(leanings.width), 0.1, 0.1)
    assert on(leanings, 1.0) == UPRIGHT


def test_features_are_scaled_held_and_complete(leanings: Leanings) -> None:
    """Each column by its own scale, within bounds; what is absent is the mean."""
    cheap = [6.0, *[nan] * 15]
    seen = leanings.read(cheap, [0.5, -0.5, 9.0], NEAR, 5.0, None)
    assert seen.tolist() == [1.0, 0.0, 1.0, -1.0, FAR, *[0.0] * 7]
    near = [0.5, 0.5, 1.0, 6.0, 4.0, 5.0, 7.0, 6.0, nan, 0.0]
    seen = leanings.read(cheap, [0.0] * 3, near, 5.0, (4.0,) * 7)
    assert seen[5:].tolist() == [0.5, -0.5, 0.0, 1.0, 0.5, 0.0, -1.0]


def test_columns_that_do_not_fit_are_refused() -> None:
    """Unknown features and lists of different lengths."""
    with pytest.raises(ValueError):
        Leanings(structs.replace(COLUMNS, names=["no such feature", "text"]))
    with pytest.raises(ValueError):
        Leanings(structs.replace(COLUMNS, mean=[1.0]))


def test_shipped_columns_fit(artefacts: Artefacts) -> None:
    """The shipped tables say what to read, and every scale is usable."""
    assert artefacts.tables is not None
    columns = artefacts.tables.leaning
    assert columns is not None
    assert Leanings(columns).width > 90
    assert min(*columns.deviation, *columns.projected) > 0.0
