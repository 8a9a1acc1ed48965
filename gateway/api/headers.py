"""What a client asks by a request's headers (how long it will wait: patience.py).

Names are in lower case, as ASGI gives them.
"""

from __future__ import annotations

from gateway.errors import InvalidRequest
from gateway.types import JobClass


def header(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first of that name."""
    for key, value in headers:
        if key == name:
            return value
    return None


def class_header(headers: list[tuple[bytes, bytes]]) -> JobClass | None:
    """`X-SageSched-Class`. Raises InvalidRequest: who asks for a class means it."""
    value = header(headers, b"x-sagesched-class")
    if value is None:
        return None
    try:
        return JobClass(value.decode("latin-1").strip().lower())
    except ValueError:
        raise InvalidRequest(
            f"Invalid value for 'x-sagesched-class': expected {', '.join(JobClass)}.",
            param="x-sagesched-class",
            code="invalid_value",
        ) from None


def retry_count(headers: list[tuple[bytes, bytes]]) -> int:
    """`X-Stainless-Retry-Count`, which the official SDKs send: how often this was tried before."""
    value = header(headers, b"x-stainless-retry-count")
    return int(value) if value is not None and value.isdigit() and len(value) < 4 else 0
