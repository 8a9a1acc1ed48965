"""Sentence vectors: the tokenizer, the ONNX session, and a cache in front of both.

The session runs in the predictor's process alone (some 14 ms at 64 tokens), with one thread
and no spinning: a pool that spins takes the core from the event loop.

Two kinds of encoder are read. A plain sentence encoder has one output, `vector`; any BERT
may be one (`sagesched models export`). One that was fine-tuned for length
(models/finetune.py) has a second, `code`: what it can tell of the answer's length, for
head.py to make quantiles of. It was taught with the system prompt's head before the user's
text, so it is given that; a plain one is not.

A text mostly unknown to the vocabulary gets a vector of little meaning, near that of any
other such text. `read` says how much was known, so that such prompts skip neighbours.

A text longer than the token cap is read at both ends: most of the room for its head, the
rest for its tail, where the instruction stands when a document leads.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.predict.manifest import ArtefactError, Folder

Vector = npt.NDArray[np.float32]

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CACHE_ITEMS = 4096  # vectors of 384 floats: 6 MB
POSITIONS = 512  # of a BERT
CHARS_PER_TOKEN = 8  # more than this many characters a token are not read at all
SYSTEM_TOKENS = 24  # of the system prompt, by an encoder that reads it
TAIL_SHARE = 0.25
CLS, SEP, UNKNOWN = 101, 102, 100  # of the shipped vocabulary, and of most BERTs
SPACE = "▁"
UNKNOWN_WORDS = ("[UNK]", "<unk>")  # WordPiece's and unigram's name for what they do not know
FOREIGN_SHARE = 0.8  # of tokens unknown, from which on a vector is no ground to search from


class Marks(NamedTuple):
    """Ids that mean no piece of a text; -1 for one that a vocabulary does not have."""

    start: int = CLS
    end: int = SEP
    unknown: int = UNKNOWN
    space: int = -1  # a word's beginning, where a unigram vocabulary has it as a piece


BERT = Marks()


class Reading(NamedTuple):
    """A prompt's unit vector, the share of its text's tokens that the vocabulary lacks, and
    its code about length where the encoder gives one."""

    vector: Vector
    unknown_share: float
    code: Vector | None = None

    @property
    def foreign(self) -> bool:
        return self.unknown_share > FOREIGN_SHARE


class Encoder:
    """Unit vectors of texts.

    Args:
        model: an ONNX file with inputs `input_ids`, `attention_mask`, output `vector`, and
            `code` where it was fine-tuned for length.
        tokenizer: its tokenizer.json.
        max_tokens: cap, the special tokens included.
        positions: most tokens the network can read: a higher cap is held to it.
        similarity_scale: what its distances are multiplied by.

    Raises whatever the libraries raise on a broken file.
    """

    def __init__(
        self,
        model: Path,
        tokenizer: Path,
        *,
        max_tokens: int = 64,
        cache_items: int = CACHE_ITEMS,
        positions: int = POSITIONS,
        similarity_scale: float = 1.0,
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
        self.marks = marks_of(self._tokenizer)
        self._positions = positions
        self.similarity_scale = similarity_scale
        self.max_tokens = min(max_tokens, positions)
        self._cache: OrderedDict[bytes, Reading] = OrderedDict()
        self._cache_items = cache_items
        shapes = {out.name: out.shape for out in self._session.get_outputs()}
        self._outputs = [name for name in ("vector", "code") if name in shapes]
        self.width = int(shapes["vector"][-1])
        self.code_width = int(shapes["code"][-1]) if "code" in shapes else 0

    def tokens(self, text: str, system: str = "") -> list[int]:
        """Ids with the special tokens, capped; head and tail of a long text."""
        system = system if self.code_width else ""
        return token_ids(self._tokenizer, text, system, self.max_tokens, self.marks)

    def resize(self, max_tokens: int) -> None:
        """Another cap; vectors made under the old one are forgotten."""
        max_tokens = min(max_tokens, self._positions)
        if max_tokens != self.max_tokens:
            self.max_tokens = max_tokens
            self._cache.clear()

    def vector(self, text: str, key: bytes | None = None, system: str = "") -> Vector:
        """The unit vector of a text, from the cache where `key` was seen lately."""
        return self.read(text, key, system).vector

    def at_hand(self, key: bytes) -> Reading | None:
        """What was read lately under this key, and nothing more."""
        return self._cache.get(key)

    def read(self, text: str, key: bytes | None = None, system: str = "") -> Reading:
        """As `vector`, with all that one run of the network says.

        Args:
            key: of text and system, for the cache.
            system: the conversation's system prompt.
        """
        if key is not None and (found := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            return found
        tokens = self.tokens(text, system)
        ids = np.array([tokens], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        vector, *codes = (out[0] for out in self._session.run(self._outputs, feed))
        reading = Reading(vector, unknown_share(tokens, self.marks), codes[0] if codes else None)
        if key is not None:
            self._cache[key] = reading
            if len(self._cache) > self._cache_items:
                self._cache.popitem(last=False)
        return reading


def token_ids(tokenizer: Any, text: str, system: str, cap: int, marks: Marks = BERT) -> list[int]:
    """[CLS] system's head [SEP] text's head and tail [SEP], at most `cap`; without a system
    prompt [CLS] text [SEP]. models/finetune.py trains on the same."""
    out = [marks.start]
    if system.strip():
        most = min(SYSTEM_TOKENS, cap // 2)
        out += [*_ids(tokenizer, system[: most * CHARS_PER_TOKEN])[:most], marks.end]
    room = cap - len(out) - 1
    tail, far = int(room * TAIL_SHARE), room * CHARS_PER_TOKEN
    if len(text) > far:
        text = text[: far - tail * CHARS_PER_TOKEN] + " " + text[-tail * CHARS_PER_TOKEN :]
    ids = _ids(tokenizer, text)
    if len(ids) > room:
        ids = ids[: room - tail] + ids[len(ids) - tail :]
    return [*out, *ids, marks.end]


def marks_of(tokenizer: Any) -> Marks:
    """A tokenizer's own. Raises ValueError where it puts no start and end around a text."""
    start, end = tokenizer.encode("").ids
    known = (tokenizer.token_to_id(word) for word in UNKNOWN_WORDS)
    unknown = next((found for found in known if found is not None), -1)
    space = tokenizer.token_to_id(SPACE)
    return Marks(start, end, unknown, -1 if space is None else space)


