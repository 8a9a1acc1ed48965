"""What finished requests teach at once: how far off the boosters are for each
tenant and model. A tenant's own: what one reports must not bend another's forecasts.

The boosters were fitted elsewhere; a model they never saw, or one that has changed, is off
by a factor more than in its order. So each pair keeps a running mean of the residual
(true minus forecast median, in log1p tokens), forgetting with a memory of some 200
answers and shrunk towards zero as if ten answers had been right. It is added to the grid.

The predictor thread owns the sums. The event loop sees a `Calibration`: an immutable table
that is replaced as a whole, so stage 0 reads it without a lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from msgspec import Struct

MEMORY = 200.0  # answers
PRIOR = 10.0  # answers that were right, before the first
LARGEST = 2.5  # one residual counts for at most this: a factor of 12
PAIRS = 1000  # most tenants' models remembered

Pair = tuple[str, str]  # tenant, model
_NOTHING: Mapping[Pair, tuple[float, float]] = MappingProxyType({})


class Calibration(Struct, frozen=True):
    """By tenant and model: what to add to stage 0's grid and to the full model's."""

    bias: Mapping[Pair, tuple[float, float]] = _NOTHING

    def stage0(self, tenant: str, model: str) -> float:
        return self.bias.get((tenant, model), (0.0, 0.0))[0]

    def full(self, tenant: str, model: str) -> float:
        return self.bias.get((tenant, model), (0.0, 0.0))[1]


class _Sums:
    __slots__ = ("full", "full_count", "stage0", "stage0_count")

    def __init__(self) -> None:
        self.stage0 = self.full = self.stage0_count = self.full_count = 0.0

    def bias(self) -> tuple[float, float]:
        return (
            self.stage0 / (self.stage0_count + PRIOR),
            self.full / (self.full_count + PRIOR),
        )


class Residuals:
    """The running means behind a `Calibration`."""

    def __init__(self) -> None:
        self._sums: dict[Pair, _Sums] = {}
        self.table = Calibration()

    def learn(
        self,
        pair: Pair,
        length: float,
        *,
        stage0: float,
        full: float | None,
        censored: bool,
    ) -> None:
        """One answer of `length` log1p tokens, of which the medians `stage0`, `full` were forecast.

        A censored length says something only where it is above the forecast already.
        """
        sums = self._sums.pop(pair, None) or _Sums()
        keep = 1.0 - 1.0 / MEMORY
        if not censored or length > stage0:
            sums.stage0 = sums.stage0 * keep + _clipped(length - stage0)
            sums.stage0_count = sums.stage0_count * keep + 1.0
        if full is not None and (not censored or length > full):
            sums.full = sums.full * keep + _clipped(length - full)
            sums.full_count = sums.full_count * keep + 1.0
        self._sums[pair] = sums  # last in order: the first is the one longest unused
        if len(self._sums) > PAIRS:
            del self._sums[next(iter(self._sums))]
        self.table = Calibration(MappingProxyType({m: s.bias() for m, s in self._sums.items()}))


def _clipped(residual: float) -> float:
    return max(-LARGEST, min(LARGEST, residual))
