"""A length model: boosters for the location, a table of residual quantiles around it.

The location is the shipped booster's, plus, once the gateway's own rows were fitted (refit.py),
a second booster's correction: the shipped model stays the prior, and a correction fitted on
few rows is small. Features are only ever appended, so each booster reads the first so many
of the cheap ones and of the neighbours' that it was fitted with.
"""

from __future__ import annotations

from bisect import bisect_right

from msgspec import Struct

from gateway.predict.boosters import Booster
from gateway.predict.features import NAMES
from gateway.predict.quantiles import Grid, rearranged


class Residual(Struct, frozen=True):
    """Quantiles of the residual at some predicted locations, in log1p tokens."""

    at: list[float]
    residuals: list[list[float]]

    def around(self, centre: float) -> list[float]:
        """Location plus residuals, linear between the table's locations, flat outside."""
        at, last = self.at, len(self.at) - 1
        i = bisect_right(at, centre) - 1
        if i < 0 or i >= last:
            return [centre + r for r in self.residuals[max(0, min(i, last))]]
        share = (centre - at[i]) / (at[i + 1] - at[i])
        low, high = self.residuals[i], self.residuals[i + 1]
        return [centre + a + share * (b - a) for a, b in zip(low, high, strict=True)]


class Part:
    """One booster and which columns it reads. Belongs to one thread, as its booster does.

    Args:
        text: the model as LightGBM saves it.
        cheap: how many of the cheap features it reads.
        projected: length of the projected vector; 0 for stage 0.
        near: how many of the neighbours' features.

    Raises:
        BoosterError: the text is no model, or of another width.
    """

    def __init__(self, text: str, cheap: int, projected: int = 0, near: int = 0) -> None:
        self._cheap = cheap
        self._between = slice(len(NAMES), len(NAMES) + projected + near)
        self._booster = Booster(text, cheap + projected + near)

    def predict(self, row: list[float]) -> float:
        """Location of a whole row, in log1p tokens; about 5 µs."""
        return self._booster.predict(row[: self._cheap] + row[self._between])


class LengthModel:
    """Features in, grid out. Belongs to one thread, as its parts do."""

    def __init__(self, base: Part, residual: Residual, correction: Part | None = None) -> None:
        self._base = base
        self._residual = residual
        self._correction = correction

    def grid(self, row: list[float]) -> Grid:
        """Quantiles of log1p(output tokens); some 10 µs.

        Args:
            row: all of `NAMES`; for the full model the projected vector and all of
                `NEIGHBOUR_NAMES` behind them.
        """
        centre = self._base.predict(row)
        if self._correction is not None:
            centre += self._correction.predict(row)
        return rearranged(self._residual.around(centre))
