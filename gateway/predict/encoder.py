"""Sentence vectors: WordPiece, the ONNX session, and a cache in front of both.

The session runs on the predictor thread alone, with one thread and no spinning: a pool
that spins takes the core from the event loop. `run` gives the interpreter lock free for
its whole time (some 14 ms at 64 tokens), so the loop goes on beside it.

A text mostly unknown to the vocabulary gets a vector of little meaning, near that of any
other such text. `read` says how much was known, so that such prompts skip neighbours.

A text longer than the token cap is read at both ends: most of the room for its head, the
rest for its tail, where the instruction stands when a document leads.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CACHE_ITEMS = 4096  # vectors of 384 floats: 6 MB
CHARS_PER_TOKEN = 8  # more than this many characters a token are not read at all
TAIL_SHARE = 0.25
CLS, SEP, UNKNOWN = 101, 102, 100
FOREIGN_SHARE = 0.8  # of tokens unknown, from which on a vector is no ground to search from


class Reading(NamedTuple):
    """A text's unit vector, and the share of its tokens that the vocabulary lacks."""

    vector: Vector
    unknown_share: float

    @property
    def foreign(self) -> bool:
        return self.unknown_share > FOREIGN_SHARE


class Encoder:
    """Unit vectors of texts.

    Args:
        model: an ONNX file with inputs `input_ids`, `attention_mask` and output `vector`.
        tokenizer: its tokenizer.json.
        max_tokens: cap, the two special tokens included.

    Raises whatever the libraries raise on a broken file.
    """

    def __init__(
        self, model: Path, tokenizer: Path, *, max_tokens: int = 64, cache_items: int = CACHE_ITEMS
    ) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer: Any = Tokenizer.from_file(str(tokenizer))
        self.max_tokens = max_tokens
        self._cache: OrderedDict[bytes, Reading] = OrderedDict()
        self._cache_items = cache_items
        self.width = int(self._session.get_outputs()[0].shape[-1])
        self.hits = self.misses = 0

    def tokens(self, text: str) -> list[int]:
        """Ids with the special tokens, capped; head and tail of a long text."""
        room = self.max_tokens - 2
        tail = int(room * TAIL_SHARE)
        far = room * CHARS_PER_TOKEN
        if len(text) > far:
            text = text[: far - tail * CHARS_PER_TOKEN] + " " + text[-tail * CHARS_PER_TOKEN :]
        # Lone surrogates are no Unicode text; the tokenizer refuses them.
        text = text.encode("utf-8", "replace").decode("utf-8")
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) > room:
            ids = ids[: room - tail] + ids[len(ids) - tail :]
        return [CLS, *ids, SEP]

    def resize(self, max_tokens: int) -> None:
        """Another cap; vectors made under the old one are forgotten."""
        self.max_tokens = max_tokens
        self._cache.clear()

    def vector(self, text: str, key: bytes | None = None) -> Vector:
        """The unit vector of a text, from the cache where `key` was seen lately."""
        return self.read(text, key).vector

    def read(self, text: str, key: bytes | None = None) -> Reading:
        """As `vector`, and how much of the text was known."""
        if key is not None and (found := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            self.hits += 1
            return found
        self.misses += 1
        tokens = self.tokens(text)
        ids = np.array([tokens], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        vector: Vector = self._session.run(["vector"], feed)[0][0]
        reading = Reading(vector, tokens.count(UNKNOWN) / max(len(tokens) - 2, 1))
        if key is not None:
            self._cache[key] = reading
            if len(self._cache) > self._cache_items:
                self._cache.popitem(last=False)
        return reading


def pack(vector: Vector) -> bytes:
    """A vector as `HistoryRow.vector`: little-endian float16."""
    return vector.astype("<f2").tobytes()


def unpack(packed: bytes, width: int) -> Vector | None:
    """A unit vector from `HistoryRow.vector`; None where it is none of this width."""
    if len(packed) != 2 * width:
        return None
    vector = np.frombuffer(packed, "<f2").astype(np.float32)
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm < 0.1:
        return None
    return vector / norm
