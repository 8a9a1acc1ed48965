"""Which rows of a conversations file fit the shipped models, and which only judge them.

A row must never judge a model that saw its conversation, or its prompt under another
conversation: a third of the shared file repeats prompts. So rows are first grouped: two
rows belong together when they share a conversation or a normalised prompt, and so on
through any chain (connected components). A whole group then falls on one side by the hash
of its smallest key, which does not change when rows are added elsewhere or reordered. (A
row that joins two groups may move one of them: the shipped list of fit keys is what a
test checks, not this rule alone.)

Pure functions over rows as dicts of the file's format. Keys are 8-byte BLAKE2b, enough to
make a chance meeting among 10⁵ rows a matter of 10⁻⁹, and they hold no text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

FIT_SHARE = 0.8
KEY_BYTES = 8

Row = Mapping[str, Any]


def normalise(text: str) -> str:
    """A prompt blind to case and white space."""
    return " ".join(text.lower().split())


def last_user_text(row: Row) -> str:
    """The text of the last user message, "" where there is none."""
    for message in reversed(row["messages"]):
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            return str(message["content"])
    return ""


def row_keys(row: Row) -> tuple[bytes, ...]:
    """The keys by which a row belongs to others: its conversation, and its prompt if it has one."""
    keys = [_key("conversation", str(row["conversation_id"]))]
    prompt = normalise(last_user_text(row))
    if prompt:
        keys.append(_key("prompt", prompt))
    return tuple(keys)


def _key(kind: str, value: str) -> bytes:
    data = f"{kind}\x00{value}".encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=KEY_BYTES).digest()


def groups(keys: Iterable[Sequence[bytes]]) -> list[bytes]:
    """For each row the smallest key of its connected component."""
    parent: dict[bytes, bytes] = {}

    def root(key: bytes) -> bytes:
        path = []
        while (above := parent.setdefault(key, key)) != key:
            path.append(key)
            key = above
        for passed in path:
            parent[passed] = key
        return key

    rows = [tuple(row) for row in keys]
    for row in rows:
        tops = sorted(root(key) for key in row)
        for top in tops[1:]:
            parent[top] = tops[0]  # the smaller root wins, so the root is the smallest key
    return [root(row[0]) for row in rows]


def is_fit(group: bytes, share: float = FIT_SHARE) -> bool:
    """Whether a group lies on the fit side."""
    drawn = int.from_bytes(blake2b(group, digest_size=8, person=b"sagesched-split").digest(), "big")
    return drawn < share * 2**64


def split(rows: Iterable[Row], share: float = FIT_SHARE) -> list[bool]:
    """True for each row that fits, False for each that judges."""
    return [is_fit(group, share) for group in groups(row_keys(row) for row in rows)]


def pack(rows: Iterable[Row]) -> bytes:
    """The sorted distinct keys of rows, as one block: the shipped list of what was fitted."""
    return b"".join(sorted({key for row in rows for key in row_keys(row)}))


def unpack(block: bytes) -> frozenset[bytes]:
    """The keys of a packed block.

    Raises:
        ValueError: the block's length is no multiple of a key's.
    """
    if len(block) % KEY_BYTES:
        raise ValueError("a list of fit keys is cut short")
    return frozenset(block[i : i + KEY_BYTES] for i in range(0, len(block), KEY_BYTES))


def was_fitted(row: Row, fitted: frozenset[bytes]) -> bool:
    """Whether a shipped model may have seen this row's conversation or prompt."""
    return any(key in fitted for key in row_keys(row))
