"""The order of one tenant's jobs of one class: smaller keys go first.

    fcfs      arrival
    sjf       the reserve: the tokens that the job is expected to use
    gittins   E[S]. The Gittins index w / E[S], for a request at a provider cannot be stopped on
              the way: shortest expected first.
    boost     arrival − b(S), with γ-Boost's b(S) = (1/γ)·ln(w·M/(M − 1)), M = E[e^{γS}] over the
              forecast distribution (Yu & Scully, arXiv 2404.08826): tail-optimal where sizes are
              light-tailed, as answers cut at max_tokens are. γ → ∞ is fcfs, γ → 0 is gittins.
    slowdown  the moment at which (wait + service) / service reaches SLOWDOWN

In `boost`, w is P(short) over the typical job's: a wait is felt most by those who get a short
answer, and P(short) has a model of its own, which tells shorts better than the distribution does.
1/γ is BACKLOG_RATIO × the time that the backlog takes to clear, for a boost of seconds means
nothing to a backlog of minutes. In `boost` and `slowdown` the key is at most
deadline − q90(service) − margin, so that deadlines join in.

Forecasts of little confidence shrink towards the typical size; at no trust ties go by submission.
No key bounds the overtaking: choice.py does. tests/bench/RESULTS.md has what w and the ratio bring.
"""

from __future__ import annotations

from math import ceil, expm1, log, log1p
from operator import mul

from gateway.types import QUANTILE_LEVELS, Job, Workload

BACKLOG_RATIO = 3.0  # less is kinder to the heavy and harder on shorts not foreseen as such
LEAST_P_SHORT = 0.01  # in w
LN_2 = log(2.0)
SLOWDOWN = 5.0
CONFIDENT = 0.5  # a forecast within a factor of two: trusted in full
MARGIN_RATIO = 0.25  # of the typical service time, before a deadline

GRID_WEIGHTS = (0.075, 0.1, 0.2, 0.25, 0.2, 0.1, 0.075)
"""Shares that QUANTILE_LEVELS stand for: from half-way to the level below, to half-way above."""

TRUST_STEP = 0.1
SATURATED = 40.0  # e^40 tells no job from another any more

TIMED = frozenset({"boost", "slowdown"})
"""Orderings whose keys depend on the pool's backlog and speed."""


def reserve_tokens(job: Job, workload: Workload, quantile: float) -> int:
    """Output tokens that the job is expected to use: n × min(max_tokens, quantile), at least 1.

    A whole number, so that sums of reserves are exact however long the gateway runs.
    """
    tokens = workload.quantile(quantile)
    if job.max_tokens is not None:
        tokens = min(tokens, job.max_tokens)
    return max(1, ceil(job.n * tokens))


def reserve_beyond(job: Job, workload: Workload, tokens: float, quantile: float) -> int:
    """`reserve_tokens` of a job that has made `tokens` of each choice and goes on: the quantile of
    the forecast for answers longer than that."""
    grid = workload.grid
    if tokens >= grid[-1]:  # longer than the forecast's longest
        expected = tokens * (1.0 + quantile)
    else:
        level = _level(grid, tokens)
        expected = max(tokens, workload.quantile(level + quantile * (1.0 - level)))
    if job.max_tokens is not None:
        expected = min(expected, job.max_tokens)
    return max(1, ceil(job.n * expected))


def _level(grid: tuple[float, ...], tokens: float) -> float:
    """The share of answers that are no longer than `tokens`, which are less than the last."""
    for i in range(len(grid) - 1, 0, -1):
        if grid[i - 1] <= tokens:
            low, high = QUANTILE_LEVELS[i - 1], QUANTILE_LEVELS[i]
            return low + (high - low) * (tokens - grid[i - 1]) / (grid[i] - grid[i - 1])
    return 0.0


def mean_tokens(job: Job, workload: Workload) -> float:
    """E[S] in output tokens over all choices, cut at max_tokens."""
    grid = _cut(workload.grid, job.max_tokens)
    return job.n * float(sum(map(mul, GRID_WEIGHTS, grid)))


def ln_short(workload: Workload) -> float:
    """ln P(short), not below LEAST_P_SHORT's."""
    return log(max(workload.p_short, LEAST_P_SHORT))


def _cut(grid: tuple[float, ...], limit: int | None) -> tuple[float, ...]:
    """The grid of answers that end at `limit` tokens at the latest."""
    if limit is None or grid[-1] <= limit:
        return grid
    return tuple(min(tokens, limit) for tokens in grid)


