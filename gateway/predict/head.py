"""The small half of the fine-tuned length network: from the encoder's code to a grid.

The large half is the encoder, one run of which gives a sentence vector and a code of 64 numbers
about the answer's length. The head is two small layers over the code, the model's own 16 numbers
and the side features that a text does not show (length of earlier answers, max_tokens, tools);
numpy computes them in some 50 µs, and other side features need no second run of the encoder.
Trained by models/finetune.py, exported by models/export_length.py.

Its grid is averaged with that of the boosters (lengths.py). They know the neighbours, the
template and the tenant, which the network does not; it reads the text as they cannot. Their
errors are of different kinds, so the mean is better than either.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import erf, sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gateway.predict.encoder import Vector
from gateway.predict.features import NAMES
from gateway.predict.quantiles import Grid, rearranged
from gateway.types import QUANTILE_LEVELS

Floats = npt.NDArray[np.float32]

SIDES = (
    *("text", "chars", "system", "prior_mean", "last_answer", "turns", "lines", "tools"),
    *("json_format", "max_tokens", "asked_size", "model_mean"),
)
"""The features that the network reads beside the text."""
MAY_LACK = ("last_answer", "max_tokens", "asked_size", "model_mean")  # each with a flag
UNKNOWN_MODEL = 0
FAR = 5.0  # deviations at which a side feature is held
_ROOT = 1.0 / sqrt(2.0)


class Head:
    """The network's last layers.

    Args:
        parts: arrays of models/head.npz.

    Raises:
        ValueError: they do not fit each other or this code.
    """

    def __init__(self, parts: dict[str, npt.NDArray[np.generic]]) -> None:
        def array(name: str) -> Floats:
            return np.ascontiguousarray(parts[name], np.float32)

        self._first, self._first_bias = array("first.weight"), array("first.bias")
        self._last, self._last_bias = array("last.weight"), array("last.bias")
        self._models = array("model.weight")
        self._numbers = {str(name): i + 1 for i, name in enumerate(parts["models"])}
        self._mean, self._deviation = array("side_mean"), array("side_deviation")
        self._y = float(parts["y_mean"]), float(parts["y_deviation"])
        self._columns = [NAMES.index(name) for name in SIDES]
        self._flagged = [SIDES.index(name) for name in MAY_LACK]
        self.width = self._first.shape[1] - self._models.shape[1] - len(SIDES) - len(MAY_LACK)
        if (
            self.width < 1
            or len(self._models) != len(self._numbers) + 1
            or len(self._mean) != len(SIDES)
            or self._last.shape != (len(QUANTILE_LEVELS), len(self._first))
        ):
            raise ValueError("its parts do not fit each other")

    @classmethod
    def load(cls, path: Path) -> Head:
        """Load a file. Raises ValueError, KeyError or an error of `numpy.load` on a broken one."""
        with np.load(path, allow_pickle=False) as file:
            return cls(dict(file))

    def grid(self, code: Vector, model: str, cheap: Sequence[float]) -> Grid:
        """Quantiles of log1p(output tokens).

        Args:
            code: the encoder's output.
            cheap: all of `features.NAMES`.
        """
        number = self._numbers.get(model, UNKNOWN_MODEL)
        both = np.concatenate([_gelu(code), self._models[number], self._sides(cheap)])
        hidden = _gelu(self._first @ both + self._first_bias)
        mean, deviation = self._y
        scaled = (self._last @ hidden + self._last_bias) * deviation + mean
        return rearranged(scaled.tolist())

    def _sides(self, cheap: Sequence[float]) -> Floats:
        """Side features scaled to mean 0 and deviation 1, absent ones 0; then flags of absence."""
        picked = np.array([cheap[i] for i in self._columns], np.float32)
        scaled = (picked - self._mean) / self._deviation
        absent = np.isnan(scaled)
        values = np.where(absent, 0.0, np.clip(scaled, -FAR, FAR))
        return np.concatenate([values, absent[self._flagged]]).astype(np.float32)


def _gelu(x: Floats) -> Floats:
    # numpy has no erf; a list of 160 takes 15 µs
    shares = [1.0 + erf(value * _ROOT) for value in x.tolist()]
    out: Floats = x * 0.5 * np.array(shares, np.float32)
    return out