def unknown_share(ids: list[int], marks: Marks = BERT) -> float:
    """Of a prompt's tokens, the system prompt and the special ones not counted."""
    end = marks.end
    text = ids[ids.index(end) + 1 : -1] if end in ids[:-1] else ids[1:-1]
    return text.count(marks.unknown) / max(len(text) - text.count(marks.space), 1)


def _ids(tokenizer: Any, text: str) -> list[int]:
    # Lone surrogates are no Unicode text; the tokenizer refuses them.
    clean = text.encode("utf-8", "replace").decode("utf-8")
    ids: list[int] = tokenizer.encode(clean, add_special_tokens=False).ids
    return ids


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


PAIRS_QUANTILE = 0.9
"""Of the pairs' similarities, where the two scales are made to meet: with some 1,500 pairs the
highest that chance does not move much."""
LEAST_SCALE, MOST_SCALE = 0.2, 20.0
"""Factors beyond are of an encoder that does not tell texts apart."""
SCALE_KEY = "similarity_scale"

Floats = npt.NDArray[np.float32]


def unrelated_similarity(vectors: Floats) -> float:
    """The similarity at `PAIRS_QUANTILE` of all pairs of unit vectors, a row each."""
    above = np.triu_indices(len(vectors), 1)
    return float(np.quantile((vectors @ vectors.T)[above], PAIRS_QUANTILE))


def similarity_scale(own: Floats, shipped: Floats) -> float:
    """The factor for an encoder with vectors `own`, where the shipped one has `shipped` for the
    same lines."""
    far = max(1.0 - unrelated_similarity(own), 1e-6)
    return round(min(max((1.0 - unrelated_similarity(shipped)) / far, LEAST_SCALE), MOST_SCALE), 4)


EXPORTED = "encoders"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def exported_folder(models_path: str | Path) -> Path:
    """Where exported encoders lie (`predict.models_path` has the refitted models, too)."""
    return Path(models_path) / EXPORTED


def is_encoder_name(name: str) -> bool:
    """Whether an encoder may be called so: it is a folder's name, and no way out of one."""
    return _NAME.fullmatch(name) is not None


def is_shipped_encoder(models: Folder, name: str) -> bool:
    return models.about("encoder").get("name") == name


def find_encoder(models: Folder, exported: Path | None, name: str) -> Folder:
    """The folder that has the encoder of this name. Raises ArtefactError where none does."""
    if is_shipped_encoder(models, name):
        return models
    if exported is not None and is_encoder_name(name) and (exported / name).is_dir():
        found = Folder(exported / name)
        if found.about("encoder").get("name") != name:
            raise ArtefactError(f"{exported / name} is not of the encoder {name!r}")
        return found
    known = ", ".join(repr(one) for one in encoder_names(models, exported))
    raise ArtefactError(f"no artefact for the encoder {name!r} (there is {known})")


def encoder_names(models: Folder, exported: Path | None) -> list[str]:
    """All that `find` finds, the shipped one first."""
    others = [] if exported is None or not exported.is_dir() else sorted(exported.iterdir())
    own = [path.name for path in others if is_encoder_name(path.name) and path.is_dir()]
    return [str(models.about("encoder").get("name")), *own]


def load_encoder(files: Folder, max_tokens: int) -> Encoder:
    """The encoder of a folder. Raises ArtefactError, and what the libraries raise."""
    about = files.about("encoder")
    scale = about.get(SCALE_KEY, 1.0)  # the shipped one has none, nor those exported before
    if not isinstance(scale, float | int) or not LEAST_SCALE <= scale <= MOST_SCALE:
        raise ArtefactError(
            f"manifest.toml: {SCALE_KEY} is not within {LEAST_SCALE} and {MOST_SCALE}"
        )
    return Encoder(
        files.path("encoder"),
        files.path("tokenizer"),
        max_tokens=max_tokens,
        positions=int(about.get("positions", POSITIONS)),
        similarity_scale=float(scale),
    )
