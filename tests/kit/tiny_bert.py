"""A BERT of a few thousand numbers in a folder as Hugging Face's libraries write it, and the
same network in plain numpy, to compare with.

    weights = write_bert(folder, Shape(layers=3), prefix="bert.", vocabulary="unigram")
    vector = forward(weights, Shape(layers=3), [2, 17, 18, 3])
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import erf, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

Weights = dict[str, np.ndarray]

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()-/"
WORDS = ("what", "is", "the", "of", "a", "sea", "lake", "write", "essay", "name", "list", "##s")
EPSILON = 1e-7


class Shape(NamedTuple):
    width: int = 32
    layers: int = 2
    heads: int = 4
    wide: int = 48
    positions: int = 40


def write_bert(
    folder: Path,
    shape: Shape = Shape(),  # noqa: B008 — immutable
    *,
    vocabulary: str = "wordpiece",
    prefix: str = "",
    old_names: bool = False,
    kind: str = "F32",
    pooling: str | None = "mean_tokens",
    seed: int = 0,
    **config: object,
) -> Weights:
    """Write config.json, model.safetensors, tokenizer.json, 1_Pooling/config.json.

    Args:
        prefix: of the tensors' names, such as "bert.".
        old_names: LayerNorm's parts as `gamma` and `beta`.
        kind: of the numbers, F32, F16 or BF16.
        pooling: None writes no 1_Pooling.
        config: put into config.json.

    Returns the weights by their bare names, as a reader of the file must see them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = {"wordpiece": wordpiece, "unigram": unigram}[vocabulary]()
    tokenizer.enable_truncation(16)  # as such files come; a reader must take it off
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = random_weights(shape, tokenizer.get_vocab_size() + 3, seed)
    weights = {name: as_kind(value, kind) for name, value in weights.items()}
    named = {prefix + (old(name) if old_names else name): v for name, v in weights.items()}
    named["pooler.dense.bias"] = np.zeros(3, np.float32)  # nobody reads it
    write_safetensors(folder / "model.safetensors", named, kind)
    write_config(folder, shape, **config)
    if pooling is not None:
        modes = {f"pooling_mode_{m}": m == pooling for m in ("cls_token", "mean_tokens")}
        modes[f"pooling_mode_{pooling}"] = True
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(
            json.dumps({"word_embedding_dimension": shape.width, **modes})
        )
    return weights


def write_config(folder: Path, shape: Shape, **config: object) -> None:
    tree = {
        "model_type": "bert",
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.wide,
        "max_position_embeddings": shape.positions,
        "hidden_act": "gelu",
        "layer_norm_eps": EPSILON,
        "vocab_size": 30522,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(tree))


