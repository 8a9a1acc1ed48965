"""Split of a conversations file into rows that fit the shipped models and rows that judge them.

A row must never judge a model that saw its conversation, or its prompt under another conversation:
a third of the shared file repeats prompts. So rows are first grouped: two rows belong together
when they share a conversation or a normalised prompt, and so on through any chain (connected
components). A group falls on one side as a whole, by the hash of its smallest key, which does not
change when rows are added elsewhere or reordered. (A row that joins two groups may move one of
them: a test checks the shipped list of fit keys, not this rule alone.)

Pure functions over rows as dicts of the file's format. Keys are 8-byte BLAKE2b and hold no text; a
chance collision among 10⁵ rows has a probability of 10⁻⁹.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

FIT_SHARE = 0.8
KEY_BYTES = 8

Row = Mapping[str, Any]


def normalise(text: str) -> str:
    """A prompt without its case and white space."""
    return " ".join(text.lower().split())


def last_user_text(row: Row) -> str:
    """Text of the last user message; "" where there is none."""
    for message in reversed(row["messages"]):
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            return str(message["content"])
    return ""


def row_keys(row: Row) -> tuple[bytes, ...]:
    """Keys that link a row to others: its conversation, and its prompt if it has one."""
    keys = [_key("conversation", str(row["conversation_id"]))]
    prompt = normalise(last_user_text(row))
    if prompt:
        keys.append(_key("prompt", prompt))
    return tuple(keys)


def _key(kind: str, value: str) -> bytes:
    data = f"{kind}\x00{value}".encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=KEY_BYTES).digest()


def groups(keys: Iterable[Sequence[bytes]]) -> list[bytes]:
    """Smallest key of each row's connected component."""
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
    """True where a group lies on the fit side."""
    drawn = int.from_bytes(blake2b(group, digest_size=8, person=b"sagesched-split").digest(), "big")
    return drawn < share * 2**64


def split(rows: Iterable[Row], share: float = FIT_SHARE) -> list[bool]:
    """True for each row that fits, False for each that judges."""
    return [is_fit(group, share) for group in groups(row_keys(row) for row in rows)]


def pack(rows: Iterable[Row]) -> bytes:
    """The rows' distinct keys, sorted, as one block: the format of models/fit_keys.bin."""
    return b"".join(sorted({key for row in rows for key in row_keys(row)}))


def unpack(block: bytes) -> frozenset[bytes]:
    """Keys of a packed block. Raises ValueError where it is cut short."""
    if len(block) % KEY_BYTES:
        raise ValueError("a list of fit keys is cut short")
    return frozenset(block[i : i + KEY_BYTES] for i in range(0, len(block), KEY_BYTES))


def was_fitted(keys: Iterable[bytes], fitted: frozenset[bytes]) -> bool:
    """True where a model may have seen the row of these keys."""
    return any(key in fitted for key in keys)