class Order:
    """A pool's ordering at one scale of backlog and speed. Immutable.

    It is replaced when backlog or speed have changed by a factor of two, and the waiting jobs are
    re-keyed in slices. Keys of two scales are near each other, for both are anchored at the typical
    job's boost, and the bound on overtaking holds for any mixture.

    Args:
        kind: the setting `ordering`.
        backlog_tokens: what waits, but never less than one typical job.
        typical_tokens: a job's reserve, on average.
        token_s: seconds per token of one stream.
        streams: how many there are, so the pool takes token_s / streams per token.
        trust: in forecasts altogether, 0 to 1.
        typical_ln_short: `ln_short` of a job, on average.
    """

    __slots__ = (
        "_boosts_s", "_rate", "_typical_boost", "backlog_tokens", "kind", "streams", "token_s",
        "trust", "typical_ln_short", "typical_tokens",
    )  # fmt: skip

    def __init__(
        self,
        kind: str,
        backlog_tokens: float = 1000.0,
        typical_tokens: float = 250.0,
        token_s: float = 0.02,
        streams: float = 1.0,
        trust: float = 1.0,
        typical_ln_short: float = 0.0,
    ) -> None:
        self.kind = kind
        self.backlog_tokens = max(backlog_tokens, typical_tokens)
        self.typical_tokens = typical_tokens
        self.token_s = token_s
        self.streams = streams
        self.trust = trust
        self.typical_ln_short = typical_ln_short
        scale = BACKLOG_RATIO * self.backlog_tokens
        self._rate = 1.0 / scale  # γS of one token
        self._boosts_s = scale * token_s / streams  # 1/γ
        self._typical_boost = log1p(1.0 / expm1(self._rate * typical_tokens))

    def key(self, job: Job, workload: Workload, reserve: int, deadline_s: float | None) -> float:
        """Seconds on the arrival's clock, or tokens; comparable within one kind."""
        match self.kind:
            case "boost":
                key = job.arrived_s - self._boost_s(job, workload)
            case "slowdown":
                tokens = self._shrunk(mean_tokens(job, workload), workload)
                key = job.arrived_s + (SLOWDOWN - 1.0) * tokens * self.token_s
            case "gittins":
                return self._shrunk(mean_tokens(job, workload), workload)
            case "sjf":
                return self._shrunk(reserve, workload)
            case _:
                return job.arrived_s
        if deadline_s is None:
            return key
        return min(key, deadline_s - self._last_start_s(job, workload))

    def near(
        self,
        backlog_tokens: float,
        typical_tokens: float,
        token_s: float,
        streams: float,
        trust: float,
        typical_ln_short: float = 0.0,
    ) -> bool:
        """True while keys of this order are good enough: nothing that they depend on has changed
        by a factor of two. (For a backlog that is half the queue come or gone, so that re-keying
        all of it costs a job a few keys in its life.)"""
        if self.kind == "fcfs":
            return True
        if trust != self.trust and (abs(trust - self.trust) >= TRUST_STEP or trust in (0.0, 1.0)):
            return False
        if self.kind not in TIMED:
            return True
        speed = token_s * self.streams / (streams * self.token_s)
        return (
            0.5 < max(backlog_tokens, typical_tokens) / self.backlog_tokens < 2.0
            and 0.5 < speed < 2.0
            and 0.5 < token_s / self.token_s < 2.0
            and 0.5 < typical_tokens / self.typical_tokens < 2.0
            and abs(typical_ln_short - self.typical_ln_short) < LN_2
        )

    def _trust_in(self, workload: Workload) -> float:
        return self.trust * min(1.0, workload.confidence / CONFIDENT)

    def _shrunk(self, tokens: float, workload: Workload) -> float:
        trust = self._trust_in(workload)
        if trust >= 1.0:
            return tokens
        return float(self.typical_tokens ** (1.0 - trust) * tokens**trust)

    def _boost_s(self, job: Job, workload: Workload) -> float:
        """b(S) less that of the typical job; negative for what is larger than that."""
        a, b, c, d, e, f, g = _cut(workload.grid, job.max_tokens)
        rate = job.n * self._rate
        if rate * g > SATURATED:
            rate = SATURATED / g
        excess = (  # M − 1; the weights of the grid, written out: this is the hot path
            0.075 * (expm1(rate * a) + expm1(rate * g))
            + 0.1 * (expm1(rate * b) + expm1(rate * f))
            + 0.2 * (expm1(rate * c) + expm1(rate * e))
            + 0.25 * expm1(rate * d)
        )
        boost = log1p(1.0 / max(excess, 1e-12)) - self._typical_boost
        boost += ln_short(workload) - self.typical_ln_short
        return self._trust_in(workload) * boost * self._boosts_s

    def _last_start_s(self, job: Job, workload: Workload) -> float:
        """Seconds before its deadline at which a job should start."""
        margin = MARGIN_RATIO * self.typical_tokens * self.token_s
        if job.deadline_first_byte:
            return margin
        tokens = workload.p90 if job.max_tokens is None else min(workload.p90, job.max_tokens)
        return tokens * self.token_s + margin
