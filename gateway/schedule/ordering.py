"""Which of one tenant's jobs of one class goes first. Smaller keys go first.

    fcfs      arrival
    sjf       the reserve: what the job is expected to use
    gittins   E[S]. The Gittins index is the best ratio of chance of completion to work, over all
              the points at which one could stop and look again. A request at a provider cannot
              be stopped, so the only such point is its end, and the index is w / E[S]: shortest
              expected first (weights are the tenants' business, shares.py).
    boost     arrival − b(S), with γ-Boost's b(S) = (1/γ)·ln(w·M/(M − 1)), M = E[e^{γS}] over the
              forecast distribution (Yu & Scully, arXiv 2404.08826): tail-optimal where sizes are
              light-tailed, as answers cut at max_tokens are. γ → ∞ is fcfs, γ → 0 is gittins.
              w is what a job's waiting costs: P(short), over the typical job's. Whoever gets a
              short answer feels a wait most, and P(short) is foreseen by a model of its own,
              which tells shorts better than the distribution does: the shorts' P95 is the wait
              of those that were not seen as such. (Simulated bursts at the knee, τ 0.60, 30
              seeds: short P95 −47 % of naive's, −32 % with w = 1, all else alike.)
    slowdown  the moment at which (wait + service) / service reaches SLOWDOWN: the job that will
              be the first to be slowed down so much, among those that can start.

γ is not a constant: a boost of seconds means nothing to a backlog of minutes. 1/γ is
BACKLOG_RATIO × the time the backlog takes to clear. In tokens the pool's speed cancels from γS:
it is size / (BACKLOG_RATIO × backlog), and speed only turns the boost into seconds.

Deadlines join in `boost` and `slowdown`: a boost is a deadline that depends on the size, so the
key is the smaller of the two, min(arrival − b, deadline − q90(service) − margin).

Trust. A forecast of little confidence, or all of them while calibration is off, shrink towards
the typical size (in logarithms: forecasts are wrong by factors). At no trust all sizes are equal,
and ties go by submission: first come, first served, whatever the ordering.

No key bounds the overtaking: allocation.py does, for all orderings alike (`max_overtake_s`).
An `Order` is a pool's present scale. It is replaced when backlog or speed have changed by a
factor of two, and the waiting jobs are re-keyed in slices: keys of two scales are near each
other (both are anchored at the typical job's boost), and the bound holds for any mixture.
"""

from __future__ import annotations

from math import ceil, expm1, log, log1p
from operator import mul

from gateway.types import QUANTILE_LEVELS, Job, Workload

BACKLOG_RATIO = 3.0  # simulated bursts, τ 0.55: 1 is kinder to the heavy, but shorts that were
# not seen as such wait too long; from 3 on little changes
LEAST_P_SHORT = 0.01  # of w
LN_2 = log(2.0)
SLOWDOWN = 5.0
CONFIDENT = 0.5  # a forecast within a factor of two: trusted in full
MARGIN_RATIO = 0.25  # of the typical service time, before a deadline

GRID_WEIGHTS = (0.075, 0.1, 0.2, 0.25, 0.2, 0.1, 0.075)
"""What each of QUANTILE_LEVELS stands for: from half-way to the one below, to half-way above."""

TRUST_STEP = 0.1
SATURATED = 40.0  # e^40 tells no job from another any more

TIMED = frozenset({"boost", "slowdown"})
"""Orderings whose keys depend on the pool's backlog and speed."""


def reserve_tokens(job: Job, workload: Workload, quantile: float) -> int:
    """Output tokens the job is expected to use: n × min(max_tokens, quantile), at least 1.

    A whole number, so that sums of reserves are exact however long the gateway runs.
    """
    tokens = workload.quantile(quantile)
    if job.max_tokens is not None:
        tokens = min(tokens, job.max_tokens)
    return max(1, ceil(job.n * tokens))


def reserve_beyond(job: Job, workload: Workload, tokens: float, quantile: float) -> int:
    """`reserve_tokens` of a job that has made `tokens` of each choice and goes on: the quantile
    of what the forecast says of answers that are longer than that."""
    grid = workload.grid
    if tokens >= grid[-1]:  # longer than anything that was foreseen
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
    """How a pool orders, at one scale of backlog and speed. Immutable.

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
        "_boosts_s",
        "_rate",
        "_typical_boost",
        "backlog_tokens",
        "kind",
        "streams",
        "token_s",
        "trust",
        "typical_ln_short",
        "typical_tokens",
    )

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
        """Whether keys of this order are still good enough: nothing that they depend on has
        changed by a factor of two. For a backlog that is half the queue come or gone, so that
        re-keying all of it costs a job a few keys in its life."""
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
        """How long before its deadline a job should start."""
        margin = MARGIN_RATIO * self.typical_tokens * self.token_s
        if job.deadline_first_byte:
            return margin
        tokens = workload.p90 if job.max_tokens is None else min(workload.p90, job.max_tokens)
        return tokens * self.token_s + margin
