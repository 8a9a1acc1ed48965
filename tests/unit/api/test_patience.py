from __future__ import annotations

import pytest

from gateway.api.patience import ENDLESS, Patience, patience

DEADLINE = b"x-request-deadline-ms"
READ = b"x-stainless-read-timeout"


def test_patience_without_headers_is_endless() -> None:
    """Others are not looked at."""
    assert patience([(b"host", b"x")], stream=True) == ENDLESS


@pytest.mark.parametrize("stream", [True, False])
def test_deadline_header_bounds_the_whole_answer(stream: bool) -> None:
    """Milliseconds from arrival, streamed or not."""
    assert patience([(DEADLINE, b"1500")], stream=stream) == Patience(1.5)


def test_read_timeout_bounds_the_first_byte_of_a_stream() -> None:
    """And the whole of any other answer: it is the longest silence an SDK bears."""
    assert patience([(READ, b"600")], stream=True) == Patience(600.0, first_byte=True)
    assert patience([(READ, b"600")], stream=False) == Patience(600.0)


def test_deadline_header_goes_before_the_sdks() -> None:
    """In any order: one was meant, the other is sent with every request."""
    headers = [(READ, b"600"), (DEADLINE, b"9000")]
    assert patience(headers, stream=True) == Patience(9.0)
    assert patience(headers[::-1], stream=True) == Patience(9.0)


@pytest.mark.parametrize("value", [b"", b"soon", b"nan", b"inf", b"-5", b"0", b"1e300", b"\xff"])
def test_patience_that_is_no_number_is_none_at_all(value: bytes) -> None:
    """A header that advises does not fail a request; a usable one beside it counts."""
    assert patience([(DEADLINE, value), (READ, value)], stream=False) == ENDLESS
    assert patience([(DEADLINE, value), (READ, b"7")], stream=False) == Patience(7.0)
