from __future__ import annotations

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.schedule.ordering import LARGE_TOKENS, order_key, reserve_tokens
from tests.unit.schedule.build import job, workload

MOMENTS = st.floats(0, 1e6, allow_nan=False)
SIZES = st.integers(1, 10**7)
BOUND_S = 30.0


@given(MOMENTS, SIZES, SIZES, st.floats(BOUND_S, 1e6))
@hypothesis_settings(deadline=None, database=None)
def test_order_key_lets_nobody_pass_who_comes_later_than_the_bound(
    arrived_s: float, size: int, other: int, later_s: float
) -> None:
    """Whatever the sizes: max_overtake_s is a hard bound."""
    assert order_key(arrived_s, size, BOUND_S) <= order_key(arrived_s + later_s, other, BOUND_S)


def test_order_key_puts_the_smaller_first_within_the_bound() -> None:
    """Short first; its twin is first come, first served with a bound of 0."""
    assert order_key(5.0, 10, BOUND_S) < order_key(0.0, 4000, BOUND_S)
    assert order_key(5.0, 10, 0.0) > order_key(0.0, 4000, 0.0)


def test_order_key_gives_large_jobs_no_advantage() -> None:
    """From LARGE_TOKENS on the key is arrival + max_overtake_s."""
    assert order_key(1.0, LARGE_TOKENS, BOUND_S) == 1.0 + BOUND_S
    assert order_key(1.0, 50 * LARGE_TOKENS, BOUND_S) == 1.0 + BOUND_S


def test_reserve_is_per_choice_within_max_tokens_and_at_least_one() -> None:
    """n × min(max_tokens, quantile), a whole number."""
    assert reserve_tokens(job("j", 100.5), workload(100.5), 0.5) == 101
    assert reserve_tokens(job("j", 100, n=3), workload(100), 0.5) == 300
    assert reserve_tokens(job("j", 100, n=3, max_tokens=7), workload(100), 0.5) == 21
    assert reserve_tokens(job("j", 0), workload(0), 0.5) == 1


def test_reserve_follows_the_quantile() -> None:
    """A cautious quantile reserves more."""
    wide = replace(workload(), grid=(1, 2, 3, 4, 5, 6, 7))
    assert [reserve_tokens(job("j"), wide, q) for q in (0.05, 0.5, 0.95)] == [1, 4, 7]
