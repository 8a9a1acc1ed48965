from __future__ import annotations

from itertools import pairwise
from math import log

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.schedule.ordering import (
    BACKLOG_RATIO,
    GRID_WEIGHTS,
    Order,
    mean_tokens,
    reserve_beyond,
    reserve_tokens,
)
from gateway.types import QUANTILE_LEVELS, Job, Workload
from tests.unit.schedule.build import job, workload

WIDE = replace(workload(), grid=(10.0, 20.0, 50.0, 100.0, 200.0, 400.0, 800.0))
SIZES = st.floats(1, 10_000)
SCALES = st.floats(250, 1e6)


def key(order: Order, it: Job, forecast: Workload | None = None, by: float | None = None) -> float:
    forecast = forecast or it.workload
    return order.key(it, forecast, reserve_tokens(it, forecast, 0.5), by)


def spread(order: Order, tokens: float) -> float:
    """Seconds by which a job of this size may have come later than a typical one and go first."""
    return key(order, job("j", order.typical_tokens)) - key(order, job("j", tokens))


def test_reserve_is_per_choice_within_max_tokens_and_at_least_one() -> None:
    """The reserve is n × min(max_tokens, quantile), a whole number."""
    assert reserve_tokens(job("j", 100.5), workload(100.5), 0.5) == 101
    assert reserve_tokens(job("j", 100, n=3), workload(100), 0.5) == 300
    assert reserve_tokens(job("j", 100, n=3, max_tokens=7), workload(100), 0.5) == 21
    assert reserve_tokens(job("j", 0), workload(0), 0.5) == 1


def test_reserve_follows_the_quantile() -> None:
    """A cautious quantile reserves more."""
    wide = replace(workload(), grid=(1, 2, 3, 4, 5, 6, 7))
    assert [reserve_tokens(job("j"), wide, q) for q in (0.05, 0.5, 0.95)] == [1, 4, 7]


def test_reserve_beyond_is_what_longer_answers_come_to() -> None:
    """The new reserve is the quantile among answers longer than the present one."""
    assert reserve_beyond(job("j"), WIDE, 0.0, 0.5) == 100
    assert reserve_beyond(job("j"), WIDE, 100.0, 0.5) == 200, "half of the longer half"
    assert reserve_beyond(job("j", n=2), WIDE, 100.0, 0.5) == 400
    assert reserve_beyond(job("j", max_tokens=150), WIDE, 100.0, 0.5) == 150
    assert reserve_beyond(job("j"), WIDE, 1000.0, 0.5) == 1500, "nothing was foreseen there"
    assert reserve_beyond(job("j"), workload(5), 5.0, 0.5) > 5


@given(st.floats(0, 5000))
@hypothesis_settings(deadline=None, database=None)
def test_reserve_beyond_is_never_less_than_what_is_there(tokens: float) -> None:
    """The new reserve covers the tokens there are, and is never less than the first one."""
    found = reserve_beyond(job("j"), WIDE, tokens, 0.5)
    assert found >= max(tokens, reserve_tokens(job("j"), WIDE, 0.5))


def test_grid_weights_are_a_distribution_over_the_levels() -> None:
    """Each level stands for what lies half-way to its neighbours."""
    assert sum(GRID_WEIGHTS) == pytest.approx(1.0)
    edges = [0.0, *[(a + b) / 2 for a, b in pairwise(QUANTILE_LEVELS)], 1.0]
    assert pytest.approx([b - a for a, b in pairwise(edges)]) == list(GRID_WEIGHTS)


def test_mean_tokens_is_cut_at_max_tokens() -> None:
    """The mean is over all choices, each cut at max_tokens."""
    assert mean_tokens(job("j"), workload(100)) == pytest.approx(100.0)
    assert mean_tokens(job("j", n=2, max_tokens=40), workload(100)) == pytest.approx(80.0)
    below = mean_tokens(job("j", max_tokens=100), WIDE)
    assert 60 < below < mean_tokens(job("j"), WIDE)


def test_fcfs_is_the_arrival() -> None:
    """The key of fcfs is the arrival, whatever the size."""
    assert key(Order("fcfs"), job("j", 5000, at=3.0)) == 3.0


def test_sjf_and_gittins_differ_where_the_tail_does() -> None:
    """Two jobs of one median and different expectations are equal to sjf and not to gittins."""
    heavy_tail = replace(workload(100), grid=(10.0, 20.0, 50.0, 100.0, 300.0, 900.0, 3000.0))
    for order, differs in ((Order("sjf"), False), (Order("gittins"), True)):
        near, far = key(order, job("j", 100)), key(order, job("j", 100), heavy_tail)
        assert (far > near) is differs


