"""The workload made from a grid, and stage 0's grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import Channel, group_keys
from gateway.predict.forecast import (
    FULL,
    Pricing,
    ShortOdds,
    apply_levels,
    heuristic_grid,
    job_class_of,
    pack_floats,
    stage0_grid,
    unpack_floats,
    workload_of,
)
from gateway.predict.prices import Price
from gateway.predict.prompt_view import PromptView
from gateway.predict.residuals import Residuals
from gateway.types import JobClass, Rung


def view(text: str = "Write a short poem about the sea", **more: Any) -> PromptView:
    return PromptView.of_prompt(text, tenant="a", model="m", **more)


def test_heuristic_depends_on_structure_and_limit() -> None:
    """Requests with tools are forecast shorter, and max_tokens cuts."""
    plain, tools = heuristic_grid(view()), heuristic_grid(view(tools=2))
    assert tools[3] < plain[3]
    pricing = Pricing(4.0, {})
    assert workload_of(view(max_tokens=20), plain, Rung.HEURISTIC, pricing).p90 <= 20.0001


def test_stage0_without_model_is_the_heuristic(artefacts: Artefacts) -> None:
    """Without trees or tables stage 0 is the heuristic, under its name."""
    assert artefacts.tables is not None
    cheap = artefacts.tables.features_of(view())
    for model, row in ((None, cheap), (artefacts.stage0(), [])):
        grid, rung = stage0_grid(view(), model, row)
        assert (grid, rung) == (heuristic_grid(view()), Rung.HEURISTIC)
    assert stage0_grid(view(), artefacts.stage0(), cheap)[1] is Rung.MODEL_ONLY


def test_workload_prices_cached_and_reasoning_tokens() -> None:
    """The learned shares of cached and reasoning tokens have their own prices at p50 and p90."""
    price = Price(prompt=10.0, output=20.0, cached=1.0, reasoning=40.0)
    pricing, of, residuals = Pricing(4.0, {"m": price}), group_keys("m", "a"), Residuals()
    seen, grid = view("x" * 4000), heuristic_grid(view("x" * 4000))
    plain = workload_of(seen, grid, Rung.HEURISTIC, pricing, residuals.table, of)
    for _ in range(1000):
        residuals.learn_share(of, Channel.CACHED, 1.0)
        residuals.learn_share(of, Channel.REASONING, 0.5)
    found = workload_of(seen, grid, Rung.HEURISTIC, pricing, residuals.table, of)
    cached = residuals.table.mean(of, Channel.CACHED)
    thought = residuals.table.mean(of, Channel.REASONING)
    assert 0.95 < cached <= 1.0
    for dollars, before, tokens in (
        (found.cost_usd_p50, plain.cost_usd_p50, found.p50),
        (found.cost_usd_p90, plain.cost_usd_p90, found.p90),
    ):
        assert before == pytest.approx((found.prompt_tokens * 10 + tokens * 20) / 1e6)
        prompt = found.prompt_tokens * (10 - 9 * cached)
        assert dollars == pytest.approx((prompt + tokens * (20 + 20 * thought)) / 1e6)


def test_workload_counts_prompt_tokens_by_the_learned_ratio() -> None:
    """The same prompt costs more units where the provider counts more tokens a byte."""
    residuals, seen = Residuals(), view("word " * 400)
    grid, pricing = heuristic_grid(seen), Pricing(4.0, {})
    before = workload_of(seen, grid, Rung.HEURISTIC, pricing)
    for _ in range(500):
        residuals.learn_tokens("m", "a", "latin", 2000, 1000)
    after = workload_of(seen, grid, Rung.HEURISTIC, pricing, residuals.table)
    assert before.prompt_tokens == 507
    assert after.prompt_tokens == pytest.approx(1007, rel=0.05)
    assert after.cost_p50 - before.cost_p50 == after.prompt_tokens - before.prompt_tokens


def test_apply_levels_uses_the_levels_of_the_class() -> None:
    """Misses of heavy jobs widen heavy forecasts; interactive ones stay as they were."""
    residuals, of = Residuals(), group_keys("m", "a")
    for _ in range(60):
        residuals.move_levels(FULL, JobClass.HEAVY, (True, True), censored=False, keys=of)
    heavy, short = (4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 8.5), (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 3.2)
    assert (job_class_of(heavy), job_class_of(short)) == (JobClass.HEAVY, JobClass.INTERACTIVE)
    wide = apply_levels(heavy, FULL, residuals.table, of)
    assert wide[5] > heavy[5] + 0.2
    assert wide[3] > heavy[3]
    assert apply_levels(short, FULL, residuals.table, of) == short


def test_pack_floats_keeps_features_as_half_precision() -> None:
    """Values come back within a thousandth, NaN as NaN, and huge ones clipped."""
    back = np.frombuffer(pack_floats([1.5, 7.123, float("nan"), 1e9]), "<f2")
    assert back[0] == 1.5
    assert back[1] == pytest.approx(7.123, rel=1e-3)
    assert np.isnan(back[2])
    assert np.isfinite(back[3])


def test_odds_average_the_grid_and_the_booster() -> None:
    """P(short) lies between those of grid and booster, and follows the grid when it is moved."""
    grid = heuristic_grid(view())
    by_grid = ShortOdds().probability(grid)
    odds = ShortOdds(logit=2.0, middle=grid[3])
    assert by_grid < odds.probability(grid) < 1 / (1 + np.exp(-2.0))
    moved = tuple(value + 1.0 for value in grid)
    assert odds.probability(moved) < odds.probability(grid)
    assert ShortOdds(logit=2.0, middle=moved[3]).probability(moved) > odds.probability(moved)


def test_odds_add_the_correction_and_keep_within_bounds() -> None:
    """The tenant's correction is added within [0, 1] and can change the class."""
    grid = heuristic_grid(view())
    assert ShortOdds(correction=0.1).probability(grid) == pytest.approx(
        ShortOdds().probability(grid) + 0.1
    )
    assert ShortOdds(correction=-1.0).probability(grid) == 0.0
    assert 0.9 < ShortOdds(correction=1.0).probability(grid) < 1.0
    assert ShortOdds(correction=0.1).uncorrected(grid) == ShortOdds().probability(grid)
    assert job_class_of(grid) is JobClass.HEAVY
    assert job_class_of(grid, ShortOdds(correction=0.5)) is JobClass.INTERACTIVE
    found = workload_of(
        view(), grid, Rung.HEURISTIC, Pricing(4.0, {}), odds=ShortOdds(correction=0.5)
    )
    assert found.job_class is JobClass.INTERACTIVE


