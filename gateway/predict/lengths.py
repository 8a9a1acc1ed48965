"""Length models: LightGBM boosters and a table, from features to a grid.

A model has a booster for the location of log length and one for its scale (a request for a yes or
no scatters less than a request for a story, though both may be forecast at 60 tokens), and a table
of quantiles of the residual in units of the scale, by location. Together they are as good as a
booster for each of seven levels at a third of the cost (models/MODELCARD.md).

Two things are added to the location: for the full model the head's median (head.py), averaged in
with `HEAD_SHARE`; and, once the gateway's own rows were fitted (refit/refit.py), the output of a
third booster. The shipped model stays the prior: a correction fitted on few rows is small.

Features are only ever appended, so each booster reads the first so many of the cheap ones and
of the neighbours' that it was fitted with.
"""

from __future__ import annotations

import ctypes
import importlib.util
import struct
import sys
from bisect import bisect_right
from functools import cache
from math import exp, log
from pathlib import Path

from msgspec import Struct

from gateway.predict.features import NAMES
from gateway.predict.quantiles import Grid, rearranged

_PREDICT_NORMAL = 0
_FLOAT64 = 1
_PARAMETERS = b"num_threads=1 verbosity=-1"
_LIBRARY = {"win32": "lib_lightgbm.dll", "darwin": "lib_lightgbm.dylib"}


class BoosterError(Exception):
    """A model file is unusable, or the library is missing."""


@cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("lightgbm")  # finds the package without importing it
    name = _LIBRARY.get(sys.platform, "lib_lightgbm.so")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in (Path(folder) / "lib" / name, Path(folder) / name):
            if path.exists():
                library = ctypes.CDLL(str(path))
                library.LGBM_GetLastError.restype = ctypes.c_char_p
                return library
    raise BoosterError("the LightGBM library is not installed")


_SINGLE_ROW = ctypes.PYFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 4)
"""The form of the call for a single row. It keeps the interpreter lock: for some microseconds the
event loop must not have to wait until another thread gives the lock back."""


def _check(status: int) -> None:
    if status != 0:
        message = _library().LGBM_GetLastError() or b"unknown error"
        raise BoosterError(message.decode("utf-8", "replace"))


class Columns:
    """The columns of a row that some boosters read, as doubles side by side: filled once for all
    of them. Belongs to one thread.

    Args:
        cheap: number of cheap features.
        projected: length of the projected vector; 0 for stage 0.
        near: number of neighbours' features.
    """

    def __init__(self, cheap: int, projected: int = 0, near: int = 0) -> None:
        self.width = cheap + projected + near
        self._cheap = cheap
        self._between = slice(len(NAMES), len(NAMES) + projected + near)
        self._doubles = (ctypes.c_double * self.width)()
        self._pack = struct.Struct(f"={self.width}d").pack_into
        self.address = ctypes.addressof(self._doubles)

    def fill(self, row: list[float]) -> None:
        """Take the values from a row of all columns."""
        self._pack(self._doubles, 0, *row[: self._cheap], *row[self._between])


class Booster:
    """A LightGBM text model of one output, evaluated one row at a time through the C interface.

    The Python package's `Booster.predict` takes 25 to 60 µs a row in checks and copies, and
    importing the package brings SciPy along (50 MB, most of a second). The C interface has a call
    for single rows (`LGBM_BoosterPredictForMatSingleRowFast`, c_api.h of LightGBM 4), which takes
    about 5 µs. The library trusts a model file, so files are checked by sha256 before. Belongs to
    the thread of its columns.

    Args:
        text: the model as LightGBM saves it.
        columns: the values that it reads; boosters of the same columns may share them.

    Raises:
        BoosterError: the text is no model, or of another width.
    """

    def __init__(self, text: str, columns: Columns) -> None:
        library, width = _library(), columns.width
        if not text.startswith("tree\n"):
            raise BoosterError("not a LightGBM text model")
        self._booster, self._fast = ctypes.c_void_p(), ctypes.c_void_p()
        rounds, found = ctypes.c_int(), ctypes.c_int()
        _check(
            library.LGBM_BoosterLoadModelFromString(
                text.encode(), ctypes.byref(rounds), ctypes.byref(self._booster)
            )
        )
        _check(library.LGBM_BoosterGetNumFeature(self._booster, ctypes.byref(found)))
        if found.value != width:
            raise BoosterError(f"the model takes {found.value} features, the code gives {width}")
        _check(
            library.LGBM_BoosterPredictForMatSingleRowFastInit(
                self._booster,
                ctypes.c_int(_PREDICT_NORMAL),
                ctypes.c_int(0),  # from the first tree
                ctypes.c_int(-1),  # to the last
                ctypes.c_int(_FLOAT64),
                ctypes.c_int32(width),
                ctypes.c_char_p(_PARAMETERS),
                ctypes.byref(self._fast),
            )
        )
        self.columns = columns
        self._out = (ctypes.c_double * 1)()
        self._length = ctypes.c_int64()
        self._call = _SINGLE_ROW(("LGBM_BoosterPredictForMatSingleRowFast", library))
        # Addresses as plain values: making them anew would cost more than the trees.
        self._arguments = (
            self._fast.value,
            columns.address,
            ctypes.addressof(self._length),
            ctypes.addressof(self._out),
        )

    def predict(self) -> float:
        """The model's output for the columns as they were filled last; about 5 µs."""
        if self._call(*self._arguments) != 0:
            _check(-1)
        return self._out[0]

    def __del__(self) -> None:
        fast, booster = getattr(self, "_fast", None), getattr(self, "_booster", None)
        if fast:
            _library().LGBM_FastConfigFree(fast)
        if booster:
            _library().LGBM_BoosterFree(booster)


