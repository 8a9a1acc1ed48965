"""Rate limits from a provider's headers. Pure.

    x-ratelimit-{limit,remaining,reset}-{requests,tokens}            OpenAI, Azure, Doubao, Groq
    anthropic-ratelimit-{requests,tokens,input-tokens}-{limit,remaining,reset}        Anthropic

Resets are durations in Go's notation ("120ms", "6m0s", "1h2m3.5s"), seconds (Azure), or times
(Anthropic, RFC 3339). Values that cannot be read count as absent: Azure sends -1 for "unknown",
others send words. (OpenAI, "Rate limits in headers"; Anthropic, "Rate limits".)
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable

from gateway.types import RateLimits

MOST = 10**12  # a larger number is a mistake
MAX_RESET_S = 86_400.0
_PART = re.compile(rb"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ns|us|\xb5s|ms|s|m|h|d)")
_SECONDS = {
    b"ns": 1e-9,
    b"us": 1e-6,
    b"\xb5s": 1e-6,
    b"ms": 1e-3,
    b"s": 1.0,
    b"m": 60.0,
    b"h": 3600.0,
    b"d": 86_400.0,
}
_PARTS = re.compile(b"(?:" + _PART.pattern + b")+")
_PLAIN = re.compile(rb"[0-9]{1,12}(\.[0-9]{1,12})?")


def _names(what: str, of: str) -> tuple[bytes, bytes, bytes]:
    """The headers that state a limit, the one to be believed first."""
    return (
        f"x-ratelimit-{what}-{of}".encode(),
        f"anthropic-ratelimit-{of}-{what}".encode(),
        f"anthropic-ratelimit-input-{of}-{what}".encode(),
    )


_LIMIT_REQUESTS, _LIMIT_TOKENS = _names("limit", "requests"), _names("limit", "tokens")
_LEFT_REQUESTS, _LEFT_TOKENS = _names("remaining", "requests"), _names("remaining", "tokens")
_RESET_REQUESTS, _RESET_TOKENS = _names("reset", "requests"), _names("reset", "tokens")
_KNOWN = frozenset(
    _LIMIT_REQUESTS
    + _LIMIT_TOKENS
    + _LEFT_REQUESTS
    + _LEFT_TOKENS
    + _RESET_REQUESTS
    + _RESET_TOKENS
)


def rate_limits(headers: Iterable[tuple[bytes, bytes]], wall_s: float) -> RateLimits | None:
    """The limits in these headers; None where there are none.

    Names of headers are in lower case. `wall_s` is the Unix time that times are compared with.
    """
    found = {name: value for name, value in headers if name in _KNOWN}
    if not found:
        return None
    limits = RateLimits(
        limit_requests=_count(found, _LIMIT_REQUESTS) or None,
        remaining_requests=_count(found, _LEFT_REQUESTS),
        reset_requests_s=_reset_s(found, _RESET_REQUESTS, wall_s),
        limit_tokens=_count(found, _LIMIT_TOKENS) or None,
        remaining_tokens=_count(found, _LEFT_TOKENS),
        reset_tokens_s=_reset_s(found, _RESET_TOKENS, wall_s),
    )
    return None if limits == RateLimits() else limits


def _value(found: dict[bytes, bytes], names: tuple[bytes, ...]) -> bytes:
    """The value of the first of these headers that is there; b"" where none is."""
    for name in names:
        if name in found:
            return found[name]
    return b""


def _count(found: dict[bytes, bytes], names: tuple[bytes, ...]) -> int | None:
    value = _value(found, names)
    if not _PLAIN.fullmatch(value):
        return None
    number = int(float(value))
    return number if number <= MOST else None


def _reset_s(found: dict[bytes, bytes], names: tuple[bytes, ...], wall_s: float) -> float | None:
    value = _value(found, names)
    if not value:
        return None
    if _PLAIN.fullmatch(value):
        seconds = float(value)
    elif _PARTS.fullmatch(value):
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(value))
    else:
        try:
            moment = datetime.datetime.fromisoformat(value.decode("latin-1"))
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        seconds = moment.timestamp() - wall_s
    return min(max(seconds, 0.0), MAX_RESET_S)