def test_odds_of_an_answer_cut_short_are_certain() -> None:
    """An answer limited to 64 tokens is short, whatever the booster says."""
    odds, pricing = ShortOdds(logit=-4.0, middle=5.0, correction=-0.5), Pricing(4.0, {})
    cut = workload_of(
        view(max_tokens=64), heuristic_grid(view()), Rung.HEURISTIC, pricing, odds=odds
    )
    assert cut.p_short == 1.0


def test_floats_come_back_from_a_row() -> None:
    """Packed features come back in half precision; of torn bytes the complete values do."""
    packed = pack_floats([1.0, float("nan"), 1e9, 0.1])
    found = unpack_floats(packed)
    assert found[0] == 1.0
    assert np.isnan(found[1])
    assert found[2:] == [pytest.approx(60_000, rel=1e-3), pytest.approx(0.1, rel=1e-3)]
    assert unpack_floats(packed[:3]) == [1.0]
    assert unpack_floats(b"") == []


def test_odds_of_an_answer_cut_above_short_are_as_without_the_cut() -> None:
    """A max_tokens of 65 or 100 does not change P(output ≤ 64)."""
    odds, pricing, grid = (
        ShortOdds(logit=-0.8, middle=5.3),
        Pricing(4.0, {}),
        heuristic_grid(view()),
    )
    uncut = workload_of(view(), grid, Rung.HEURISTIC, pricing, odds=odds)
    for limit in (65, 80, 100, 300):
        cut = workload_of(view(max_tokens=limit), grid, Rung.HEURISTIC, pricing, odds=odds)
        assert cut.p_short == uncut.p_short
        assert cut.job_class is uncut.job_class
        assert cut.p90 <= limit + 0.001
