"""What a client is told of a failed attempt."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.engine.attempt import CUT_SHORT, error_of
from gateway.errors import UpstreamFailed, UpstreamRefused, UpstreamTimeout
from gateway.upstream.client import SLOW_NEXT_BYTE


def test_error_of_a_failure_is_a_sentence_with_its_code() -> None:
    """A time-out is a 504, all else that the provider left unsaid a 502."""
    error = error_of(replace(CUT_SHORT, retry_after_s=3.0))
    assert type(error) is UpstreamFailed
    assert (error.status, error.code, error.retry_after_s) == (502, "upstream_broken", 3.0)
    assert error.message == "The provider's stream ended before its end."
    assert type(error_of(SLOW_NEXT_BYTE)) is UpstreamTimeout


def test_error_of_a_refusal_is_the_providers_own() -> None:
    """Status and body as they came."""
    error = error_of(replace(CUT_SHORT, status=400, body=b'{"error":{}}'))
    assert isinstance(error, UpstreamRefused)
    assert (error.status, error.body) == (400, b'{"error":{}}')
