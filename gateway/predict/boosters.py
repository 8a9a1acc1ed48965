"""LightGBM text models, one row at a time, through the library's C interface.

Why not the Python package's `Booster.predict`: it takes 25 to 60 µs a row in checks and
copies, and importing the package brings SciPy along (50 MB, most of a second). The C
interface has a call made for this (`LGBM_BoosterPredictForMatSingleRowFast`, c_api.h of
LightGBM 4), which takes about 5 µs, and the interpreter lock is free during it. Files are
checked by sha256 before they come here: the library trusts a model file.

A `Booster` belongs to one thread: its row buffer is its own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

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
                return _declared(ctypes.CDLL(str(path)))
    raise BoosterError("the LightGBM library is not installed")


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.LGBM_GetLastError.restype = ctypes.c_char_p
    library.LGBM_BoosterPredictForMatSingleRowFast.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.POINTER(ctypes.c_int64),
        ctypes.c_void_p,
    ]
    return library


def _check(status: int) -> None:
    if status != 0:
        message = _library().LGBM_GetLastError() or b"unknown error"
        raise BoosterError(message.decode("utf-8", "replace"))


class Booster:
    """One model of one output.

    Args:
        text: the model as LightGBM saves it.
        width: number of features the caller will give; another number is an error.

    Raises:
        BoosterError: the text is no model, or of another width.
    """

    def __init__(self, text: str, width: int) -> None:
        library = _library()
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
        self._row: Any = (ctypes.c_double * width)()
        self._out = (ctypes.c_double * 1)()
        self._length = ctypes.c_int64()
        self._call = library.LGBM_BoosterPredictForMatSingleRowFast
        # Addresses as plain values: making them anew would cost more than the trees.
        self._arguments = (
            self._fast,
            ctypes.addressof(self._row),
            ctypes.byref(self._length),
            ctypes.addressof(self._out),
        )

    def predict(self, row: list[float]) -> float:
        """The model's output for one row of exactly the declared width; about 5 µs."""
        self._row[:] = row
        if self._call(*self._arguments) != 0:
            _check(-1)
        return self._out[0]

    def __del__(self) -> None:
        fast, booster = getattr(self, "_fast", None), getattr(self, "_booster", None)
        if fast:
            _library().LGBM_FastConfigFree(fast)
        if booster:
            _library().LGBM_BoosterFree(booster)
