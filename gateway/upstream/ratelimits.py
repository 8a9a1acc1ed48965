"""What a provider's headers say of an account's limits. Pure.

    x-ratelimit-{limit,remaining,reset}-{requests,tokens}            OpenAI, Azure, Doubao, Groq
    anthropic-ratelimit-{requests,tokens,input-tokens}-{limit,remaining,reset}        Anthropic

Resets are durations as Go writes them ("120ms", "6m0s", "1h2m3.5s"), bare seconds (Azure), or
moments (Anthropic, RFC 3339). Read defensively: Azure sends -1 for "unknown", others words; what
cannot be read says nothing. (OpenAI, "Rate limits in headers"; Anthropic, "Rate limits".)
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable

from gateway.types import RateLimits

PREFIXES = (b"x-ratelimit-", b"anthropic-ratelimit-")
MOST = 10**12  # a larger number is a mistake
MAX_RESET_S = 86_400.0
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ns|us|µs|ms|s|m|h|d)")
_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
}
_PLAIN = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")


def rate_limits(headers: Iterable[tuple[bytes, bytes]], wall_s: float) -> RateLimits | None:
    """None where the headers, whose names are in lower case, say nothing of limits.

    `wall_s` is the time of day (Unix), against which moments are read.
    """
    found = [(name, value) for name, value in headers if name.startswith(PREFIXES)]
    if not found:
        return None
    said = {name.decode("latin-1"): value.decode("latin-1").strip() for name, value in found}
    limits = RateLimits(
        limit_requests=_count(_say(said, "limit", "requests")) or None,
        remaining_requests=_count(_say(said, "remaining", "requests")),
        reset_requests_s=_reset_s(_say(said, "reset", "requests"), wall_s),
        limit_tokens=_count(_say(said, "limit", "tokens")) or None,
        remaining_tokens=_count(_say(said, "remaining", "tokens")),
        reset_tokens_s=_reset_s(_say(said, "reset", "tokens"), wall_s),
    )
    return None if limits == RateLimits() else limits


def _say(said: dict[str, str], what: str, of: str) -> str | None:
    for name in (
        f"x-ratelimit-{what}-{of}",
        f"anthropic-ratelimit-{of}-{what}",
        f"anthropic-ratelimit-input-{of}-{what}",
    ):
        if name in said:
            return said[name]
    return None


def _count(text: str | None) -> int | None:
    if text is None or not _PLAIN.fullmatch(text):
        return None
    number = int(float(text))
    return number if number <= MOST else None


def _reset_s(text: str | None, wall_s: float) -> float | None:
    if not text:
        return None
    if _PLAIN.fullmatch(text):
        seconds = float(text)
    elif (parts := _PART.findall(text)) and _PART.sub("", text) == "":
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    else:
        try:
            moment = datetime.datetime.fromisoformat(text)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        seconds = moment.timestamp() - wall_s
    return min(max(seconds, 0.0), MAX_RESET_S)
