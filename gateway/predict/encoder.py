"""Sentence vectors: tokenizer, ONNX session and cache; and the choice of an encoder by name.

A plain sentence encoder has one output, `vector`; any BERT may be one (`sagesched models
export`). An encoder fine-tuned for length (models/finetune.py) has a second, `code`: numbers about
the answer's length, of which head.py makes quantiles. It was trained with the head of the system
prompt before the user's text and is given that; a plain one is not.

A text mostly outside the vocabulary gets a vector of little meaning, near that of any other such
text; `EncodedPrompt.foreign` marks it, so that such prompts skip neighbours. A text longer than the
token cap is read at both ends: three quarters of the room for its head, the rest for its tail,
where the instruction stands when a document leads.

An exported encoder is a folder `<predict.models_path>/encoders/<name>/` with encoder.onnx,
tokenizer.json and a manifest. It brings neighbours; projection, full model and head were fitted
on the shipped encoder's vectors and are not for it, so beside its neighbours stage 0's boosters
are used, which read no vector. Rows of history carry the encoder's name, and those of another
are not searched: a name stands for one set of weights for good.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.predict.manifest import ArtefactError, ArtefactFolder

Vector = npt.NDArray[np.float32]

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CACHE_ITEMS = 4096  # vectors of 384 floats: 6 MB
POSITIONS = 512  # most tokens of a BERT
CHARS_PER_TOKEN = 8  # characters beyond this many a token of the cap are not tokenised
SYSTEM_TOKENS = 24  # most tokens of the system prompt
TAIL_SHARE = 0.25
CLS, SEP, UNKNOWN = 101, 102, 100  # of the shipped vocabulary, and of most BERTs
SPACE = "▁"
UNKNOWN_WORDS = ("[UNK]", "<unk>")  # of WordPiece and unigram vocabularies
FOREIGN_SHARE = 0.8  # with more unknown tokens a prompt is not searched for


class SpecialIds(NamedTuple):
    """Token ids that stand for no piece of a text; -1 where the vocabulary has none."""

    start: int = CLS
    end: int = SEP
    unknown: int = UNKNOWN
    space: int = -1  # start of a word, where a unigram vocabulary has it as a piece


BERT_IDS = SpecialIds()


class EncodedPrompt(NamedTuple):
    """The outputs of the network for one prompt."""

    vector: Vector  # a unit vector
    unknown_share: float  # of the text's tokens
    code: Vector | None = None  # about the answer's length; None of a plain encoder

    @property
    def foreign(self) -> bool:
        """True where the text is mostly outside the vocabulary."""
        return self.unknown_share > FOREIGN_SHARE


class Encoder:
    """Unit vectors of texts. Belongs to one thread.

    Runs with one thread and without spinning, since a pool that spins takes the core from the
    event loop; some 14 ms at 64 tokens.

    Args:
        model: an ONNX file with inputs `input_ids`, `attention_mask`, output `vector`, and
            `code` where it was fine-tuned for length.
        tokenizer: its tokenizer.json.
        max_tokens: cap, the special tokens included.
        positions: most tokens that the network can read; a higher cap is lowered to it.
        similarity_scale: factor of its distances (the function `similarity_scale`).

    Raises the libraries' errors on a broken file.
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
        self.special_ids = special_ids_of(self._tokenizer)
        self._positions = positions
        self.similarity_scale = similarity_scale
        self.max_tokens = min(max_tokens, positions)
        self._cache: OrderedDict[bytes, EncodedPrompt] = OrderedDict()
        self._cache_items = cache_items
        shapes = {out.name: out.shape for out in self._session.get_outputs()}
        self._outputs = [name for name in ("vector", "code") if name in shapes]
        self.width = int(shapes["vector"][-1])
        self.code_width = int(shapes["code"][-1]) if "code" in shapes else 0

    def tokens(self, text: str, system: str = "") -> list[int]:
        """Token ids with the special ones, capped: head and tail of a long text."""
        system = system if self.code_width else ""
        return token_ids(self._tokenizer, text, system, self.max_tokens, self.special_ids)

    def resize(self, max_tokens: int) -> None:
        """Take another cap; vectors made under the old one are forgotten."""
        max_tokens = min(max_tokens, self._positions)
        if max_tokens != self.max_tokens:
            self.max_tokens = max_tokens
            self._cache.clear()

    def vector(self, text: str, key: bytes | None = None, system: str = "") -> Vector:
        """The unit vector of a text; arguments as for `encode`."""
        return self.encode(text, key, system).vector

    def encode(self, text: str, key: bytes | None = None, system: str = "") -> EncodedPrompt:
        """The network's outputs for a text, from the cache where its key was seen lately.

        Args:
            key: of text and system, for the cache; None: do not use it.
            system: the conversation's system prompt.
        """
        if key is not None and (found := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            return found
        tokens = self.tokens(text, system)
        ids = np.array([tokens], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        vector, *codes = (out[0] for out in self._session.run(self._outputs, feed))
        encoded = EncodedPrompt(
            vector, unknown_share(tokens, self.special_ids), codes[0] if codes else None
        )
        if key is not None:
            self._cache[key] = encoded
            if len(self._cache) > self._cache_items:
                self._cache.popitem(last=False)
        return encoded


def token_ids(
    tokenizer: Any, text: str, system: str, cap: int, special: SpecialIds = BERT_IDS
) -> list[int]:
    """Ids of [CLS] system's head [SEP] text's head and tail [SEP], at most `cap`; without a
    system prompt of [CLS] text [SEP]. models/finetune.py trains on the same."""
    out = [special.start]
    if system.strip():
        most = min(SYSTEM_TOKENS, cap // 2)
        out += [*_ids(tokenizer, system[: most * CHARS_PER_TOKEN])[:most], special.end]
    room = cap - len(out) - 1
    tail, far = int(room * TAIL_SHARE), room * CHARS_PER_TOKEN
    if len(text) > far:
        text = text[: far - tail * CHARS_PER_TOKEN] + " " + text[-tail * CHARS_PER_TOKEN :]
    ids = _ids(tokenizer, text)
    if len(ids) > room:
        ids = ids[: room - tail] + ids[len(ids) - tail :]
    return [*out, *ids, special.end]


def special_ids_of(tokenizer: Any) -> SpecialIds:
    """The special ids of a tokenizer. Raises ValueError where it puts no start and end around a
    text."""
    start, end = tokenizer.encode("").ids
    ids = (tokenizer.token_to_id(word) for word in UNKNOWN_WORDS)
    unknown = next((found for found in ids if found is not None), -1)
    space = tokenizer.token_to_id(SPACE)
    return SpecialIds(start, end, unknown, -1 if space is None else space)


def unknown_share(ids: list[int], special: SpecialIds = BERT_IDS) -> float:
    """Share of unknown tokens, the system prompt and the special tokens not counted."""
    end = special.end
    text = ids[ids.index(end) + 1 : -1] if end in ids[:-1] else ids[1:-1]
    return text.count(special.unknown) / max(len(text) - text.count(special.space), 1)


def _ids(tokenizer: Any, text: str) -> list[int]:
    # Lone surrogates are no Unicode text; the tokenizer refuses them.
    clean = text.encode("utf-8", "replace").decode("utf-8")
    ids: list[int] = tokenizer.encode(clean, add_special_tokens=False).ids
    return ids


def pack(vector: Vector) -> bytes:
    """A vector in the form of `HistoryRow.vector`: little-endian float16."""
    return vector.astype("<f2").tobytes()


def unpack(packed: bytes, width: int) -> Vector | None:
    """The unit vector of a `HistoryRow.vector`; None where it has another width or no length."""
    if len(packed) != 2 * width:
        return None
    vector = np.frombuffer(packed, "<f2").astype(np.float32)
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm < 0.1:
        return None
    return vector / norm


# --- one scale of similarity for all encoders -------------------------------------------

PAIRS_QUANTILE = 0.9
"""Quantile of the pairs' similarities at which two scales are made to meet: with some 1,500 pairs
the highest that chance does not move much."""
LEAST_SCALE, MOST_SCALE = 0.2, 20.0
"""Bounds of the factor; beyond them an encoder does not tell texts apart."""
SCALE_KEY = "similarity_scale"  # in an encoder's manifest

Floats = npt.NDArray[np.float32]


def unrelated_similarity(vectors: Floats) -> float:
    """The similarity at `PAIRS_QUANTILE` of all pairs of unit vectors, a row each."""
    above = np.triu_indices(len(vectors), 1)
    return float(np.quantile((vectors @ vectors.T)[above], PAIRS_QUANTILE))


def similarity_scale(own: Floats, shipped: Floats) -> float:
    """The factor for the distances (1 − cosine) of an encoder.

    The setting `similarity_threshold`, and a neighbour's weight, are meant for the shipped encoder,
    where two prompts that have nothing in common lie near cosine 0. Others spread less: with e5
    every pair lies in 0.7 to 1.0, so each row of history would be a neighbour of each prompt. The
    factor makes as many pairs of different lines lie as near as with the shipped encoder; a repeat
    stays at 1.

    Args:
        own, shipped: vectors of the same lines by the two encoders.
    """
    far = max(1.0 - unrelated_similarity(own), 1e-6)
    return round(min(max((1.0 - unrelated_similarity(shipped)) / far, LEAST_SCALE), MOST_SCALE), 4)


# --- encoders by name -------------------------------------------------------------------

EXPORTED = "encoders"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def exported_folder(models_path: str | Path) -> Path:
    """The folder of exported encoders; refitted models lie beside it in `predict.models_path`."""
    return Path(models_path) / EXPORTED


def is_encoder_name(name: str) -> bool:
    """True for a name that an encoder may have: a folder's name that leads out of no folder."""
    return _NAME.fullmatch(name) is not None


def is_shipped_encoder(models: ArtefactFolder, name: str) -> bool:
    """True for the shipped encoder's name."""
    return models.about("encoder").get("name") == name


def find_encoder(models: ArtefactFolder, exported: Path | None, name: str) -> ArtefactFolder:
    """The folder of the encoder of this name. Raises ArtefactError where there is none."""
    if is_shipped_encoder(models, name):
        return models
    if exported is not None and is_encoder_name(name) and (exported / name).is_dir():
        found = ArtefactFolder(exported / name)
        if found.about("encoder").get("name") != name:
            raise ArtefactError(f"{exported / name} is not of the encoder {name!r}")
        return found
    names = ", ".join(repr(one) for one in encoder_names(models, exported))
    raise ArtefactError(f"no artefact for the encoder {name!r} (there is {names})")


def encoder_names(models: ArtefactFolder, exported: Path | None) -> list[str]:
    """Names of all encoders there are, the shipped one first."""
    others = [] if exported is None or not exported.is_dir() else sorted(exported.iterdir())
    own = [path.name for path in others if is_encoder_name(path.name) and path.is_dir()]
    return [str(models.about("encoder").get("name")), *own]


def load_encoder(files: ArtefactFolder, max_tokens: int) -> Encoder:
    """Load a folder's encoder. Raises ArtefactError, and the libraries' errors."""
    about = files.about("encoder")
    scale = about.get(SCALE_KEY, 1.0)  # absent of the shipped one and of old exports
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
