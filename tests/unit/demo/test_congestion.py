"""The demo's speed under load and its limits per key."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest

from gateway.demo.congestion import Congestion, KeyLimits, Limited, duration
from gateway.settings.schema import Demo


@pytest.mark.parametrize(
    ("streams", "exponent", "speed"),
    [(1, 1.0, 1.0), (4, 1.0, 1.0), (8, 1.0, 0.5), (8, 2.0, 0.25), (8, 0.0, 1.0)],
)
def test_speed_falls_beyond_the_knee(streams: int, exponent: float, speed: float) -> None:
    """Speed is full up to the knee, then (knee ÷ streams) to the exponent."""
    congestion = Congestion(Demo(congestion_knee=4, congestion_exponent=exponent))
    with ExitStack() as inside:
        for _ in range(streams):
            inside.enter_context(congestion.stream())
        assert congestion.speed() == pytest.approx(speed)
    assert congestion.active == 0


def test_rpm_refuses_beyond_a_minutes_requests_and_refills() -> None:
    """After rpm requests at once the next is refused with a time, after which one is taken."""
    limits = KeyLimits(Demo(rpm=60), now=0.0)
    for _ in range(60):
        with limits.request(0.0):
            pass
    with pytest.raises(Limited) as refused:
        limits.request(0.25).__enter__()
    assert refused.value.retry_after_s == pytest.approx(0.75)
    with limits.request(1.0):
        pass
    assert limits.headers(1.0)["x-ratelimit-remaining-requests"] == "0"
    assert limits.headers(31.0)["x-ratelimit-reset-requests"] == "30s"


def test_max_concurrency_counts_running_requests_alone() -> None:
    """A finished request frees its place, however it ended."""
    limits = KeyLimits(Demo(max_concurrency=1), now=0.0)
    with suppress(KeyError), limits.request(0.0):
        with pytest.raises(Limited):
            limits.request(0.0).__enter__()
        raise KeyError
    assert limits.running == 0
    with limits.request(0.0):
        assert limits.running == 1
    assert limits.headers(0.0) == {}


def test_faults_come_at_the_given_rate() -> None:
    """error_rate is the share of 500s and 503s; 0 means never."""
    some = Congestion(Demo(error_rate=0.3))
    seen = [some.fault() for _ in range(2000)]
    assert 0.25 < sum(s is not None for s in seen) / 2000 < 0.35
    assert {500, 503} <= set(seen)
    never = Congestion(Demo())
    assert not any(never.fault() for _ in range(2000))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0121, "13ms"), (1, "1s"), (1.5, "1.5s"), (360, "6m0s")]
)
def test_duration_is_written_as_openai_does(seconds: float, text: str) -> None:
    """A reset is written as 13ms, 1s, 1.5s or 6m0s."""
    assert duration(seconds) == text
