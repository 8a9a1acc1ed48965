"""The amount of work of a test: a short form in `make test`, a long one in `make test-long`.

The short form proves the same rule with fewer repetitions, examples or seeds.
"""

from __future__ import annotations

import os
from typing import TypeVar

LONG = os.environ.get("SAGESCHED_LONG_TESTS") == "1"

T = TypeVar("T")


def short_or_long(short: T, long: T) -> T:
    """`long` under `make test-long`, else `short`."""
    return long if LONG else short
