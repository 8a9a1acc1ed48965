"""How long a request of its size takes on an idle provider.

    unloaded latency = base + c_in · prompt tokens + c_out · output tokens

Latencies of requests that differ a hundredfold in length say nothing about congestion until
they are divided by this. Fitted while the provider is loaded: each latency is first divided by
the slowdown that the congestion curve gives its number in flight. Errors of a latency grow with
it (noise is a factor), so squares of *relative* errors are minimised: weights 1/fitted², an
iteration per solve. Old samples fade. Coefficients are never negative: where the least squares
say so, the size does not matter there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PRIOR = np.array([1.0, 0.0005, 0.04])
"""Seconds for an empty request, a prompt token, an output token: a guess of their proportions
that the first latencies scale and a dozen samples overrule."""
PRIOR_WEIGHT = 1.5  # samples
LEAST_BASE = 0.001  # of a mean latency
CLIP = 2.5  # a latency this many times too long or too short counts as this many times


class Unloaded:
    """The three coefficients, found online."""

    __slots__ = ("_matrix", "_vector", "count", "theta")

    def __init__(self) -> None:
        self.theta: Floats = PRIOR.copy()
        self._matrix: Floats = np.zeros((3, 3))
        self._vector: Floats = np.zeros(3)
        self.count = 0.0  # samples, faded

    def of(self, sizes: Floats) -> Floats:
        """Seconds per row of (1, prompt tokens, output tokens)."""
        value: Floats = sizes @ self.theta
        return value

    def learn(self, sizes: Floats, latencies_s: Floats, keep: float) -> float:
        """`latencies_s` as they would have been unloaded. Returns the log by which the scale
        of these sizes moved."""
        before = self.of(sizes)
        if not self.count:
            self.theta = PRIOR * float(np.exp(np.mean(np.log(latencies_s / before))))
        fitted = self.of(sizes)
        latencies_s = np.clip(latencies_s, fitted / CLIP, fitted * CLIP)
        rows = sizes / fitted[:, None]
        self._matrix = self._matrix * keep + rows.T @ rows
        self._vector = self._vector * keep + rows.T @ (latencies_s / fitted)
        self.count = self.count * keep + len(sizes)
        self._solve(sizes)
        return float(np.mean(np.log(self.of(sizes) / before)))

    def restore(self, theta: tuple[float, float, float]) -> None:
        """Coefficients learned before; fresh samples soon outweigh them."""
        self.theta = np.array(theta)
        self.count = 1e-6

    def _solve(self, sizes: Floats) -> None:
        """Non-negative least squares by leaving out what would be negative, with a prior on
        the proportions."""
        typical = np.diagonal(self._matrix) / self.count
        guess = PRIOR * float(np.exp(np.mean(np.log(self.of(sizes) / (sizes @ PRIOR)))))
        prior = PRIOR_WEIGHT * (typical + 1e-12)
        matrix = self._matrix + np.diag(prior)
        vector = self._vector + prior * guess
        active = [0, 1, 2]
        theta = np.zeros(3)
        while active:
            part = np.linalg.solve(matrix[np.ix_(active, active)], vector[active])
            if part.min() >= 0.0:
                theta[active] = part
                break
            active.pop(int(np.argmin(part)))
        # An empty request takes some time, whatever the least squares make of it: a latency is
        # divided by this.
        theta[0] = max(theta[0], LEAST_BASE * float(np.mean(sizes @ theta)))
        if theta[0] > 0.0:
            self.theta = theta
