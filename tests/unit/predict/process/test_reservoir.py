"""Lessons that wait to be learned: bounded, fair among tenants, unbiased within each."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from gateway.predict.lesson import Lesson
from gateway.predict.process.reservoir import LessonReservoir
from gateway.predict.prompt_view import PromptView

TENANTS = ("a", "b", "c")


def lesson(tenant: str, tokens: int) -> Lesson:
    view = PromptView.of_prompt("x", tenant=tenant, model="m")
    return Lesson(view, tokens, None, False, True, 0.0)


def drained(reservoir: LessonReservoir) -> list[Lesson]:
    return list(iter(reservoir.take, None))


@given(
    st.integers(1, 20),
    st.integers(0, 2**32),
    st.lists(st.one_of(st.none(), st.sampled_from(TENANTS)), max_size=80),
)
def test_every_lesson_comes_out_once(room: int, seed: int, steps: list[str | None]) -> None:
    """Each lesson is taken or left out, once, and at most `room` wait, in any order of adding and
    taking (None)."""
    reservoir = LessonReservoir(room, Random(seed))
    added: list[Lesson] = []
    out: list[Lesson] = []
    for number, step in enumerate(steps):
        if step is None:
            taken = reservoir.take()
            assert (taken is None) == (len(added) == len(out))
        else:
            added.append(lesson(step, number))
            taken = reservoir.add(added[-1])
            assert (taken is None) or len(reservoir) == room
        out += [] if taken is None else [taken]
        assert len(reservoir) == len(added) - len(out) <= room
    out += drained(reservoir)
    assert sorted(one.output_tokens for one in out) == [one.output_tokens for one in added]


@given(st.integers(0, 2**32), st.lists(st.integers(0, 60), min_size=3, max_size=3))
def test_room_is_shared_fairly(seed: int, counts: list[int]) -> None:
    """A tenant keeps all it has up to an equal share of the room, whatever others send, and the
    others' flood is cut to what is left."""
    room = 30
    reservoir, chance = LessonReservoir(room, Random(seed)), Random(seed)
    sent = [t for t, n in zip(TENANTS, counts, strict=True) for _ in range(n)]
    chance.shuffle(sent)
    for number, tenant in enumerate(sent):
        reservoir.add(lesson(tenant, number))
    kept = Counter(one.view.tenant for one in drained(reservoir))
    for tenant, count in zip(TENANTS, counts, strict=True):
        assert kept[tenant] >= min(count, room // len(TENANTS))
    assert sum(kept.values()) == min(room, len(sent))


def test_tenants_take_turns() -> None:
    """One lesson of each tenant, then the next of each."""
    reservoir = LessonReservoir(100, Random(1))
    for tenant, count in (("a", 5), ("b", 2), ("c", 1)):
        for number in range(count):
            reservoir.add(lesson(tenant, number))
    order = "".join(one.view.tenant for one in drained(reservoir))
    assert order == "abcabaaa"


def test_lessons_of_a_tick_have_the_same_chance() -> None:
    """Of 40 lessons of one tenant, among those of others, that come at once while some of earlier
    ticks wait, each is learned as often, the first as the last: within four standard deviations of
    1,000 runs. So what is learned has the lengths of what came."""
    runs, came, learned = 1000, 40, 8
    chance, found = Random(11), Counter[int]()
    for _ in range(runs):
        reservoir = LessonReservoir(24, chance)
        for number in range(50):  # of earlier ticks
            reservoir.add(lesson("a" if number % 2 else "b", -1))
        for number in range(came):
            reservoir.add(lesson("a", number))
            if number % 6 == 0:
                reservoir.add(lesson("b", -1))
        for _ in range(learned):
            taken = reservoir.take()
            assert taken is not None
            found[taken.output_tokens] += 1
    total = sum(found[number] for number in range(came))
    expected = total / came
    assert expected > 50
    assert all(abs(found[number] - expected) < 4 * expected**0.5 for number in range(came))


def test_cleared_reservoir_is_empty() -> None:
    """Nothing is left, and there is room again."""
    reservoir = LessonReservoir(2, Random(1))
    reservoir.add(lesson("a", 1))
    reservoir.clear()
    assert (len(reservoir), reservoir.take()) == (0, None)
    assert reservoir.add(lesson("a", 2)) is None
