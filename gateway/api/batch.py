"""How much there is of what a request asks about: one prompt, or a batch of them.

The legacy completions' `prompt` and the embeddings' `input` are a text, a list of texts, a list
of token ids or a list of such lists. The provider answers, and bills, every one of them. Sizes
alone are read: ids are counted, not decoded.
"""

from __future__ import annotations

from msgspec import Raw, Struct

from gateway.api.schemas import given, read_loose

_SPACE = b" \t\r\n"
_HEAD = 256
MOST_PROMPTS = 2048
"""More than a provider takes (OpenAI's bound for embeddings): a client's body must not become a
forecast of any size it likes, on which everybody's pace would hang."""


class Batch(Struct, frozen=True):
    """Of all prompts together; `text` is the first one's."""

    text: str = ""
    prompts: int = 1
    bytes: int = 0  # of texts, in UTF-8
    ids: int = 0  # tokens sent as such


def batch_of(raw: Raw) -> Batch:
    """Read a `prompt` or an `input`; what cannot be read is one prompt of its bytes."""
    if not given(raw):
        return Batch()
    if _is_ids(raw):
        text = bytes(raw)
        if b'"' in text:  # brackets in it need be no lists
            return Batch(bytes=len(raw))
        prompts = min(max(text.count(b"[") - 1, 1), MOST_PROMPTS)
        return Batch(prompts=prompts, ids=text.count(b",") + 1)
    one = read_loose(raw, str)
    texts = [one] if one is not None else read_loose(raw, list[str])
    if texts is None:
        return Batch(bytes=len(raw))
    first = texts[0] if texts else ""
    return Batch(first, min(max(len(texts), 1), MOST_PROMPTS), sum(map(_size, texts)))


def _is_ids(raw: Raw) -> bool:
    """Whether the first thing in a list, or in the first list of one, is a number."""
    head = bytes(memoryview(raw)[:_HEAD])
    inner = head.lstrip(b"[" + _SPACE)
    return head.lstrip(_SPACE)[:1] == b"[" and inner[:1].isdigit()


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
