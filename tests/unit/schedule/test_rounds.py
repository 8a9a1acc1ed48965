from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.schedule.rounds import Rounds, Turn
from tests.unit.schedule.build import settings

INTERACTIVE, HEAVY, BACKGROUND, DEFERRED = Turn
WEIGHTS = {"interactive_weight": 4.0, "heavy_weight": 4.0, "background_weight": 1.0}


def rounds(**schedule: float) -> Rounds:
    return Rounds(settings(schedule={**WEIGHTS, **schedule}).schedule)


def serve(it: Rounds, costs: dict[Turn, list[int]], starts: int) -> dict[Turn, int]:
    """Work done by each when all always have a head; costs are drawn in turn."""
    random, done = Random(3), dict.fromkeys(costs, 0)
    heads = {turn: random.choice(sizes) for turn, sizes in costs.items()}
    for _ in range(starts):
        turn = it.choose(heads)
        it.charge(turn, heads[turn])
        done[turn] += heads[turn]
        heads[turn] = random.choice(costs[turn])
    return done


def test_rounds_give_work_by_weight_whatever_the_sizes() -> None:
    """Work is shared 4 : 4 : 1 in tokens, not in jobs."""
    done = serve(
        rounds(), {INTERACTIVE: [10, 60], HEAVY: [300, 2000], BACKGROUND: [100, 500]}, 20_000
    )
    assert done[INTERACTIVE] / done[HEAVY] == pytest.approx(1.0, rel=0.05)
    assert done[BACKGROUND] / done[HEAVY] == pytest.approx(0.25, rel=0.05)


def test_rounds_adapt_to_pressure() -> None:
    """The interactive weight counts up to twice."""
    it = rounds()
    it.adapt(2.0, 500.0)
    done = serve(it, {INTERACTIVE: [10, 60], HEAVY: [300, 2000]}, 20_000)
    assert done[INTERACTIVE] / done[HEAVY] == pytest.approx(2.0, rel=0.05)
    assert it.share(INTERACTIVE) == pytest.approx(8 / (8 + 4 + 1 + 1))


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=200),
    st.floats(0.1, 10),
)
@hypothesis_settings(deadline=None, database=None)
def test_rounds_never_leave_one_behind(costs: list[tuple[int, int]], weight: float) -> None:
    """The work over weight of two turns that always have work differs by a job and a quantum at
    most."""
    it = rounds(interactive_weight=4.0, heavy_weight=weight)
    done = {INTERACTIVE: 0.0, HEAVY: 0.0}
    largest = max(max(pair) for pair in costs)
    for pair in costs:
        heads = {INTERACTIVE: pair[0], HEAVY: pair[1]}
        turn = it.choose(heads)
        it.charge(turn, heads[turn])
        done[turn] += heads[turn]
        gap = abs(done[INTERACTIVE] / 4.0 - done[HEAVY] / weight)
        assert gap <= 3 * (largest + 128) / min(4.0, weight)


def test_rounds_keep_a_blocked_ones_credit_and_add_none() -> None:
    """A turn does not save up while it could not have started anything."""
    it = rounds()
    it.choose({INTERACTIVE: 10, HEAVY: 10_000})
    before = it.credit[HEAVY]
    for _ in range(100):
        it.choose({INTERACTIVE: 50})
        it.charge(INTERACTIVE, 50)
    assert it.credit[HEAVY] == before


def test_rounds_cover_the_turn_they_choose() -> None:
    """A head that needs thousands of rounds is covered too: rounds are counted, not walked."""
    it = rounds()
    assert it.choose({DEFERRED: 10**9}) is DEFERRED
    assert it.credit[DEFERRED] >= 10**9


def test_rounds_go_interactive_first_among_the_covered() -> None:
    """Covered turns go in the order of `Turn`."""
    it = rounds()
    it.credit = dict.fromkeys(Turn, 1000.0)
    heads = dict.fromkeys(reversed(list(Turn)), 900)
    order = []
    for _ in Turn:
        turn = it.choose(heads)
        it.charge(turn, 900)
        order.append(turn)
    assert order == list(Turn)


