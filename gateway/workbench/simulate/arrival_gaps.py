"""Gaps between arrivals, with mean 1; the load stretches them.

- `poisson`: many independent clients.
- `burst`: gaps with a coefficient of variation of 4, between public chat traces (1.1) and coding
  tools (12.8).
- `traced`: the recorded rhythm of a file, from a random place on.
"""

from __future__ import annotations

import csv
import gzip
from math import sqrt
from pathlib import Path

import numpy as np

from gateway.errors import SettingsError
from gateway.workbench.figures import Floats

BURST_CV = 4.0
LEAST = 20  # arrivals of a file


def poisson(count: int, chance: np.random.Generator) -> Floats:
    """Exponential gaps."""
    return chance.exponential(1.0, count)


def burst(count: int, chance: np.random.Generator, cv: float = BURST_CV) -> Floats:
    """Hyperexponential gaps with balanced means (Whitt 1982)."""
    often = (1 + sqrt((cv**2 - 1) / (cv**2 + 1))) / 2
    short = chance.random(count) < often
    means = np.where(short, 1 / (2 * often), 1 / (2 * (1 - often)))
    return means * chance.exponential(1.0, count)


def traced(gaps: Floats, count: int, chance: np.random.Generator) -> Floats:
    """`count` gaps of a trace from a random place on; a short trace starts over at its end."""
    return np.resize(np.roll(gaps, -int(chance.integers(len(gaps)))), count)


def read(path: Path) -> Floats:
    """Gaps in seconds of a .csv or .csv.gz with a column `timestamp_s`.

    Raises:
        SettingsError: the file cannot be read or has another format.
    """
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            times = sorted(float(line["timestamp_s"]) for line in csv.DictReader(file))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    except (KeyError, TypeError, ValueError):
        raise SettingsError(f"{path}: expected a column timestamp_s of numbers") from None
    gaps = np.diff(np.array(times))
    if len(times) < LEAST or gaps.sum() <= 0:
        raise SettingsError(f"{path}: expected at least {LEAST} arrivals, not all at once")
    return gaps
