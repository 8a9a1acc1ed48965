"""A local folder with a BERT-type encoder, read and checked before anything is made of it.

It reads `config.json`, `model.safetensors` and `tokenizer.json` as Hugging Face's libraries write
them, and where they exist, sentence-transformers' `modules.json` and `1_Pooling/config.json` and
the licence at the head of `README.md`. No torch: a safetensors file is 8 bytes of length, a JSON
header, and the numbers.

Checkpoints of one network differ in names: `bert.`-prefixed where there was a head for
pretraining, bare where there was none, LayerNorm's `gamma`/`beta` where they go back to
TensorFlow. All become the bare, new names. What this graph cannot compute (relative positions,
other activations, a decoder, a Dense layer after the pooling) is refused here in one line: a
vector that is a little wrong would never be noticed later.

Every function here raises SettingsError for an unusable folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gateway.errors import SettingsError

Weights = dict[str, npt.NDArray[np.float32]]
Pooling = Literal["mean", "cls", "max"]

LAYER = "encoder.layer.{}."
WORDS = "embeddings.word_embeddings.weight"
MOST_HEADER = 100_000_000  # bytes, the bound of the safetensors format
KINDS: Mapping[str, npt.DTypeLike] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
LEAST_POSITIONS = 8  # the lower bound of `predict.max_encoder_tokens`
EXACT_GELU = ("gelu", "gelu_python")  # with erf, as in the graph


class Config(Struct, frozen=True):
    """Fields of config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    position_embedding_type: str | None = "absolute"
    is_decoder: bool = False


class Bert(Struct, frozen=True):
    """Weights of an encoder by their bare names, and parameters of its graph."""

    weights: Weights
    heads: int
    epsilon: float  # of LayerNorm
    pooling: Pooling
    positions: int  # most tokens of a text, special ones included
    sha256: str  # of model.safetensors
    licence: str  # "" where the folder names none

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.weights[WORDS].shape[1])


def read_bert(folder: Path) -> Bert:
    """Weights, configuration and pooling of a folder. Raises SettingsError in one line."""
    config = _config(folder)
    pooling = _pooling(folder)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise SettingsError(f"{folder}: there is no model.safetensors{_instead(folder)}")
    weights = _bare(path, read_safetensors(path))
    _check_shapes(path, config, weights)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Bert(
        weights=weights,
        heads=config.num_attention_heads,
        epsilon=config.layer_norm_eps,
        pooling=pooling,
        positions=config.max_position_embeddings,
        sha256=digest,
        licence=_licence(folder),
    )


