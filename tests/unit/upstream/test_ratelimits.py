from __future__ import annotations

import pytest

from gateway.types import RateLimits
from gateway.upstream.ratelimits import MAX_RESET_S, rate_limits

NOON = 1_780_000_000.0  # 2026-05-28T20:26:40Z


def read(**headers: str) -> RateLimits | None:
    return rate_limits(
        [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()], NOON
    )


def test_headers_of_openai_are_read_whole() -> None:
    """Limits and remainders are numbers, resets are Go durations."""
    assert read(
        content_type="application/json",
        x_ratelimit_limit_requests="5000",
        x_ratelimit_remaining_requests="4999",
        x_ratelimit_reset_requests="12ms",
        x_ratelimit_limit_tokens="160000",
        x_ratelimit_remaining_tokens="159976",
        x_ratelimit_reset_tokens="6m0s",
    ) == RateLimits(5000, 4999, 0.012, 160_000, 159_976, 360.0)


def test_headers_of_azure_say_nothing_where_they_say_minus_one() -> None:
    """Resets are whole seconds; -1 and a limit of 0 count as absent."""
    assert read(
        x_ratelimit_limit_requests="0",
        x_ratelimit_remaining_requests="-1",
        x_ratelimit_remaining_tokens="9000",
        x_ratelimit_reset_tokens="7",
    ) == RateLimits(remaining_tokens=9000, reset_tokens_s=7.0)


def test_headers_of_anthropic_name_moments() -> None:
    """Resets are RFC 3339 times; input tokens are used where there is no sum."""
    assert read(
        anthropic_ratelimit_requests_limit="50",
        anthropic_ratelimit_requests_remaining="49",
        anthropic_ratelimit_requests_reset="2026-05-28T20:27:40Z",
        anthropic_ratelimit_input_tokens_limit="40000",
        anthropic_ratelimit_input_tokens_remaining="0",
        anthropic_ratelimit_input_tokens_reset="2026-05-28T20:26:00+00:00",
    ) == RateLimits(50, 49, 60.0, 40_000, 0, 0.0)
    assert read(
        anthropic_ratelimit_input_tokens_remaining="0",
        anthropic_ratelimit_tokens_remaining="70",
    ) == RateLimits(remaining_tokens=70)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("120ms", 0.12),
        ("2m59.56s", 179.56),
        ("1h2m3.5s", 3723.5),
        ("17", 17.0),
        ("0.5", 0.5),
        ("500us", 0.0005),
        ("400d", MAX_RESET_S),
    ],
)
def test_reset_reads_durations(text: str, seconds: float) -> None:
    """Go's units and bare seconds are read, up to a day."""
    limits = read(x_ratelimit_reset_requests=text)
    assert limits is not None
    assert limits.reset_requests_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "soon", "1 s", "-5s", "1e9", "nan", "inf", "9" * 400, "1s;drop", "2026-13-01T00:00Z"],
)
def test_headers_that_cannot_be_read_say_nothing(text: str) -> None:
    """Words, signs and absurd lengths count as absent, without an error."""
    assert read(x_ratelimit_reset_requests=text, x_ratelimit_remaining_tokens=text) is None


def test_headers_without_limits_say_nothing() -> None:
    """An answer without such headers gives None."""
    assert read(content_type="text/event-stream", x_request_id="1") is None
    assert read(x_ratelimit_reset="5") is None