def test_rounds_reset_forgets_credit_and_debt() -> None:
    """A class that waits for nothing starts anew."""
    it = rounds()
    it.charge(HEAVY, 5000.0)
    it.reset(HEAVY)
    assert it.credit[HEAVY] == 0.0


def quantum(it: Rounds, turn: Turn) -> float:
    """The tokens that a round gives this turn."""
    it.reset(turn)
    it.choose({turn: 1})
    return it.credit[turn]


def test_rounds_give_out_two_mean_jobs_a_round() -> None:
    """A round gives two mean jobs by weight, and at least two small ones."""
    it = rounds()
    it.adapt(1.0, 500.0)
    assert sum(quantum(it, turn) for turn in Turn) == pytest.approx(2 * 500.0)
    assert quantum(it, HEAVY) == pytest.approx(4 * quantum(it, DEFERRED))
    it.adapt(1.0, 3.0)
    assert sum(quantum(it, turn) for turn in Turn) == pytest.approx(2 * 64.0)


def test_rounds_follow_size_and_pressure_each_alone() -> None:
    """A job grown by a quarter, shrunk by a fifth, or a step of pressure resizes the quanta."""
    for pressure, size in ((1.0, 500.0), (1.0, 320.0), (1.06, 400.0), (2.0, 400.0)):
        it = rounds()
        it.adapt(1.0, 400.0)
        it.adapt(pressure, size)
        assert it.share(INTERACTIVE) == pytest.approx(4 * pressure / (4 * pressure + 6))
        assert quantum(it, HEAVY) == pytest.approx(2 * size * 4 / (4 * pressure + 6))


def test_rounds_do_not_follow_every_small_change() -> None:
    """Small changes leave the quanta as they are, and add up."""
    it = rounds()
    it.adapt(1.0, 400.0)
    before = quantum(it, HEAVY)
    for pressure, size in ((1.04, 400.0), (1.0, 490.0), (1.0, 325.0), (1.04, 325.0)):
        it.adapt(pressure, size)
        assert quantum(it, HEAVY) == before
    for step in range(1, 11):
        it.adapt(1.0 + step / 20, 400.0)
    assert it.share(INTERACTIVE) == pytest.approx(6 / 12, rel=0.03)


def test_rounds_choose_the_one_that_needs_the_fewest() -> None:
    """All turns that could start get as many rounds; of two that need as many the earlier turn
    goes."""
    it = rounds()
    it.adapt(1.0, 500.0)
    each = quantum(it, HEAVY)
    for turn in Turn:
        it.reset(turn)
    assert it.choose({INTERACTIVE: int(3 * each), HEAVY: int(2 * each)}) is HEAVY
    assert it.credit[INTERACTIVE] == it.credit[HEAVY] == pytest.approx(2 * each)
    assert it.credit[BACKGROUND] == 0.0
    it.reset(INTERACTIVE)
    it.reset(HEAVY)
    assert it.choose({HEAVY: int(each), INTERACTIVE: int(each)}) is INTERACTIVE
    it.reset(INTERACTIVE)
    it.reset(HEAVY)
    assert it.choose({HEAVY: int(each / 2)}) is HEAVY
    assert it.credit[HEAVY] == pytest.approx(each), "a whole round, and one only"


def test_rounds_take_a_credit_that_is_just_enough_for_covered() -> None:
    """The first turn whose credit covers its head goes, to the last token."""
    it = rounds()
    it.charge(INTERACTIVE, -10.0)
    it.charge(HEAVY, -1000.0)
    assert it.choose({INTERACTIVE: 10, HEAVY: 10}) is INTERACTIVE
    assert it.choose({INTERACTIVE: 11, HEAVY: 10}) is HEAVY
