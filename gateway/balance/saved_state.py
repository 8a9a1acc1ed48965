"""What the accounts have learned, as a plain value that can be stored.

Kept by the names of account and model, so that it survives a restart with other settings; what
it does not know is passed over. Restored cautiously: a provider may have changed meanwhile, and
growing again costs rounds, beginning too wide may cost an episode of 429s.
"""

from __future__ import annotations

from msgspec import Struct

RESTORE_RATIO = 0.7
MAX_AGE_S = 3600.0
NO_CEILING = 1e9
"""Stands for "none was met"; JSON has no infinity."""


class SavedWindow(Struct, frozen=True):
    model: str  # the provider's name
    window: float
    noise: float  # standard deviation of log latencies around the curve
    coefficients: tuple[float, float, float]  # seconds: empty request, prompt token, output token
    weights: tuple[float, ...]  # the bins of curve.py
    sums: tuple[float, ...]


class SavedLimits(Struct, frozen=True):
    model: str  # the provider's name
    rpm: int  # from headers; 0: none
    tpm: int


class SavedAccount(Struct, frozen=True):
    name: str
    limit: float
    ceiling: float
    windows: tuple[SavedWindow, ...] = ()
    allowances: tuple[SavedLimits, ...] = ()


class SavedState(Struct, frozen=True):
    accounts: tuple[SavedAccount, ...] = ()
