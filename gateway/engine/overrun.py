"""A running answer against its forecast."""

from __future__ import annotations

from collections.abc import Callable
from math import inf


class Overrun:
    """A stream's length against its forecast: tells when it passes the p90, and again at each
    doubling. That it is still running is news only where it should have ended.

    `at` is the length, of all choices together, at which `passed` is to be called.
    """

    __slots__ = ("_n", "_told", "at")

    def __init__(self, p90: float, n: int, told: Callable[[int], object] | None) -> None:
        self._n, self._told = n, told
        self.at = inf if told is None else max(p90, 1.0) * n

    def passed(self, tokens: int) -> None:
        """`tokens` are past `at`."""
        assert self._told is not None
        while self.at < tokens:  # a coarse stream may pass several doublings at once
            self.at *= 2
        self._told(tokens // self._n)
