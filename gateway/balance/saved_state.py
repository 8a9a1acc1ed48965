"""The learned state of the accounts, as a plain value that can be stored.

Names of accounts and models are the keys, so it survives a restart with other settings: unknown
names are skipped. Limits and windows are restored at `RESTORE_RATIO`, for the provider may have
changed meanwhile: growing again costs a few rounds, starting too wide a series of 429s.
"""

from __future__ import annotations

from msgspec import Struct

RESTORE_RATIO = 0.7
MAX_AGE_S = 3600.0
NO_CEILING = 1e9
"""Stands for no ceiling; JSON has no infinity."""


class SavedWindow(Struct, frozen=True):
    """Size and evidence of one window."""

    model: str  # the provider's name
    window: float
    noise: float  # standard deviation of log latencies around the curve
    coefficients: tuple[float, float, float]  # seconds: empty request, prompt token, output token
    weights: tuple[float, ...]  # of curve.LatencyBins, as are the sums
    sums: tuple[float, ...]


class SavedLimits(Struct, frozen=True):
    """Rate limits of one model."""

    model: str  # the provider's name
    rpm: int  # requests a minute, from headers; 0: none
    tpm: int  # tokens a minute; 0: none


class SavedAccount(Struct, frozen=True):
    """Everything that one account has learned."""

    name: str
    limit: float  # concurrency
    ceiling: float  # limit before the last cut, or NO_CEILING
    windows: tuple[SavedWindow, ...] = ()
    header_limits: tuple[SavedLimits, ...] = ()


class SavedState(Struct, frozen=True):
    """Everything that all accounts have learned."""

    accounts: tuple[SavedAccount, ...] = ()
