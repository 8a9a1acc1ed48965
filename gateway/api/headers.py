"""Request headers that the gateway reads: a class, a deadline, earlier tries.

    X-SageSched-Class           the class to schedule the request in
    X-Request-Deadline-Ms       milliseconds from arrival within which the whole answer is wanted.
                                Set by the client itself, so it goes before an SDK's time-out
    X-Stainless-Read-Timeout    the official SDKs' read time-out in seconds: the longest silence
                                they accept. A stream is silent until its first byte, any other
                                answer until it is complete
    X-Stainless-Retry-Count     how often an SDK has tried the same request before

Only a class that does not exist fails a request: the other headers advise, and a value that
makes no sense is ignored. A deadline of a day or more is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from msgspec import Struct

from gateway.errors import InvalidRequest
from gateway.types import JobClass
from gateway.upstream.providers import Headers

DEADLINE = b"x-request-deadline-ms"
READ_TIMEOUT = b"x-stainless-read-timeout"
DAY_S = 86_400.0

Fields = Mapping[bytes, bytes]
"""The headers of a request by name, in lower case; of a name that came twice the first."""


class ClientDeadline(Struct, frozen=True):
    """Time a client allows, in seconds from arrival; `within_s` is None without a limit."""

    within_s: float | None = None
    first_byte: bool = False  # for the first byte; False: for the whole answer


NO_DEADLINE = ClientDeadline()


def fields_of(headers: Headers) -> Fields:
    """The headers of a request, whose names are in lower case already."""
    return dict(reversed(headers))


def class_header(fields: Fields) -> JobClass | None:
    """The class the client asks for; None without the header. Raises InvalidRequest for an
    unknown one: ignoring it would serve the request in a class not asked for."""
    value = fields.get(b"x-sagesched-class")
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


def retry_count(fields: Fields) -> int:
    """Tries before this one, as an SDK counts them; 0 where the header is absent or malformed."""
    value = fields.get(b"x-stainless-retry-count")
    return int(value) if value is not None and value.isdigit() and len(value) < 4 else 0


def client_deadline(fields: Fields, *, stream: bool) -> ClientDeadline:
    """The deadline in the headers, of an answer that is streamed or is not."""
    deadline_s = _seconds(fields.get(DEADLINE), 1000.0)
    if deadline_s is not None:
        return ClientDeadline(deadline_s)
    read_s = _seconds(fields.get(READ_TIMEOUT), 1.0)
    return NO_DEADLINE if read_s is None else ClientDeadline(read_s, first_byte=stream)


def _seconds(value: bytes | None, per_second: float) -> float | None:
    """A positive number of less than a day; None for anything else."""
    if value is None:
        return None
    try:
        seconds = float(value) / per_second
    except ValueError:
        return None
    return seconds if isfinite(seconds) and 0.0 < seconds < DAY_S else None