HEAD_SHARE = 0.3  # of the head in the average: chosen with models/compare_shapes.py
MEDIAN = 3  # its place in a grid
NARROWEST, WIDEST = -3.0, 1.5  # log scale is held within these
SHIFT = 1.0  # log odds of a short answer lost by a unit of log length
LEAST = 0.003  # a probability is held within this and 1 - this


class ResidualTable(Struct, frozen=True):
    """The table: quantiles of the residual at some predicted locations, in units of the scale."""

    at: list[float]
    residuals: list[list[float]]

    def around(self, centre: float, scale: float = 1.0) -> list[float]:
        """Location plus scaled residuals: linear between the table's locations, flat outside."""
        at, last = self.at, len(self.at) - 1
        i = bisect_right(at, centre) - 1
        if i < 0 or i >= last:
            return [centre + scale * r for r in self.residuals[max(0, min(i, last))]]
        share = (centre - at[i]) / (at[i + 1] - at[i])
        low, high = self.residuals[i], self.residuals[i + 1]
        return [centre + scale * (a + share * (b - a)) for a, b in zip(low, high, strict=True)]


class LengthModel:
    """Boosters and table that make a grid of features. Belongs to one thread.

    Args:
        location, scale: boosters of the same columns; the scale's output is a logarithm.
        residual: the table.
        correction: a refit's booster, added to the location; it has columns of its own.
        short: booster of the probability that the answer is short (`ShortOdds` in forecast.py),
            of the columns of the first two.
    """

    def __init__(
        self,
        location: Booster,
        scale: Booster,
        residual: ResidualTable,
        correction: Booster | None = None,
        short: Booster | None = None,
    ) -> None:
        self._location = location
        self._scale = scale
        self._residual = residual
        self._correction = correction
        self._short = short

    def grid(self, row: list[float], head: Grid | None = None) -> Grid:
        """Quantiles of log1p(output tokens); some 20 µs.

        Args:
            row: all of `NAMES`; for the full model followed by the projected vector and all of
                `NEIGHBOUR_NAMES`.
            head: the head's grid, where there is one.
        """
        self._location.columns.fill(row)
        centre = self._location.predict()
        if head is not None:
            centre += HEAD_SHARE * (head[MEDIAN] - centre)
        centre += self._corrected_by(row)
        scale = exp(min(max(self._scale.predict(), NARROWEST), WIDEST))
        return spread(centre, scale, self._residual, head)

    def short(self, row: list[float]) -> float | None:
        """Log odds of a short answer; None without that booster. `row` as for `grid`."""
        if self._short is None:
            return None
        self._short.columns.fill(row)
        probability = min(max(self._short.predict(), LEAST), 1.0 - LEAST)
        return log(probability / (1.0 - probability)) - SHIFT * self._corrected_by(row)

    def _corrected_by(self, row: list[float]) -> float:
        """The refit's part of the location; 0 without a refit."""
        if self._correction is None:
            return 0.0
        self._correction.columns.fill(row)
        return self._correction.predict()


def spread(centre: float, scale: float, residual: ResidualTable, head: Grid | None) -> Grid:
    """The grid around a location that has the head's median averaged in already."""
    if head is None:
        return rearranged(residual.around(centre, scale))
    own, middle = residual.around(centre, (1.0 - HEAD_SHARE) * scale), head[MEDIAN]
    return rearranged([a + HEAD_SHARE * (b - middle) for a, b in zip(own, head, strict=True)])
