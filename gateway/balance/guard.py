"""The covariance guard: was more in flight worth anything?

Curves are a family, and a provider may be outside of it. What needs no model: over blocks of
completions, did the rate of work done rise or fall with the number in flight? Where it surely
fell, the window is past the knee, whatever the curve says (Uber's Cinnamon auto-tuner corrects
a drifting latency target by the same sign).

Only blocks count during which the window was full throughout: in an under-used one, many are in
flight *because* little gets done, and the sign would accuse the wrong one.
"""

from __future__ import annotations

import math

KEEP = 0.93  # per block: about 14 are remembered
BLOCKS = 8.0  # before it may speak
SURE = -3.0  # Student's t of the correlation


class Guard:
    __slots__ = ("_n", "_sx", "_sxx", "_sxy", "_sy", "_syy")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._n = self._sx = self._sy = self._sxx = self._syy = self._sxy = 0.0

    def add(self, inflight: float, rate: float) -> bool:
        """One full block: its mean number in flight and its work a second. True where the
        window should shrink; the guard then starts anew."""
        x, y = math.log(inflight), math.log(rate)
        self._n = self._n * KEEP + 1.0
        self._sx = self._sx * KEEP + x
        self._sy = self._sy * KEEP + y
        self._sxx = self._sxx * KEEP + x * x
        self._syy = self._syy * KEEP + y * y
        self._sxy = self._sxy * KEEP + x * y
        if self._n < BLOCKS or not self._speaks():
            return False
        self.reset()
        return True

    def _speaks(self) -> bool:
        n = self._n
        xx = self._sxx - self._sx * self._sx / n
        yy = self._syy - self._sy * self._sy / n
        xy = self._sxy - self._sx * self._sy / n
        if xx <= 1e-9 * n or yy <= 1e-9 * n:
            return False
        r = max(min(xy / math.sqrt(xx * yy), 0.999999), -0.999999)
        return r * math.sqrt((n - 2.0) / (1.0 - r * r)) < SURE
