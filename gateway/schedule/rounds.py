"""Turns among the classes of a pool: deficit round-robin (Shreedhar & Varghese 1995).

Each round gives every class that can start something a quantum of credit, in tokens; a class may
start its head when its credit covers it, and pays. So over any time in which two classes have work
that could start, their work is as their weights, within one quantum and one job. Strict priority
of the short may cost the heavy everything (arXiv 2604.06970); here a short head is covered by one
quantum and hardly ever waits for its turn.

1. Credit is charged by forecast when a job starts and corrected by what it used when it ends.
2. A class whose head is blocked keeps its credit and earns none: it does not save up.
3. A class that waits for nothing starts anew, at zero, owing nothing.
4. Of several classes that are covered the first in `Turn`'s order goes: within a round the
   interactive ones go first.
5. Rounds in which no class would be covered are not walked, they are counted.

The quanta adapt: they are shares of the mean job, so that a round is a few jobs whatever their
size; and the interactive weight grows with congestion (`pressure`), to twice its value.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from math import ceil

from gateway.settings.schema import Schedule
from gateway.types import JobClass

ROUND_JOBS = 2.0  # mean jobs given out in a round
UNIT_MIN = 64.0  # tokens of the mean job, at least


class Turn(Enum):
    """The participants of a round, in this order. Jobs that overload defers have a turn of their
    own, with the weight of the background: late, but never starved."""

    INTERACTIVE = 0
    HEAVY = 1
    BACKGROUND = 2
    DEFERRED = 3

    __hash__ = object.__hash__  # Enum's own hashes the name, at ten times the cost


TURNS = tuple(Turn)
TURN_OF = {
    JobClass.INTERACTIVE: Turn.INTERACTIVE,
    JobClass.HEAVY: Turn.HEAVY,
    JobClass.BACKGROUND: Turn.BACKGROUND,
}


class Rounds:
    """The credits of one pool's turns, in tokens."""

    __slots__ = ("_pressure", "_quanta", "_unit", "_weights", "credit")

    def __init__(self, settings: Schedule) -> None:
        self._weights = {
            Turn.INTERACTIVE: settings.interactive_weight,
            Turn.HEAVY: settings.heavy_weight,
            Turn.BACKGROUND: settings.background_weight,
            Turn.DEFERRED: settings.background_weight,
        }
        self.credit = dict.fromkeys(Turn, 0.0)
        self._pressure, self._unit = 1.0, UNIT_MIN
        self._quanta = self._shares()

    def adapt(self, pressure: float, mean_charge: float) -> None:
        """Resize the quanta where they are off by more than a little.

        Args:
            pressure: factor on the interactive weight, 1 to 2.
            mean_charge: tokens of the mean job.
        """
        unit = max(UNIT_MIN, mean_charge)
        if abs(pressure - self._pressure) > 0.05 or not 0.8 < unit / self._unit < 1.25:
            self._pressure, self._unit = pressure, unit
            self._quanta = self._shares()

    def choose(self, charges: Mapping[Turn, int]) -> Turn:
        """The turn that goes, with credit that covers its head.

        Args:
            charges: what the head costs of each turn whose head can start; not empty.
        """
        credit, quanta = self.credit, self._quanta
        rounds: dict[Turn, int] = {}  # that each lacks, in the order of `Turn`
        for turn in TURNS:
            if turn in charges:
                lack = charges[turn] - credit[turn]
                if lack <= 0.0:
                    return turn
                rounds[turn] = ceil(lack / quanta[turn])
        chosen = min(rounds, key=rounds.__getitem__)
        for turn in charges:
            credit[turn] += rounds[chosen] * quanta[turn]
        credit[chosen] = max(credit[chosen], charges[chosen])  # covered in spite of rounding
        return chosen

    def charge(self, turn: Turn, tokens: float) -> None:
        """Charge a start, or its correction at the end, which may be negative."""
        self.credit[turn] -= tokens

    def reset(self, turn: Turn) -> None:
        self.credit[turn] = 0.0

    def share(self, turn: Turn) -> float:
        """The turn's part of the work while all turns have some."""
        return self._quanta[turn] / sum(self._quanta.values())

    def _shares(self) -> dict[Turn, float]:
        weights = dict(self._weights)
        weights[Turn.INTERACTIVE] *= self._pressure
        total = sum(weights.values())
        return {t: ROUND_JOBS * self._unit * weight / total for t, weight in weights.items()}
