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
    """The limits in these headers; None where there are none.

    Names of headers are in lower case. `wall_s` is the Unix time that times are compared with.
    """
    found = [(name, value) for name, value in headers if name.startswith(PREFIXES)]
    if not found:
        return None
    texts = {name.decode("latin-1"): value.decode("latin-1").strip() for name, value in found}
    limits = RateLimits(
        limit_requests=_count(_text(texts, "limit", "requests")) or None,
        remaining_requests=_count(_text(texts, "remaining", "requests")),
        reset_requests_s=_reset_s(_text(texts, "reset", "requests"), wall_s),
        limit_tokens=_count(_text(texts, "limit", "tokens")) or None,
        remaining_tokens=_count(_text(texts, "remaining", "tokens")),
        reset_tokens_s=_reset_s(_text(texts, "reset", "tokens"), wall_s),
    )
    return None if limits == RateLimits() else limits


def _text(texts: dict[str, str], what: str, of: str) -> str | None:
    for name in (
        f"x-ratelimit-{what}-{of}",
        f"anthropic-ratelimit-{of}-{what}",
        f"anthropic-ratelimit-input-{of}-{what}",
    ):
        if name in texts:
            return texts[name]
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
