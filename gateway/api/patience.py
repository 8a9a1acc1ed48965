"""How long a client is ready to wait, by its request's headers.

    X-Request-Deadline-Ms       of the whole answer, in milliseconds from arrival; the client's own
                                word, so it goes before what an SDK sends by itself
    X-Stainless-Read-Timeout    the official SDKs' read time-out, in seconds: the longest silence
                                on the connection. A stream is silent until its first byte, any
                                other answer until it is there whole

A value that is no positive number is one that was not sent: a header that only advises must not
fail a request. A day or more is no deadline.
"""

from __future__ import annotations

from math import isfinite

from msgspec import Struct

DEADLINE = b"x-request-deadline-ms"
READ_TIMEOUT = b"x-stainless-read-timeout"
DAY_S = 86_400.0


class Patience(Struct, frozen=True):
    """`within_s` seconds from arrival, None without end; of the first byte, or of it all."""

    within_s: float | None = None
    first_byte: bool = False


ENDLESS = Patience()


def patience(headers: list[tuple[bytes, bytes]], *, stream: bool) -> Patience:
    """What the headers (names in lower case) say of an answer that is a stream, or is not."""
    deadline_s = read_s = None
    for name, value in headers:
        if name == DEADLINE:
            deadline_s = _seconds(value, 1000.0)
        elif name == READ_TIMEOUT:
            read_s = _seconds(value, 1.0)
    if deadline_s is not None:
        return Patience(deadline_s)
    return ENDLESS if read_s is None else Patience(read_s, first_byte=stream)


def _seconds(value: bytes, per_second: float) -> float | None:
    try:
        seconds = float(value) / per_second
    except ValueError:
        return None
    return seconds if isfinite(seconds) and 0.0 < seconds < DAY_S else None
