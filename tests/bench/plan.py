"""Sizes of a run of overhead.py."""

from __future__ import annotations

from typing import NamedTuple


class Plan(NamedTuple):
    """Of all its parts."""

    seconds: float = 3.0  # of one turn
    repeat: int = 3  # turns of each target at each cell
    fresh: int = 2  # gateways of each kind
    rounds: int = 2  # of paced streams through each, saturated in between
    streams: int = 2000
    prompts: int = 3000  # at each rate of `used`
    rows: int = 12_000  # of history that `used` begins with
    queued_turns: int = 20
