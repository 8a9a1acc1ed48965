"""Masking of keys in log lines.

One rule covers messages, fields, exceptions and tracebacks, since it works on the finished JSON
line. Two kinds of text are masked:

1. shapes of keys: `sk-…` and the like, Google's `AIza…`, `Bearer …`, `Basic …`, `api-key: …` in
   headers, query strings and JSON. Only the value goes; its kind stays readable;
2. the exact secrets the gateway holds, also as JSON or a URL writes them.

A line stays valid JSON: a value never reaches over a quote or a backslash, and a secret of
digits alone, which might stand for a number, becomes 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import quote

MASK = "***"
MIN_SECRET_CHARS = 4
KEPT_WORDS = 4096
_LITERALS = frozenset({"true", "false", "null"})

_NAMES = r"(?:x-)?(?:goog-)?(?:api|access|secret|subscription)[-_ ]?(?:key|token)|password|secret"
_SHAPES = re.compile(
    r"""
      \b(?P<prefix>sk-|sk_|gsk_|xai-|hf_|AIza|ya29\.)[A-Za-z0-9_\-.]{6,}
    | \b(?P<bearer>(?i:bearer)\s+)[A-Za-z0-9_\-.~+/]{4,}=*
    | \b(?P<basic>(?i:basic)\s+)(?=[a-z+/]*[A-Z0-9])[A-Za-z0-9+/]{4,}=*
    | (?P<name>(?i:NAMES)\s*[:=]\s*)[^\s"'\\,;&}\])]{4,}
    | (?P<quoted>(?i:NAMES)\\*["']\s*[:,]\s*b?\\*["'])[^\s"'\\]{4,}
    """.replace("NAMES", _NAMES),
    re.VERBOSE,
)
# The pattern costs a walk over the line; nearly no line holds one of these.
_HINTS = ("sk-", "sk_", "xai-", "hf_", "aiza", "ya29.", "bearer", "basic",
          "api", "access", "secret", "subscription", "password")  # fmt: skip


class Redactor:
    """Masks keys in text. It holds the secrets' values and never prints them."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        exact = {s for s in secrets if len(s) >= MIN_SECRET_CHARS and s not in _LITERALS}
        forms = {form for secret in exact for form in _forms(secret)}
        # Longest first: of two secrets, one the other's beginning, the whole is masked.
        ordered = sorted(forms, key=lambda form: (-len(form), form))
        self._exact = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        # For short texts that come again and again, such as a model's name.
        self.mask_word = lru_cache(KEPT_WORDS)(self.mask)

    def mask(self, text: str) -> str:
        """`text` with every key, and all that looks like one, masked."""
        if self._exact is not None:
            text = self._exact.sub(_exact, text)
        lowered = text.lower()
        if any(hint in lowered for hint in _HINTS):
            text = _SHAPES.sub(_shape, text)
        return text

    def __repr__(self) -> str:
        return "Redactor(…)"


def _forms(secret: str) -> set[str]:
    """The secret as it is, in JSON (with and without \\u escapes), and in a URL."""
    return {
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret, safe=""),
    }


def _exact(match: re.Match[str]) -> str:
    return "0" if match[0].isdecimal() else MASK


def _shape(match: re.Match[str]) -> str:
    """The text that names the kind of key, and the mask."""
    return f"{match[match.lastgroup or 0]}{MASK}"