def read_tokenizer(folder: Path, words: int) -> Any:
    """The tokenizer, without the padding and truncation of its file.

    Args:
        words: rows of the word table; every id must be below.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise SettingsError(f"{folder}: there is no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise SettingsError(f"{path}: {_line(error)}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ends = tokenizer.encode("").ids
    if len(ends) != 2:
        raise SettingsError(
            f"{path}: expected a start and an end token around a text, it puts {len(ends)}"
        )
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= words:
        raise SettingsError(f"{path}: has token {highest}, the model only {words} words")
    return tokenizer


def read_safetensors(path: Path) -> Weights:
    """The floating-point tensors of a file, as float32."""
    try:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise SettingsError(f"{path}: cannot be read: {_line(error)}") from None
    size = int(raw[:8].view("<u8")[0]) if len(raw) >= 8 else -1
    if not 0 < size <= min(MOST_HEADER, len(raw) - 8):
        raise SettingsError(f"{path}: is no safetensors file: its header is cut short")
    try:
        header = msgspec.json.decode(bytes(raw[8 : 8 + size]), type=dict[str, dict[str, Any]])
        entries = [(name, msgspec.convert(e, _Entry)) for name, e in header.items() if "dtype" in e]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is no safetensors file: {error}") from None
    data = raw[8 + size :]
    return {name: _tensor(path, name, e, data) for name, e in entries if e.dtype in KINDS}


class _Entry(Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def _tensor(
    path: Path, name: str, entry: _Entry, data: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    begin, end = entry.data_offsets
    kind = np.dtype(KINDS[entry.dtype])
    count = prod(entry.shape)
    if min(entry.shape, default=0) < 0 or end - begin != count * kind.itemsize:
        raise SettingsError(f"{path}: {name}: its place and its shape do not agree")
    if not 0 <= begin <= end <= len(data):
        raise SettingsError(f"{path}: is cut short: {name} lies beyond its end")
    values = np.frombuffer(data[begin:end].tobytes(), kind)
    if entry.dtype == "BF16":  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    found = values.astype(np.float32).reshape(entry.shape)
    if not np.isfinite(found).all():
        raise SettingsError(f"{path}: {name} holds values that are no numbers")
    return found


def _bare(path: Path, weights: Weights) -> Weights:
    """The weights under their bare names, LayerNorm's parts under their new ones."""
    prefixes = [name.removesuffix(WORDS) for name in weights if name.endswith(WORDS)]
    if len(prefixes) != 1:
        raise SettingsError(f"{path}: is not of a BERT-type encoder: no {WORDS}")
    found = {}
    for name, value in weights.items():
        if name.startswith(prefixes[0]):
            new = name.removeprefix(prefixes[0])
            new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", new)
            found[re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", new)] = value
    return found


def _check_shapes(path: Path, config: Config, weights: Weights) -> None:
    """Raises where a tensor of the graph is missing or has another shape than by config.json."""
    for name, shape in _shapes(config).items():
        found = weights.get(name)
        if found is None:
            raise SettingsError(f"{path}: is not of a BERT-type encoder: no {name}")
        rows = found.shape[0] if found.ndim else 0
        expected = tuple(n or max(rows, 1) for n in shape)
        if found.shape != expected:
            raise SettingsError(
                f"{path}: {name} is {list(found.shape)}, by config.json {list(expected)}"
            )
    if LAYER.format(config.num_hidden_layers) + "output.dense.weight" in weights:
        raise SettingsError(
            f"{path}: has more layers than config.json's {config.num_hidden_layers}"
        )


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of the graph's tensors by name; 0 stands for any size from 1 on."""
    width, wide = config.hidden_size, config.intermediate_size
    found: dict[str, tuple[int, ...]] = {
        WORDS: (0, width),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, width),
        "embeddings.token_type_embeddings.weight": (0, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for i in range(config.num_hidden_layers):
        for name, rows, columns in (
            *((f"attention.self.{part}", width, width) for part in ("query", "key", "value")),
            ("attention.output.dense", width, width),
            ("intermediate.dense", wide, width),
            ("output.dense", width, wide),
        ):
            found[f"{LAYER.format(i)}{name}.weight"] = (rows, columns)
            found[f"{LAYER.format(i)}{name}.bias"] = (rows,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            found |= {f"{LAYER.format(i)}{name}.{kind}": (width,) for kind in ("weight", "bias")}
    return found


def _config(folder: Path) -> Config:
    if not folder.is_dir():
        raise SettingsError(f"{folder}: is no folder")
    path = folder / "config.json"
    tree = _json(path)
    kind = tree.get("model_type", "bert")
    if kind != "bert":
        raise SettingsError(
            f"{path}: model_type is {kind!r}; only encoders of type 'bert' can be exported"
        )
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path}: {error}") from None
    heads, width = config.num_attention_heads, config.hidden_size
    if min(heads, width, config.num_hidden_layers) < 1:
        raise SettingsError(f"{path}: sizes must be at least 1")
    if config.max_position_embeddings < LEAST_POSITIONS:
        raise SettingsError(f"{path}: it reads fewer than {LEAST_POSITIONS} tokens")
    for wrong, reason in (
        (config.is_decoder, "it is a decoder"),
        (config.hidden_act not in EXACT_GELU, f"hidden_act is {config.hidden_act!r}, not 'gelu'"),
        (config.position_embedding_type not in (None, "absolute"), "its positions are relative"),
        (width % heads, f"{heads} heads do not divide {width}"),
    ):
        if wrong:
            raise SettingsError(f"{path}: cannot be exported: {reason}")
    return config


def _pooling(folder: Path) -> Pooling:
    """The pooling by sentence-transformers' files; the mean where there are none."""
    path = folder / "modules.json"
    if path.exists():
        kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in _modules(path)]
        more = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
        if more:
            raise SettingsError(f"{path}: cannot be exported: it has a module {more[0]!r}")
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return "mean"
    tree = _json(path)
    modes = [name.removeprefix("pooling_mode_") for name, on in tree.items() if _is_mode(name, on)]
    named: dict[str, Pooling] = {
        "mean_tokens": "mean",
        "mean_sqrt_len_tokens": "mean",  # the same direction
        "cls_token": "cls",
        "max_tokens": "max",
    }
    if len(modes) != 1 or modes[0] not in named:
        raise SettingsError(
            f"{path}: pooling must be one of mean, cls and max; it is {', '.join(modes) or 'none'}"
        )
    return named[modes[0]]


def _is_mode(name: str, on: object) -> bool:
    return name.startswith("pooling_mode_") and on is True


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {_line(error)}") from None


def _json(path: Path) -> dict[str, Any]:
    # The standard library reads NaN and Infinity, which some configurations have.
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{path}: is no JSON: {_line(error)}") from None
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: expected a JSON object")
    return tree


def _licence(folder: Path) -> str:
    """The licence in the model card's front matter; "" where it names none."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:4000]
    except OSError:
        return ""
    found = re.match(r"---\n(?:.*\n)*?license:[ \t]*(\S+)", head)
    return found[1].strip("'\"") if found else ""


def _instead(folder: Path) -> str:
    for name in ("model.safetensors.index.json", "pytorch_model.bin", "tf_model.h5"):
        if (folder / name).exists():
            return f" (but a {name}: save it again as one safetensors file)"
    return ""


def _line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:200]
