"""Request headers: class, deadline, earlier tries."""

from __future__ import annotations

import pytest

from gateway.api.headers import (
    NO_DEADLINE,
    ClientDeadline,
    class_header,
    client_deadline,
    fields_of,
    retry_count,
)
from gateway.errors import InvalidRequest
from gateway.types import JobClass

DEADLINE = b"x-request-deadline-ms"
READ = b"x-stainless-read-timeout"


def test_field_is_the_first_header_of_its_name() -> None:
    """Of headers that came twice the first counts; an empty one is empty."""
    assert fields_of([(b"a", b"1"), (b"b", b""), (b"a", b"2")]) == {b"a": b"1", b"b": b""}


@pytest.mark.parametrize(
    ("value", "cls"), [(b"heavy", JobClass.HEAVY), (b" Interactive ", JobClass.INTERACTIVE)]
)
def test_class_header_ignores_case_and_spaces(value: bytes, cls: JobClass) -> None:
    """The value is a class's name in any case; without the header there is no class."""
    assert class_header({b"x-sagesched-class": value}) is cls
    assert class_header({}) is None


def test_class_header_refuses_an_unknown_class() -> None:
    """A request is not served in a class that its client did not ask for."""
    with pytest.raises(InvalidRequest) as caught:
        class_header({b"x-sagesched-class": b"urgent"})
    assert caught.value.param == "x-sagesched-class"


@pytest.mark.parametrize(
    ("value", "count"), [(b"2", 2), (b"999", 999), (b"1000", 0), (b"-1", 0), (b"x", 0), (b"", 0)]
)
def test_retry_count_ignores_all_but_small_numbers(value: bytes, count: int) -> None:
    """The header only advises, so no value of it fails a request."""
    assert retry_count({b"x-stainless-retry-count": value}) == count
    assert retry_count({}) == 0


# -- deadline ----------------------------------------------------------------------------------


def test_client_deadline_without_headers_is_none() -> None:
    """Other headers set no deadline."""
    assert client_deadline({b"host": b"x"}, stream=True) == NO_DEADLINE


@pytest.mark.parametrize("stream", [True, False])
def test_deadline_header_bounds_the_whole_answer(stream: bool) -> None:
    """The header counts milliseconds from arrival, for streams as for other answers."""
    assert client_deadline({DEADLINE: b"1500"}, stream=stream) == ClientDeadline(1.5)


def test_read_timeout_bounds_the_longest_silence() -> None:
    """A stream is silent until its first byte, any other answer until it is complete."""
    read = {READ: b"600"}
    assert client_deadline(read, stream=True) == ClientDeadline(600.0, first_byte=True)
    assert client_deadline(read, stream=False) == ClientDeadline(600.0)


def test_deadline_header_goes_before_the_read_timeout() -> None:
    """The client's own header counts: SDKs send theirs with every request."""
    fields = {READ: b"600", DEADLINE: b"9000"}
    assert client_deadline(fields, stream=True) == ClientDeadline(9.0)


@pytest.mark.parametrize("value", [b"", b"soon", b"nan", b"inf", b"-5", b"0", b"1e300", b"\xff"])
def test_client_deadline_ignores_what_is_no_number(value: bytes) -> None:
    """A malformed header fails no request, and a usable one beside it still counts."""
    assert client_deadline({DEADLINE: value, READ: value}, stream=False) == NO_DEADLINE
    assert client_deadline({DEADLINE: value, READ: b"7"}, stream=False) == ClientDeadline(7.0)
