"""What headers ask."""

from __future__ import annotations

import pytest

from gateway.api.headers import class_header, header, retry_count
from gateway.errors import InvalidRequest
from gateway.types import JobClass


def test_header_is_the_first_of_its_name() -> None:
    """Absent is None, empty is empty."""
    sent = [(b"a", b"1"), (b"b", b""), (b"a", b"2")]
    assert (header(sent, b"a"), header(sent, b"b"), header(sent, b"c")) == (b"1", b"", None)


@pytest.mark.parametrize(
    ("value", "cls"), [(b"heavy", JobClass.HEAVY), (b" Interactive ", JobClass.INTERACTIVE)]
)
def test_class_header_is_read_as_people_write_it(value: bytes, cls: JobClass) -> None:
    """In any case, with spaces around it; no header, no class."""
    assert class_header([(b"x-sagesched-class", value)]) is cls
    assert class_header([]) is None


def test_class_header_that_names_no_class_is_refused() -> None:
    """It was meant; to ignore it would serve the request in another class."""
    with pytest.raises(InvalidRequest) as caught:
        class_header([(b"x-sagesched-class", b"urgent")])
    assert caught.value.param == "x-sagesched-class"


@pytest.mark.parametrize(
    ("value", "count"), [(b"2", 2), (b"999", 999), (b"1000", 0), (b"-1", 0), (b"x", 0), (b"", 0)]
)
def test_retry_count_that_is_no_small_number_is_none(value: bytes, count: int) -> None:
    """It only advises, so nothing that stands there fails a request."""
    assert retry_count([(b"x-stainless-retry-count", value)]) == count
    assert retry_count([]) == 0
