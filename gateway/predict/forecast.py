"""The forecast that other rooms see, made from a grid of quantiles; and stage 0's grid.

Pure functions: the event loop calls them for stage 0, the child process for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log, log1p

import numpy as np
from msgspec import Struct

from gateway.predict.calibrate import Calibration, Channel, GroupKeys, group_keys
from gateway.predict.lengths import MEDIAN, SHIFT, LengthModel
from gateway.predict.prices import Price
from gateway.predict.prompt_view import PromptView
from gateway.predict.quantiles import (
    Grid,
    Z,
    confidence,
    p_short,
    rearranged,
    relevelled,
    risk,
    to_tokens,
    truncated,
)
from gateway.types import INTERACTIVE_P_SHORT, SHORT_TOKENS, JobClass, Rung, Workload

STAGE0, FULL = "stage0", "full"
"""The two kinds of forecast. Their levels are calibrated apart."""


class Pricing(Struct, frozen=True):
    """Rules from tokens to cost: the weight of output in cost units, and prices by model."""

    output_ratio: float
    prices: Mapping[str, Price]


class ShortOdds(Struct, frozen=True):
    """Evidence beside the grid of a short answer (≤ 64 tokens).

    The grid places all lengths at once, and 64 tokens often lie in its tail. A booster fitted
    to this one question ranks short answers better. The two are averaged in log odds, the
    booster's moved as far as learning has moved the grid since.
    """

    logit: float | None = None  # the booster's log odds; None: no booster
    middle: float = 0.0  # the grid's median before any correction
    correction: float = 0.0  # of the probability, by the tenant's answers

    def probability(self, grid: Grid) -> float:
        """P(output ≤ 64 tokens). `grid` is not cut at `max_tokens`: a cut above 64 tells nothing
        about 64."""
        return min(max(self.uncorrected(grid) + self.correction, 0.0), MOST)

    def uncorrected(self, grid: Grid) -> float:
        """The probability without the tenant's correction."""
        by_grid = p_short(grid)
        if self.logit is None:
            return by_grid
        held = min(max(by_grid, 1.0 - MOST), MOST)
        moved = self.logit - SHIFT * (grid[MEDIAN] - self.middle)
        logit = (1.0 - BOOSTER_SHARE) * log(held / (1.0 - held)) + BOOSTER_SHARE * moved
        return min(max(1.0 / (1.0 + exp(-logit)), 1.0 - MOST), MOST)


BOOSTER_SHARE = 0.35  # of the average of log odds: chosen in MODELCARD.md
MOST = 0.997  # no probability is nearer to 1
GRID_ODDS = ShortOdds()
_SHORT = log1p(SHORT_TOKENS) + 1e-9

UNCALIBRATED = Calibration()
NO_KEYS = group_keys("", "")


def workload_of(
    view: PromptView,
    grid: Grid,
    rung: Rung,
    pricing: Pricing,
    table: Calibration = UNCALIBRATED,
    keys: GroupKeys = NO_KEYS,
    odds: ShortOdds = GRID_ODDS,
) -> Workload:
    """The forecast as the other rooms see it, from a grid in log1p tokens.

    Tokens are those of one choice. The cost in units is prompt tokens + output ratio × choices ×
    output tokens, of all prompts of a batch together.
    """
    uncut, grid = grid, truncated(grid, view.max_tokens)
    tokens = to_tokens(grid)
    prompt = view.tokens_by(table.tokens_per_byte(view.model, view.tenant, view.script))
    p50, p90, choices = tokens[3], tokens[5], view.choices
    usd50, usd90 = _dollars(view, prompt, (p50, p90), pricing, table, keys)
    return Workload(
        prompt_tokens=prompt,
        p50=p50,
        p90=p90,
        grid=tokens,
        p_short=1.0 if grid[-1] <= _SHORT else odds.probability(uncut),
        cost_p50=prompt + pricing.output_ratio * p50 * choices,
        cost_p90=prompt + pricing.output_ratio * p90 * choices,
        risk=risk(grid),
        confidence=confidence(grid),
        rung=rung,
        cost_usd_p50=usd50,
        cost_usd_p90=usd90,
    )


def _dollars(
    view: PromptView,
    prompt: int,
    outputs: Sequence[float],
    pricing: Pricing,
    table: Calibration,
    keys: GroupKeys,
) -> list[float | None]:
    """US dollars for each number of output tokens, with the shares of cached and reasoning
    tokens learned so far; None for a model without a price."""
    price = pricing.prices.get(view.model)
    if price is None:
        return [None] * len(outputs)
    rates, cached = price.rates(prompt), prompt * table.mean(keys, Channel.CACHED)
    thought, choices = table.mean(keys, Channel.REASONING), view.choices
    return [
        rates.usd(prompt, choices * tokens, cached=cached, reasoning=thought * choices * tokens)
        for tokens in outputs
    ]


def heuristic_grid(view: PromptView) -> Grid:
    """The grid without any model: some 200 tokens within a factor 3, fewer for structured
    answers. Round figures from public chat logs (median 237, p10 36, p90 703)."""
    centre = log1p(60) if view.tools or view.json_format else log1p(220)
    if view.text_chars < 40:
        centre -= 0.5
    return rearranged([centre + 1.1 * z for z in Z])


def stage0_grid(
    view: PromptView, model: LengthModel | None, cheap: list[float]
) -> tuple[Grid, Rung]:
    """The forecast without vector or neighbours, uncorrected; some 20 µs.

    Args:
        cheap: `Tables.features_of` the view; empty without tables.
    """
    if model is None or not cheap:
        return heuristic_grid(view), Rung.HEURISTIC
    return model.grid(cheap), Rung.MODEL_ONLY


def job_class_of(grid: Grid, odds: ShortOdds = GRID_ODDS) -> JobClass:
    """The job class by P(short), with the rule of `Workload.job_class`."""
    return JobClass.INTERACTIVE if odds.probability(grid) >= INTERACTIVE_P_SHORT else JobClass.HEAVY


def apply_levels(
    grid: Grid,
    stage: str,
    table: Calibration,
    keys: GroupKeys = NO_KEYS,
    odds: ShortOdds = GRID_ODDS,
) -> Grid:
    """The grid with its class's levels as p50 and p90."""
    return relevelled(grid, *table.levels_of(stage, job_class_of(grid, odds), keys).z)


def pack_floats(values: Sequence[float]) -> bytes:
    """Floats in the form of `HistoryRow.features`: little-endian float16, clipped to its range."""
    return np.clip(np.asarray(values, np.float32), -60_000, 60_000).astype("<f2").tobytes()


def unpack_floats(packed: bytes) -> list[float]:
    """The floats that `pack_floats` packed, in half precision."""
    found: list[float] = np.frombuffer(packed[: len(packed) // 2 * 2], "<f2").tolist()
    return found