def write_safetensors(path: Path, weights: Mapping[str, np.ndarray], kind: str = "F32") -> None:
    """By hand: the header's length, the header, the numbers."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    blocks, at = [], 0
    for name, value in weights.items():
        block = packed(value, kind)
        place = [at, at + len(block)]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": place}
        blocks.append(block)
        at += len(block)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blocks))


def packed(value: np.ndarray, kind: str) -> bytes:
    if kind == "BF16":
        return (value.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return value.astype({"F32": "<f4", "F16": "<f2"}[kind]).tobytes()


def as_kind(value: np.ndarray, kind: str) -> np.ndarray:
    """The float32 values that are left of these."""
    if kind == "BF16":
        return (value.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    return value.astype({"F32": np.float32, "F16": np.float16}[kind]).astype(np.float32)


def old(name: str) -> str:
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return name.replace("LayerNorm.bias", "LayerNorm.beta")


def random_weights(shape: Shape, words: int, seed: int) -> Weights:
    draw = np.random.default_rng(seed)
    width, wide = shape.width, shape.wide

    def some(*size: int, by: float = 0.3) -> np.ndarray:
        return (by * draw.standard_normal(size)).astype(np.float32)

    def norm(path: str) -> Weights:
        return {f"{path}.weight": 1 + some(width, by=0.1), f"{path}.bias": some(width, by=0.1)}

    found = {
        "embeddings.word_embeddings.weight": some(words, width, by=1.0),
        "embeddings.position_embeddings.weight": some(shape.positions, width),
        "embeddings.token_type_embeddings.weight": some(2, width),
        **norm("embeddings.LayerNorm"),
    }
    for i in range(shape.layers):
        path = f"encoder.layer.{i}."
        dense = {f"attention.self.{part}": (width, width) for part in ("query", "key", "value")}
        dense |= {"attention.output.dense": (width, width), "intermediate.dense": (wide, width)}
        dense |= {"output.dense": (width, wide)}
        for name, size in dense.items():
            found[f"{path}{name}.weight"] = some(*size)
            found[f"{path}{name}.bias"] = some(size[0], by=0.1)
        found |= norm(f"{path}attention.output.LayerNorm") | norm(f"{path}output.LayerNorm")
    return found


# --- vocabularies -----------------------------------------------------------------------


def wordpiece() -> Tokenizer:
    """Letters and a few words; ids unlike those of the usual vocabulary."""
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*marks, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    vocab = {word: place for place, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return ended(tokenizer, marks, ("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"]))


def unigram() -> Tokenizer:
    """As the multilingual MiniLM's: pieces with scores, marked `<s>`, `</s>`, `<unk>`."""
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(mark, 0.0) for mark in marks] + [("▁", -3.0)]
    pieces += [(letter, -6.0) for letter in LETTERS]
    pieces += [("▁" + word, -4.0) for word in WORDS if word[0] != "#"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return ended(tokenizer, marks, ("<s>", 0), ("</s>", 2))


def ended(
    tokenizer: Tokenizer, marks: list[str], start: tuple[str, int], end: tuple[str, int]
) -> Tokenizer:
    tokenizer.add_special_tokens(marks)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start[0]} $A {end[0]}",
        pair=f"{start[0]} $A {end[0]} $B {end[0]}",
        special_tokens=[start, end],
    )
    return tokenizer


# --- the network ------------------------------------------------------------------------


def forward(
    weights: Weights, shape: Shape, ids: list[int], pooling: str = "mean_tokens"
) -> np.ndarray:
    """The unit vector of one text, by the formulas of the BERT paper (arXiv 1810.04805)."""
    of = {name: value.astype(np.float64) for name, value in weights.items()}
    x = of["embeddings.word_embeddings.weight"][ids]
    x = x + of["embeddings.position_embeddings.weight"][: len(ids)]
    x = normed(x + of["embeddings.token_type_embeddings.weight"][0], of, "embeddings.LayerNorm")
    for i in range(shape.layers):
        path = f"encoder.layer.{i}."
        parts = (dense(x, of, f"{path}attention.self.{p}") for p in ("query", "key", "value"))
        q, k, v = (by_head(part, shape.heads) for part in parts)
        scores = q @ k.transpose(0, 2, 1) / sqrt(shape.width / shape.heads)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        seen = (shares @ v).transpose(1, 0, 2).reshape(len(ids), shape.width)
        seen = dense(seen, of, f"{path}attention.output.dense")
        x = normed(x + seen, of, f"{path}attention.output.LayerNorm")
        inner = dense(x, of, f"{path}intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(erf)(inner / sqrt(2)))
        x = normed(x + dense(inner, of, f"{path}output.dense"), of, f"{path}output.LayerNorm")
    pooled = {"cls_token": x[0], "max_tokens": x.max(axis=0)}.get(pooling, x.mean(axis=0))
    found: np.ndarray = pooled / np.linalg.norm(pooled)
    return found


def dense(x: np.ndarray, of: Weights, name: str) -> np.ndarray:
    return np.asarray(x @ of[f"{name}.weight"].T + of[f"{name}.bias"])


def by_head(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def normed(x: np.ndarray, of: Weights, name: str) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
    return np.asarray(scaled * of[f"{name}.weight"] + of[f"{name}.bias"])
