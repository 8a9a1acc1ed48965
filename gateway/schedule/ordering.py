"""Short first, with a hard bound on being overtaken.

    key = arrival + max_overtake_s × share(reserve),   0 ≤ share ≤ 1

and the smallest key goes first. A small job is thereby as good as one that arrived earlier, by
up to `max_overtake_s`: the boost form of shortest-job-first (γ-Boost, arXiv 2404.08826, serves
by arrival − b(size)). Since share lies in [0, 1],

    key(j) < key(i)  ⇒  arrival(j) < arrival(i) + max_overtake_s,

so nobody who arrives `max_overtake_s` later, or more, can pass, whatever the sizes and however
often forecasts change: each new key lies in the same interval from the same arrival. With
`max_overtake_s = 0` it is first come, first served.

The share grows with the logarithm of the size: forecasts are wrong by factors, not by amounts.
"""

from __future__ import annotations

from math import ceil, log1p

from gateway.types import Job, Workload

LARGE_TOKENS = 4096
"""From this reserve on a job gets no advantage at all."""

_FULL = log1p(LARGE_TOKENS)


def reserve_tokens(job: Job, workload: Workload, quantile: float) -> int:
    """Output tokens the job is expected to use: n × min(max_tokens, quantile), at least 1.

    A whole number, so that sums of reserves are exact however long the gateway runs.
    """
    tokens = workload.quantile(quantile)
    if job.max_tokens is not None:
        tokens = min(tokens, job.max_tokens)
    return max(1, ceil(job.n * tokens))


def order_key(arrived_s: float, reserve: int, max_overtake_s: float) -> float:
    """Smaller goes first; in seconds on the arrival's clock."""
    return arrived_s + max_overtake_s * min(1.0, log1p(reserve) / _FULL)
