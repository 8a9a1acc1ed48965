from __future__ import annotations

from gateway.balance.limit import PROBE_RATIO, QUICKLY, Limit


def limit(initial: int = 16, low: int = 1, high: int = 64) -> Limit:
    return Limit(initial, low, high, 0.75)


def test_limit_triples_in_a_round_before_the_first_drop() -> None:
    """In slow start the limit grows by QUICKLY per success while it is in use."""
    it = limit(4)
    for inflight in (4, 6, 8, 10):
        it.on_success(inflight)
    assert it.value == 4 + 4 * QUICKLY
    assert QUICKLY == 2.0


def test_limit_grows_by_one_in_a_round_after_a_drop() -> None:
    """After a drop the limit grows by 1/limit per success."""
    it = limit(16)
    assert it.on_drop(lease=1, next_lease=2)
    assert it.value == 12
    for _ in range(12):
        it.on_success(12)
    assert 12.9 < it.value < 13.1


def test_limit_does_not_grow_while_it_is_not_in_use() -> None:
    """With fewer than half in flight a success does not raise the limit."""
    it = limit(16)
    it.on_success(7)
    assert it.value == 16
    it.on_success(8)
    assert it.value == 16 + QUICKLY


def test_limit_is_cut_once_per_episode() -> None:
    """Drops of requests that began before the last cut are ignored."""
    it = limit(20)
    assert it.on_drop(lease=3, next_lease=21)
    assert [it.on_drop(lease, next_lease=21) for lease in range(4, 21)] == [False] * 17
    assert (it.value, it.cuts) == (15, 1)
    assert it.on_drop(lease=21, next_lease=30)
    assert (it.value, it.cuts) == (11.25, 2)


def test_limit_stays_within_its_bounds() -> None:
    """The limit never goes below low or above high."""
    it = limit(2, low=2, high=3)
    for lease in range(10):
        it.on_drop(lease, lease + 1)
    assert it.value == 2
    for _ in range(60):
        it.on_success(3)
    assert it.value == 3


def test_limit_pauses_growth_for_a_round_after_a_fault_and_cuts_nothing() -> None:
    """A 5xx pauses growth for a round and cuts nothing."""
    it = limit(4)
    it.on_fault()
    for _ in range(4):
        it.on_success(4)
    assert it.value == 4
    it.on_success(4)
    assert it.value == 4 + QUICKLY


def test_limit_remembers_the_ceiling_and_probes_it_gently() -> None:
    """Above the ceiling growth is a quarter as fast and stops a tenth higher; once held for a
    round, that is the new ceiling."""
    it = limit(40, high=100)
    it.on_drop(1, 2)
    assert (it.value, it.ceiling) == (30, 40)
    steps = 0
    while it.value < 40:
        it.on_success(40)
        steps += 1
    assert 340 < steps < 365, "one per round of 30 to 40"
    for _ in range(40):
        it.on_success(40)
    assert 40.2 < it.value < 40.3
    while it.ceiling == 40:
        it.on_success(50)
        assert it.value <= it.ceiling * PROBE_RATIO
    assert it.ceiling == 40 * PROBE_RATIO, "carried for a round: the mark moves on"


def test_limit_restored_with_a_ceiling_does_not_start_slowly() -> None:
    """A restored ceiling is kept and ends slow start; without one slow start goes on."""
    it = limit(4)
    it.restore(28, 40)
    it.on_success(28)
    assert (it.value, it.ceiling) == (28 + 1 / 28, 40)
    it = limit(4)
    it.restore(28, float("inf"))
    it.on_success(28)
    assert it.value == 28 + QUICKLY


def test_limit_moves_into_new_bounds_and_keeps_what_it_learned() -> None:
    """A reload moves the limit into the new bounds; the highest bound wins."""
    it = limit(16)
    it.configure(1, 8, 0.5)
    assert it.value == 8
    it.configure(20, 10, 0.5)
    assert it.value == 10
    it.configure(1, 100, 0.5)
    assert it.value == 10


def test_limit_has_room_for_whole_requests_only() -> None:
    """A limit of 1.75 has room for one."""
    it = limit(2)
    it.on_drop(1, 2)
    assert it.value == 1.5
    assert it.has_room(0)
    assert not it.has_room(1)


def test_limit_holds_for_a_round_before_it_becomes_the_ceiling() -> None:
    """Each new ceiling needs as many successes at the end of the probe as the limit is wide."""
    it = limit(40, high=1000)
    it.on_drop(1, 2)
    for ceiling in (40.0, 44.0, 48.4):
        while it.value < ceiling * PROBE_RATIO - 1e-9:
            it.on_success(100)
        carried = 0
        while it.ceiling < ceiling * 1.05:
            it.on_success(100)
            carried += 1
        assert carried - 1 < it.value <= carried


def test_limit_restored_above_its_ceiling_moves_the_mark_after_a_round() -> None:
    """A limit restored above its ceiling becomes the ceiling after a round."""
    it = limit(4)
    it.restore(44, 40)
    for _ in range(43):
        it.on_success(44)
    assert it.ceiling == 40
    it.on_success(44)
    assert it.ceiling == 44


def test_limit_that_is_cut_begins_its_round_anew() -> None:
    """Successes before a drop do not count towards the next ceiling."""
    it = limit(40, high=1000)
    it.restore(44, 40)
    for _ in range(43):
        it.on_success(44)
    it.on_drop(1, 2)
    it.restore(44, 40)
    it.on_success(44)
    assert it.ceiling == 40


def test_limit_after_a_fault_waits_for_as_many_successes_as_it_is_wide() -> None:
    """A second fault starts the pause again, and a drop during it still cuts."""
    it = limit(4)
    it.on_fault()
    it.on_success(4)
    it.on_fault()
    for _ in range(4):
        it.on_success(4)
    assert it.value == 4
    it.on_fault()
    assert it.on_drop(1, 2)
    assert it.value == 3