@given(SIZES, SIZES, SCALES)
@hypothesis_settings(deadline=None, database=None)
def test_boost_puts_the_smaller_first_of_two_that_came_together(
    small: float, large: float, backlog: float
) -> None:
    """The smaller of two jobs goes first at any backlog."""
    small, large = sorted((small, large))
    order = Order("boost", backlog)
    assert key(order, job("j", small)) <= key(order, job("j", large))


def test_boost_grows_with_the_backlog() -> None:
    """γ follows the backlog: with little waiting boost is close to fcfs, with much close to
    shortest first."""
    boosts = [spread(Order("boost", tokens), 100) for tokens in (250, 1000, 4000, 16_000)]
    assert all(a < b for a, b in pairwise(boosts))
    clear_s = 16_000 * 0.02
    slope = boosts[-1] / (BACKLOG_RATIO * clear_s)
    assert slope == pytest.approx(0.92, rel=0.05), "1/γ × ln(250/100)"


def test_boost_weighs_by_the_chance_of_a_short_answer() -> None:
    """Of two of one size the likelier short goes first, by 1/γ × the log of the ratio; hardly
    likely counts as impossible; the typical job is not moved."""
    order = Order("boost", 16_000, typical_ln_short=log(0.1))
    keys = [
        key(order, job("j", 200), replace(workload(200), p_short=p)) for p in (0.4, 0.1, 0.01, 0.0)
    ]
    scale_s = BACKLOG_RATIO * 16_000 * 0.02
    assert keys[1] - keys[0] == pytest.approx(scale_s * log(4))
    assert keys[2] - keys[1] == pytest.approx(scale_s * log(10))
    assert keys[3] == keys[2]
    typical = replace(workload(order.typical_tokens), p_short=0.1)
    assert key(order, job("j", order.typical_tokens, at=7.0), typical) == pytest.approx(7.0)


def test_boost_is_gamma_boosts() -> None:
    """The boost is (1/γ)·ln(M/(M − 1)), M = E[e^(γS)], as the formula stands in the paper."""
    from math import exp

    order = Order("boost", 2000.0, typical_tokens=250.0, token_s=0.02, streams=4.0)
    pool_s = 0.02 / 4.0
    gamma = 1.0 / (BACKLOG_RATIO * 2000.0 * pool_s)

    def paper(work: Workload) -> float:
        m = sum(w * exp(gamma * x * pool_s) for w, x in zip(GRID_WEIGHTS, work.grid, strict=True))
        return log(m / (m - 1.0)) / gamma

    found = key(order, job("j"), workload(250)) - key(order, job("j"), WIDE)
    assert found == pytest.approx(paper(WIDE) - paper(workload(250)))


def test_boost_turns_tokens_into_seconds_by_the_pools_speed() -> None:
    """Twice the streams clear the same backlog in half the time."""
    slow, fast = Order("boost", streams=1.0), Order("boost", streams=2.0)
    assert spread(slow, 20) == pytest.approx(2 * spread(fast, 20))


def test_boost_is_finite_for_any_size() -> None:
    """No size overflows or gives what is not a number."""
    order = Order("boost", 250.0)
    assert key(order, job("j", 1e9)) > key(order, job("j", 1000))
    assert key(order, job("j", 0.0)) < key(order, job("j", 1))


def test_slowdown_is_when_a_job_will_have_been_slowed_down_so_much() -> None:
    """The key is arrival + 4 × service, at which (wait + service) / service is 5."""
    order = Order("slowdown", token_s=0.01)
    assert key(order, job("j", 100, at=7.0)) == pytest.approx(7.0 + 4.0)


@pytest.mark.parametrize("kind", ["boost", "slowdown"])
def test_deadline_comes_before_the_boost_where_it_is_nearer(kind: str) -> None:
    """The key is min(arrival − b, deadline − q90(service) − margin)."""
    order = Order(kind, token_s=0.01)
    it = job("j", 1000, at=100.0)
    assert key(order, it, by=10_000.0) == key(order, it)
    assert key(order, it, by=90.0) == pytest.approx(90.0 - 10.0 - 0.25 * 2.5)
    first_byte = job("j", 1000, at=100.0, deadline_first_byte=True)
    assert key(order, first_byte, by=90.0) == pytest.approx(90.0 - 0.25 * 2.5)


