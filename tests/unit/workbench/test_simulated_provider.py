"""Processor sharing, congestion curves, and limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.demo.congestion import MinuteLimit
from gateway.errors import SettingsError
from gateway.workbench.simulate.simulated_provider import (
    RANGES,
    SHAPES,
    ProviderTraits,
    SimulatedProvider,
    draw_traits,
)
from tests.unit.workbench.simulate_cases import PLAIN

Arrival = tuple[float, int]  # seconds, output tokens

arrivals = st.lists(
    st.tuples(st.floats(0, 20, allow_nan=False), st.integers(1, 800)), min_size=1, max_size=25
).map(sorted)


def ends(own: ProviderTraits, coming: list[Arrival]) -> tuple[list[float], SimulatedProvider]:
    """The provider's end of each stream."""
    provider, found, i = SimulatedProvider(own), [0.0] * len(coming), 0
    while i < len(coming) or provider.inflight:
        if i < len(coming) and coming[i][0] <= provider.next_s:
            assert provider.offer(str(i), 10, coming[i][1], 0.0, coming[i][0]) is None
            i += 1
            continue
        now = provider.next_s
        step = provider.step(now)
        if step.ended:
            found[int(step.id)] = now
    return found, provider


def ends_naively(own: ProviderTraits, coming: list[Arrival]) -> list[float]:
    """The same by book-keeping what is left of every stream at every event: O(n²)."""
    left: dict[int, float] = {}
    now, found, i = 0.0, [0.0] * len(coming), 0
    while i < len(coming) or left:
        g = own.slowness(len(left)) if left else 1.0
        first = min(left.values()) * g if left else float("inf")
        gap = coming[i][0] - now if i < len(coming) else float("inf")
        passed = min(first, gap)
        now += passed
        left = {j: work - passed / g for j, work in left.items()}
        if gap <= first:
            left[i] = own.work_s(10, coming[i][1], 0.0)
            i += 1
        else:
            done = min(left, key=left.__getitem__)
            found[done] = now
            del left[done]
    return found


@pytest.mark.parametrize("shape", SHAPES)
@given(coming=arrivals)
def test_streams_end_as_in_a_simulation_step_by_step(shape: str, coming: list[Arrival]) -> None:
    """Virtual time gives the same ends as small steps of time."""
    own = structs.replace(PLAIN, shape=shape)
    assert ends(own, coming)[0] == pytest.approx(ends_naively(own, coming), rel=1e-6, abs=1e-6)


@given(coming=arrivals)
def test_work_is_neither_lost_nor_made(coming: list[Arrival]) -> None:
    """The work done is the sum of the requests' work."""
    _, provider = ends(PLAIN, coming)
    wanted = sum(PLAIN.work_s(10, tokens, 0.0) for _, tokens in coming)
    assert provider.done_s == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    assert provider.inflight == 0


@pytest.mark.parametrize(
    ("shape", "capacity", "window"),
    [("linear", 16.0, 304), ("knee", 16.0, 16), ("power", 16.0, 16), ("quadratic", 8.0, 12)],
)
def test_curves_peak_where_they_should(shape: str, capacity: float, window: int) -> None:
    """X(N) = N/g(N) peaks by hand, and the best window is the first within 5 % of the best."""
    own = ProviderTraits(shape=shape, knee=16.0)  # type: ignore[arg-type]
    assert own.capacity == pytest.approx(capacity)
    assert own.best_window == window


def test_usl_peaks_at_its_knee() -> None:
    """κ is chosen so that √((1−σ)/κ) is the knee."""
    own = ProviderTraits(shape="usl", knee=20.0)
    throughput = [n / own.slowness(n) for n in range(1, 100)]
    assert 1 + int(np.argmax(throughput)) == 20


def test_parameters_are_drawn_from_their_ranges() -> None:
    """Parameters of a seed are the same for every shape, within RANGES; fixed ones are as given."""
    drawn = [draw_traits(shape, np.random.default_rng(3), {"rpm": 90}) for shape in SHAPES]
    assert len({structs.replace(one, shape="knee") for one in drawn}) == 1
    assert all(low <= getattr(drawn[0], name) <= high for name, (low, high) in RANGES.items())
    assert drawn[0].rpm == 90
    with pytest.raises(SettingsError, match="no provider parameter 'speed'"):
        draw_traits("knee", np.random.default_rng(3), {"speed": 1})


def test_crowd_beyond_the_limit_is_rejected() -> None:
    """A burst of ten meets seven 429s with a wait, and later there is room again."""
    provider = SimulatedProvider(structs.replace(PLAIN, max_concurrency=3))
    result = [provider.offer(str(i), 10, 100, 0.0, 0.0) for i in range(10)]
    assert [answer is None for answer in result] == [True] * 3 + [False] * 7
    assert result[-1] is not None
    assert result[-1].retry_after_s == 1.0
    assert provider.rejected == 7
    while provider.inflight:
        provider.step(provider.next_s)
    assert provider.offer("later", 10, 100, 0.0, 60.0) is None


def test_rejection_may_lack_retry_after() -> None:
    """A provider that tells no Retry-After rejects without a wait."""
    provider = SimulatedProvider(structs.replace(PLAIN, max_concurrency=1, tells_retry_after=False))
    provider.offer("a", 10, 100, 0.0, 0.0)
    result = provider.offer("b", 10, 100, 0.0, 0.0)
    assert result is not None
    assert result.retry_after_s is None


def test_minute_limits_refill() -> None:
    """Sixty a minute refill one a second, and the headers tell the remaining ones."""
    provider = SimulatedProvider(structs.replace(PLAIN, rpm=60))
    assert all(provider.offer(str(i), 10, 1, 0.0, 0.0) is None for i in range(60))
    result = provider.offer("more", 10, 1, 0.0, 0.0)
    assert result is not None
    assert result.retry_after_s == pytest.approx(1.0)
    limits = provider.limits(30.0)
    assert limits is not None
    assert (limits.limit_requests, limits.remaining_requests) == (60, 30)
    assert limits.reset_requests_s == pytest.approx(30.0)
    assert limits.limit_tokens is None
    assert SimulatedProvider(PLAIN).limits(0.0) is None


def test_bucket_lets_pass_what_is_larger_than_itself() -> None:
    """An amount above the bucket's size passes when the bucket is full."""
    bucket = MinuteLimit(100, 0.0)
    assert bucket.lacks_s(500, 0.0) == 0.0
    bucket.take(500)
    assert bucket.lacks_s(1, 0.0) == pytest.approx(401 * 0.6)


def test_half_the_machines_crowd_as_twice_the_streams() -> None:
    """Four streams on half of a knee of four run at half speed from the change on."""
    provider = SimulatedProvider(PLAIN)
    for i in range(4):
        provider.offer(str(i), 10, 100, 0.0, 0.0)
        assert not provider.step(0.0).ended
    provider.change(0.5, 0.5)
    while not provider.step(provider.next_s).ended:
        pass
    assert provider.next_s == pytest.approx(1.5)
