"""Lessons that wait to be learned: a bounded sample of those that came, fair and unbiased.

Each lesson draws a rank by chance. The smallest rank of a tenant is learned first, and where there
is no more room the largest rank of the tenant with the most lessons goes. So of the lessons that a
tenant hands in at once each has the same chance to be learned, long answers as much as short
ones; and a flood of one tenant takes no other's place.
"""

from __future__ import annotations

from bisect import insort
from itertools import count
from random import Random

from gateway.predict.lesson import Lesson

Ranked = tuple[float, int, Lesson]


class LessonReservoir:
    """Lessons by tenant, at most `room` in all."""

    def __init__(self, room: int, chance: Random) -> None:
        self._room = room
        self._chance = chance
        self._numbers = count()  # so that no two lessons are compared
        self._tenants: dict[str, list[Ranked]] = {}  # in turn; each by rank
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"<LessonReservoir {self._size} of {self._room}, {len(self._tenants)} tenants>"

    def add(self, lesson: Lesson) -> Lesson | None:
        """Take in a lesson; the one that must go for it, which may be itself; None where there is
        room."""
        ranked = (self._chance.random(), next(self._numbers), lesson)
        insort(self._tenants.setdefault(lesson.view.tenant, []), ranked)
        self._size += 1
        if self._size <= self._room:
            return None
        return self._removed(max(self._tenants, key=lambda name: len(self._tenants[name])), -1)

    def take(self) -> Lesson | None:
        """Take out the next lesson, tenants by turns; None where there is none."""
        if not self._size:
            return None
        tenant = next(iter(self._tenants))
        lesson = self._removed(tenant, 0)
        if (left := self._tenants.pop(tenant, None)) is not None:
            self._tenants[tenant] = left  # last in turn
        return lesson

    def clear(self) -> None:
        """Drop all lessons."""
        self._tenants.clear()
        self._size = 0

    def _removed(self, tenant: str, place: int) -> Lesson:
        lessons = self._tenants[tenant]
        lesson = lessons.pop(place)[2]
        if not lessons:
            del self._tenants[tenant]
        self._size -= 1
        return lesson