@pytest.mark.parametrize("kind", ["boost", "gittins", "sjf", "slowdown"])
def test_trust_moves_every_ordering_towards_fcfs(kind: str) -> None:
    """A forecast of no confidence counts as the typical one; half the trust goes half the way."""
    small, large = job("j", 20), job("j", 2000)

    def apart(trust: float, confidence: float = 1.0) -> float:
        order = Order(kind, trust=trust)
        unsure = [replace(it.workload, confidence=confidence) for it in (large, small)]
        first, second = (
            order.key(it, forecast, reserve_tokens(it, forecast, 0.5), None)
            for it, forecast in zip((large, small), unsure, strict=True)
        )
        return first - second

    assert apart(1.0) > apart(0.5) > apart(0.1) > 0.0
    assert apart(0.0) == pytest.approx(0.0)
    assert apart(1.0, confidence=0.0) == pytest.approx(0.0)
    assert apart(1.0, confidence=0.6) == apart(1.0)


def test_order_is_near_until_something_has_doubled() -> None:
    """An order holds until backlog, job size or speed has doubled; trust counts in steps, and
    always when it is gained or lost."""
    order = Order("boost", 4000.0, 200.0, 0.02, 8.0, 1.0)
    same = (4000.0, 200.0, 0.02, 8.0, 1.0)
    assert order.near(*same)
    assert order.near(7000.0, 250.0, 0.03, 9.0, 0.95)
    for place, value in enumerate((8001.0, 410.0, 0.05, 17.0, 0.8)):
        assert not order.near(*same[:place], value, *same[place + 1 :]), place
    assert not Order("boost", trust=0.05).near(1000.0, 250.0, 0.02, 1.0, 0.0)


def test_order_without_time_in_its_keys_stays() -> None:
    """sjf and gittins change with trust alone, fcfs never."""
    assert Order("sjf").near(1e6, 1e4, 1.0, 99.0, 1.0)
    assert not Order("gittins").near(1000.0, 250.0, 0.02, 1.0, 0.5)
    assert Order("fcfs").near(1e6, 1e4, 1.0, 99.0, 0.0)


def test_backlog_of_an_order_is_at_least_a_job() -> None:
    """γ does not go to infinity with an empty queue."""
    assert Order("boost", 0.0, 300.0).backlog_tokens == 300.0


def test_reserve_beyond_follows_the_forecast_between_its_levels() -> None:
    """Half of the answers longer than the present one are longer than the reserve."""
    found = [reserve_beyond(job("j"), WIDE, tokens, 0.5) for tokens in (12.5, 75.0, 300.0, 500.0)]
    assert found == [113, 175, 500, 800]
    assert reserve_beyond(job("j"), WIDE, 75.0, 0.1) == 88, "a bold quantile keeps close"


def test_mean_tokens_cuts_what_lies_above_max_tokens_alone() -> None:
    """The cut holds also where only the grid's last value lies above it."""
    means = [mean_tokens(job("j", max_tokens=limit), WIDE) for limit in (300, 500, 799, 800)]
    assert [b - a for a, b in pairwise(means)] == pytest.approx([25.0, 22.425, 0.075])


def test_order_is_near_within_a_factor_of_two_both_ways() -> None:
    """Exactly twice or half is too far, in each of the four."""
    order = Order("boost", 4000.0, 200.0, 0.02, 8.0, 1.0)
    same = (4000.0, 200.0, 0.02, 8.0)
    for place in range(4):
        for factor, near in ((0.5, False), (0.51, True), (1.99, True), (2.0, False), (2.5, False)):
            values = list(same)
            values[place] *= factor
            assert order.near(*values, 1.0) is near, (place, factor)
    assert order.near(4000.0, 200.0, 0.03, 12.0, 1.0), "slower streams, more: the same speed"
    for token_s, streams in ((0.01, 4.0), (0.04, 16.0), (0.05, 20.0)):
        assert not order.near(4000.0, 200.0, token_s, streams, 1.0), "deadlines hang on a stream's"


def test_order_ignores_small_changes_of_trust() -> None:
    """A tenth of trust is a change, less is none, unless trust is gone or whole."""
    order = Order("sjf", trust=0.5)
    near = [order.near(1.0, 1.0, 1.0, 1.0, trust) for trust in (0.41, 0.5, 0.59, 0.61, 0.39)]
    assert near == [True, True, True, False, False]
    assert not Order("sjf", trust=0.95).near(1.0, 1.0, 1.0, 1.0, 1.0)


def test_order_is_made_anew_where_shorts_have_become_usual() -> None:
    """A changed chance of shorts is a new order: else the typical job would be moved against
    deadlines."""
    order = Order("boost", typical_ln_short=log(0.1))
    same = (1000.0, 250.0, 0.02, 1.0, 1.0)
    assert order.near(*same, log(0.15))
    assert not order.near(*same, log(0.25))
    assert Order("sjf").near(*same, log(0.25))
