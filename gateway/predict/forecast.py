"""From a grid of quantiles to the forecast that other rooms see; and stage 0's grid.

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
"""The two kinds of forecast, whose levels are calibrated apart."""


class Money(Struct, frozen=True):
    """What turns tokens into cost."""

    output_ratio: float
    prices: Mapping[str, Price]


class Odds(Struct, frozen=True):
    """What is known beside the grid of whether an answer will be short (≤ 64 tokens).

    The grid places all lengths at once, and 64 tokens often lie in its tail. A booster fitted
    to this one question ranks short answers better; the two are averaged in log odds, the
    booster's moved along as far as learning has moved the grid since.
    """

    logit: float | None = None  # the booster's log odds
    middle: float = 0.0  # the grid's median as the boosters said it
    correction: float = 0.0  # what the tenant's answers add to the probability

    def of(self, grid: Grid) -> float:
        """P(output ≤ 64 tokens) by the grid and all that is known. The grid is that of the whole
        answer: where a `max_tokens` above 64 cuts it says nothing about 64."""
        return min(max(self.uncorrected(grid) + self.correction, 0.0), MOST)

    def uncorrected(self, grid: Grid) -> float:
        """The same without what the tenant adds."""
        by_grid = p_short(grid)
        if self.logit is None:
            return by_grid
        held = min(max(by_grid, 1.0 - MOST), MOST)
        moved = self.logit - SHIFT * (grid[MEDIAN] - self.middle)
        logit = (1.0 - SHARE) * log(held / (1.0 - held)) + SHARE * moved
        return min(max(1.0 / (1.0 + exp(-logit)), 1.0 - MOST), MOST)


SHARE = 0.35  # of the booster in the average of log odds: chosen in MODELCARD.md
MOST = 0.997
BY_GRID = Odds()
_SHORT = log1p(SHORT_TOKENS) + 1e-9

UNCALIBRATED = Calibration()
NOBODY = group_keys("", "")


def workload_of(
    view: PromptView,
    grid: Grid,
    rung: Rung,
    money: Money,
    table: Calibration = UNCALIBRATED,
    of: GroupKeys = NOBODY,
    odds: Odds = BY_GRID,
) -> Workload:
    """The forecast as the other rooms see it, from a grid in log1p tokens.

    Cost in units is prompt tokens + output ratio × choices × output tokens, all prompts of a
    batch together; in dollars where the model has a price, with the shares of cached and
    reasoning tokens seen lately. Tokens are those of one choice.
    """
    whole, grid = grid, truncated(grid, view.max_tokens)
    tokens = to_tokens(grid)
    prompt = view.tokens_by(table.tokens_per_byte(view.model, view.tenant, view.script))
    p50, p90, made = tokens[3], tokens[5], view.choices
    usd50 = usd90 = None
    price = money.prices.get(view.model)
    if price is not None:
        tier, cached = price.tier(prompt), prompt * table.mean(of, Channel.CACHED)
        thought = table.mean(of, Channel.REASONING)
        usd50, usd90 = (
            tier.usd(prompt, made * tokens, cached=cached, reasoning=thought * made * tokens)
            for tokens in (p50, p90)
        )
    return Workload(
        prompt_tokens=prompt,
        p50=p50,
        p90=p90,
        grid=tokens,
        p_short=1.0 if grid[-1] <= _SHORT else odds.of(whole),
        cost_p50=prompt + money.output_ratio * p50 * made,
        cost_p90=prompt + money.output_ratio * p90 * made,
        risk=risk(grid),
        confidence=confidence(grid),
        rung=rung,
        cost_usd_p50=usd50,
        cost_usd_p90=usd90,
    )


def heuristic_grid(view: PromptView) -> Grid:
    """Without any model: some 200 tokens within a factor 3, fewer for structured answers.

    The figures are round ones from public chat logs (median 237, p10 36, p90 703).
    """
    centre = log1p(60) if view.tools or view.json_format else log1p(220)
    if view.text_chars < 40:
        centre -= 0.5
    return rearranged([centre + 1.1 * z for z in Z])


def stage0_grid(
    view: PromptView, model: LengthModel | None, cheap: list[float]
) -> tuple[Grid, Rung]:
    """The cheap forecast, uncorrected: no vector, no neighbours. Some 20 µs.

    Args:
        cheap: `Tables.features_of` the view; empty without tables.
    """
    if model is None or not cheap:
        return heuristic_grid(view), Rung.HEURISTIC
    return model.grid(cheap), Rung.MODEL_ONLY


def job_class_of(grid: Grid, odds: Odds = BY_GRID) -> JobClass:
    """The class by P(short), as `Workload.job_class` reads it."""
    return JobClass.INTERACTIVE if odds.of(grid) >= INTERACTIVE_P_SHORT else JobClass.HEAVY


def levelled(
    grid: Grid, stage: str, table: Calibration, of: GroupKeys = NOBODY, odds: Odds = BY_GRID
) -> Grid:
    """The grid with its class's levels read as p50 and p90."""
    return relevelled(grid, *table.level(stage, job_class_of(grid, odds), of).z)


def pack_floats(values: Sequence[float]) -> bytes:
    """As `HistoryRow.features` keeps them: little-endian float16, held within its range."""
    return np.clip(np.asarray(values, np.float32), -60_000, 60_000).astype("<f2").tobytes()


def unpack_floats(packed: bytes) -> list[float]:
    """What `pack_floats` was given, in half precision."""
    found: list[float] = np.frombuffer(packed[: len(packed) // 2 * 2], "<f2").tolist()
    return found
