"""The window of a gateway that is slower than its provider (busy_loop.py): what the gateway adds
to latencies is no congestion, and a provider that is never slower keeps nobody waiting."""

from __future__ import annotations

import pytest

from gateway.balance.window import LARGEST_BATCH, REST_S
from tests.unit.balance.busy_loop import BusyLoop
from tests.unit.balance.fluid import window


def at_once(inflight: float) -> float:
    return 0.0003


def paced(inflight: float) -> float:
    return 0.48


@pytest.mark.parametrize("initial", [16, 256])
def test_window_takes_own_lateness_for_no_congestion(initial: int) -> None:
    """After some seconds in which the gateway itself was the bottleneck, 64 streams of a provider
    that is never slower start without waiting for the window."""
    loop = BusyLoop(window(initial), 0.0004)
    loop.run(64, 4.0, at_once)
    assert min(loop.trace) >= initial
    loop.run(64, 4.0, paced)
    assert min(loop.trace) >= 64
    assert max(loop.waited_s) == 0.0


def test_window_that_is_not_told_of_it_fails_that_test() -> None:
    """The twin: the same latencies, taken for the provider's, make a window that is too small."""
    loop = BusyLoop(window(16), 0.0004, told=False)
    loop.run(64, 4.0, at_once)
    loop.run(64, 4.0, paced)
    assert min(loop.trace) < 64
    assert max(loop.waited_s) > 0.4


@pytest.mark.parametrize("work_s", [0.0, 0.0004, 0.001])
def test_window_of_a_flat_provider_grows_while_it_is_used(work_s: float) -> None:
    """The window only grows, and soon beyond the load, with any work the gateway adds."""
    loop = BusyLoop(window(16, high=1000), work_s)
    loop.run(100, 5.0, paced)
    assert loop.trace == sorted(loop.trace)
    assert loop.trace[-1] > 100


@pytest.mark.parametrize(("clients", "rounds"), [(128, 1), (256, 1), (500, 2)])
def test_window_opens_in_one_step_to_a_larger_load(clients: int, rounds: int) -> None:
    """A load that grows at once to the double, fourfold or eightfold while latencies are flat
    waits one round of answers, or two, and is served at four fifths of its rate meanwhile."""
    loop = BusyLoop(window(16, high=1000), 0.0)
    loop.run(64, 10.0, paced)
    assert loop.window.base < 128
    loop.run(clients, 4.0, paced)
    assert max(loop.waited_s) < rounds * 0.48 + 0.01
    assert len(loop.trace) > 0.8 * clients * 4.0 / 0.48
    assert loop.window.base >= clients


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1, 0.2])
def test_window_is_not_flat_behind_a_knee_that_was_seen(noise: float) -> None:
    """Evidence of a provider that is never slower is flat up to the load; that of one with a knee
    below the load is not."""
    even, bent = (BusyLoop(window(16, high=1000), 0.0) for _ in range(2))
    even.run(64, 5.0, paced, noise)
    assert 60 <= even.window._evidence.flat <= 80
    bent.run(64, 5.0, lambda n: 0.48 * max(1.0, n / 12) ** 1.5, noise)
    assert bent.window._evidence.flat == 0.0


@pytest.mark.parametrize("work_s", [0.0002, 0.001])
def test_window_finds_congestion_behind_a_busy_gateway(work_s: float) -> None:
    """Latencies that do rise with what is in flight shrink the window, busy as the gateway is."""
    loop = BusyLoop(window(64, high=1000), work_s)
    loop.run(150, 60.0, lambda n: 0.5 * max(1.0, n / 20) ** 1.5, noise=0.2)
    assert loop.window.base < 32


def test_window_that_saw_other_latencies_starts_anew_where_it_is() -> None:
    """Answers that take twenty times as long at the same load are another matter than congestion:
    the window stays."""
    loop = BusyLoop(window(16, high=200), 0.0)
    loop.run(64, 1.0, lambda n: 0.024)
    before = loop.window.base
    assert before >= 64
    loop.run(64, 5.0, paced)
    assert min(loop.trace) >= 64
    assert max(loop.waited_s) == 0.0
    assert loop.window.alone_s > 0.4


def test_window_leaves_answers_out_that_may_all_be_the_gateways_own() -> None:
    """An answer is a sample up to a quarter of own time, without that time; beyond it is none."""
    it, now = window(), 0.0
    for number, (own_s, counts) in enumerate([(0.25, True), (0.26, False), (0.0, True)]):
        mark = it.take(now)
        now += 1.0
        held = len(it._batch)
        it.learn(mark, number, number + 1, 10.0, 10.0, now, own_s)
        it.give_back(now)
        assert len(it._batch) - held == counts
        if counts:
            assert it._batch[-1].latency_s == 1.0 - own_s


def test_window_in_slow_start_grows_on_answers_that_show_nothing() -> None:
    """Ten such answers under a full window are a step of slow start; after slow start, and where
    the window is not full, they change nothing."""

    def answers(it, count: int, *, full: bool) -> float:  # type: ignore[no-untyped-def]
        now = 0.0
        others = [it.take(now) for _ in range(15 if full else 3)]
        for number in range(count):
            mark = it.take(now)
            now += 0.01
            it.learn(mark, number, number + 1, 10.0, 10.0, now, 0.01)
            it.give_back(now)
        assert len(others) == it.inflight
        return it.base

    assert answers(window(16), 9, full=True) == 16
    assert answers(window(16), 10, full=True) == 40
    assert answers(window(16), 19, full=True) == 40
    assert answers(window(16, high=20), 10, full=True) == 20
    assert answers(window(16), 40, full=False) == 16
    settled = window(16)
    settled._slow_start = False
    assert answers(settled, 40, full=True) == 16


def test_window_rests_between_looks_at_a_fast_provider() -> None:
    """After slow start a look comes REST_S after the last one at the earliest, or after
    LARGEST_BATCH answers."""
    for gap_s, least, most in ((0.01, 50, 51), (0.0001, LARGEST_BATCH, LARGEST_BATCH)):
        it, now, sizes, size = window(16), 0.0, [], 0
        it._slow_start = False
        for number in range(4000):
            mark = it.take(now)
            now += gap_s
            it.learn(mark, number, number + 1, 10.0, 10.0, now)
            it.give_back(now)
            if not it._batch:
                sizes.append(size + 1)
            size = len(it._batch)
        assert len(sizes) > 3
        assert all(least <= one <= most for one in sizes[1:]), (REST_S, sizes)


def test_window_at_its_bound_rests_too() -> None:
    """A window that may not grow is not looked at sooner for being full, flat as latencies are."""
    loop = BusyLoop(window(16, high=64), 0.0)
    loop.run(100, 3.0, lambda n: 0.025)
    assert loop.window.base == 64
    looks = 0

    def counting(inflight: float) -> float:
        nonlocal looks
        looks += not loop.window._batch
        return 0.025

    loop.run(100, 5.0, counting)
    assert looks <= 5.0 / REST_S + len(loop.trace) / LARGEST_BATCH + 1
