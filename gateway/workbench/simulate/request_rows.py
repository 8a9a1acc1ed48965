"""Requests that may be drawn: their sizes, and forecasts of three kinds.

The same requests are played with the real predictor's forecasts (what is had today), with noisy
signals of a chosen Kendall τ (what a better or worse predictor would bring), and with the truth
(a goal missed even then is out of any predictor's reach).

A noisy signal of τ is s = log(1 + L) + σε, ε normal, with σ found by bisection. The forecast is
the posterior of L given s under the lengths at hand. So its quantiles are calibrated, as the
shipped predictor's are, and only its sharpness varies; noise on a point forecast alone would
teach a scheduler to distrust every forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log1p

import numpy as np
from msgspec import Struct

from gateway.errors import SettingsError
from gateway.predict import quantiles
from gateway.types import QUANTILE_LEVELS, SHORT_TOKENS, Rung, Workload
from gateway.workbench.figures import Floats, Ints, buckets, kendall_tau

OUTPUT_RATIO = 4.0  # predict.cost_output_ratio's default
SUPPORT = 600  # lengths a posterior is spread over
TAU_SAMPLE = 4000

LENGTHS = ((0.19, 3.6, 0.7), (0.38, 5.2, 0.5), (0.43, 6.2, 0.5))
"""Three lognormal parts of generated output lengths: (share, mean of log tokens, sigma). They meet
the deciles of 23,956 public requests: 36, 237, 703 tokens at p10, p50, p90."""

LONGEST = 4096
PROMPTS = (4.7, 1.3)  # lognormal: median 110 tokens, p90 about 590

MIXES: dict[str, tuple[float, float, float] | None] = {
    "as-is": None,
    "balanced": (1 / 3, 1 / 3, 1 / 3),
    "heavy": (0.1, 0.3, 0.6),
    "published": (0.101, 0.478, 0.421),  # the seed system's benchmark: 200 ShareGPT requests
}
"""True shares of short, medium and long answers; None takes the rows as they are. The paper (arXiv
2604.06970) names its regimes balanced and heavy without shares; those here are ours."""

LEVELS = np.array(QUANTILE_LEVELS)


class RequestRow(Struct, frozen=True, gc=False):
    """One request that may be drawn.

    Args:
        first: the forecast at its arrival.
        better: the forecast that replaces it a moment later; None where there is none.
    """

    prompt_tokens: int
    output_tokens: int
    first: Workload
    better: Workload | None = None

    @property
    def forecast(self) -> Workload:
        """The last forecast."""
        return self.better or self.first


def workload(
    prompt_tokens: int,
    grid: Sequence[float],
    p_short: float,
    rung: Rung,
    risk: float | None = None,
    confidence: float | None = None,
) -> Workload:
    """A forecast from its quantiles.

    Args:
        grid: output tokens at QUANTILE_LEVELS.
        risk, confidence: None computes them from the grid.
    """
    logs = tuple(log1p(value) for value in grid)
    return Workload(
        prompt_tokens=prompt_tokens,
        p50=grid[3],
        p90=grid[5],
        grid=tuple(grid),
        p_short=p_short,
        cost_p50=prompt_tokens + OUTPUT_RATIO * grid[3],
        cost_p90=prompt_tokens + OUTPUT_RATIO * grid[5],
        risk=quantiles.risk(logs) if risk is None else risk,
        confidence=quantiles.confidence(logs) if confidence is None else confidence,
        rung=rung,
    )


def truth(row: RequestRow) -> RequestRow:
    """The row with its true length as the forecast."""
    tokens = float(row.output_tokens)
    exact = workload(
        row.prompt_tokens,
        (tokens,) * len(QUANTILE_LEVELS),
        float(tokens <= SHORT_TOKENS),
        Rung.TENANT_NEIGHBORS,
        risk=0.0,
        confidence=1.0,
    )
    return RequestRow(row.prompt_tokens, row.output_tokens, exact)


def generated(count: int, seed: int) -> list[tuple[int, int]]:
    """(prompt tokens, output tokens) of `count` generated requests."""
    chance = np.random.default_rng(seed)
    shares, means, sigmas = (np.array(part) for part in zip(*LENGTHS, strict=True))
    part = chance.choice(len(LENGTHS), size=count, p=shares / shares.sum())
    output = np.exp(means[part] + sigmas[part] * chance.standard_normal(count))
    prompt = np.exp(PROMPTS[0] + PROMPTS[1] * chance.standard_normal(count))
    return [
        (max(1, round(p)), min(max(1, round(o)), LONGEST))
        for p, o in zip(prompt.tolist(), output.tolist(), strict=True)
    ]


def noisy(sizes: Sequence[tuple[int, int]], tau: float, seed: int) -> list[RequestRow]:
    """Rows of these sizes with forecasts of Kendall τ `tau` (0 < τ < 1)."""
    lengths = np.array([output for _, output in sizes], float)
    sigma = sigma_of(lengths, tau)
    logs = np.log1p(lengths)
    signal = logs + sigma * np.random.default_rng((seed, 1)).standard_normal(len(logs))
    grids, shorts = _posterior(lengths, signal, sigma)
    return [
        RequestRow(p, o, workload(p, grid, short, Rung.GLOBAL_NEIGHBORS))
        for (p, o), grid, short in zip(sizes, grids.tolist(), shorts.tolist(), strict=True)
    ]


def sigma_of(lengths: Floats, tau: float) -> float:
    """Standard deviation of the noise on log length that gives the signal this τ."""
    chance = np.random.default_rng(7)
    logs = np.log1p(chance.choice(lengths, size=min(TAU_SAMPLE, len(lengths)), replace=False))
    noise = chance.standard_normal(len(logs))
    low, high = 0.0, 16.0
    for _ in range(30):
        middle = (low + high) / 2
        if (kendall_tau(logs + middle * noise, logs) or 0.0) > tau:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _posterior(lengths: Floats, signal: Floats, sigma: float) -> tuple[Floats, Floats]:
    """Quantiles of length at QUANTILE_LEVELS, and P(length ≤ 64), of each signal."""
    ranks = np.linspace(0, len(lengths) - 1, min(SUPPORT, len(lengths))).round().astype(int)
    support = np.sort(lengths)[ranks]
    distance = (signal[:, None] - np.log1p(support)[None, :]) / max(sigma, 1e-3)
    weight = np.exp(-0.5 * (distance**2 - (distance**2).min(axis=1, keepdims=True)))
    sums = weight.cumsum(axis=1)
    sums /= sums[:, -1:]
    places = np.stack([(sums < level).sum(axis=1) for level in LEVELS], axis=1)
    grids = support[np.minimum(places, len(support) - 1)]
    shorts = int(np.searchsorted(support, SHORT_TOKENS, side="right"))
    p_short = sums[:, shorts - 1] if shorts else np.zeros(len(signal))
    return grids, p_short


def draw(rows: Sequence[RequestRow], count: int, mix: str, chance: np.random.Generator) -> Ints:
    """Places of `count` rows by the mix's shares; rows repeat only where there are too few.

    Raises:
        SettingsError: there is no row of a size that the mix needs.
    """
    return draw_sizes([row.output_tokens for row in rows], count, mix, chance)


def draw_sizes(tokens: Sequence[float], count: int, mix: str, chance: np.random.Generator) -> Ints:
    """`draw` from the rows' output tokens alone."""
    shares = MIXES[mix]
    if shares is None:
        return _pick(np.arange(len(tokens)), count, chance)
    kinds = buckets(np.array(tokens, float))
    wanted = [round(share * count) for share in shares[:2]]
    wanted.append(count - sum(wanted))
    parts = []
    for kind, number in enumerate(wanted):
        places = np.flatnonzero(kinds == kind)
        if number and not len(places):
            size = ("short", "medium", "long")[kind]
            raise SettingsError(f"mix {mix!r}: no row of size {size}")
        parts.append(_pick(places, number, chance))
    picked: Ints = chance.permutation(np.concatenate(parts))
    return picked


def _pick(places: Ints, count: int, chance: np.random.Generator) -> Ints:
    if count == 0:
        return places[:0]
    rounds = [chance.permutation(places) for _ in range(-(-count // len(places)))]
    return np.concatenate(rounds)[:count]
