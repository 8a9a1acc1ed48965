"""The fine-tuned length network as ONNX, int8, and its head as plain arrays.

    .venv-models/bin/python models/export_length.py FOLDER [--prompts CONVERSATIONS.jsonl.gz]

FOLDER holds what finetune.py wrote; into it go `encoder.onnx` (outputs `vector`, the unit
sentence vector, and `code`, 64 numbers about length) and `head.npz` (everything between
the code and seven quantiles, a few small matrices for numpy). The quantisation is that of
build_encoder.py, with the code's own matrix left in fp32: it is 49,000 numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from math import erf, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bert_graph import Graph, Weights
from build_encoder import CALIBRATE, HEADS, HERE, Encode, prompts, quantise
from length_rows import CLS, MAX_TOKENS, SEP, recut, text_ids
from onnx import TensorProto, helper
from tokenizers import Tokenizer

ERF = np.vectorize(erf, otypes=[np.float32])


class LengthGraph(Graph):
    """The sentence encoder's graph with a second output, `code`."""

    def __init__(self, weights: Weights, heads: int, head: Weights, **options: Any) -> None:
        self._head = head
        super().__init__(weights, heads, **options)

    def _pool(self, x: str) -> None:
        super()._pool(x)
        first = self._op("Gather", [x, "zero"], "first", axis=1)
        cls = self._op("Squeeze", [first, "one"], "first.token")
        count = self._op("ReduceSum", ["mask", "one"], "count", keepdims=1)
        mean = self._op("Div", ["total", count], "mean")
        both = self._op("Concat", [cls, mean], "pooled", axis=1)
        weight = self._constant("code.matrix", self._head["code.weight"].T)
        bias = self._constant("code.bias", self._head["code.bias"])
        self._op("Gemm", [both, weight, bias], "code")

    def model(self) -> onnx.ModelProto:
        model = super().model()
        shape = ["batch", len(self._head["code.bias"])]
        model.graph.output.append(helper.make_tensor_value_info("code", TensorProto.FLOAT, shape))
        return model


class Head:
    """Codes, models and side features to quantiles of log1p length, in numpy."""

    def __init__(self, parts: Weights) -> None:
        self.parts = parts

    def __call__(self, code: np.ndarray, model: np.ndarray, sides: np.ndarray) -> np.ndarray:
        p = self.parts
        both = np.concatenate([gelu(code), p["model.weight"][model], sides], axis=1)
        hidden = gelu(both @ p["first.weight"].T + p["first.bias"])
        scaled = hidden @ p["last.weight"].T + p["last.bias"]
        return np.sort(scaled * p["y_deviation"] + p["y_mean"], axis=1)


def gelu(x: np.ndarray) -> np.ndarray:
    # numpy has no erf; this takes some 0.1 µs a number
    out: np.ndarray = x * 0.5 * (1 + ERF(x / sqrt(2)))
    return out


def both_outputs(encode: Encode, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    row = np.array([ids], np.int64)
    feed = {"input_ids": row, "attention_mask": np.ones_like(row)}
    vector, code = encode.session.run(["vector", "code"], feed)
    return vector[0], code[0]


def agreement(a: Encode, b: Encode, texts: Sequence[str], tok: Tokenizer) -> dict[str, float]:
    """Cosine of the vectors and correlation of the codes of two forms of one network."""
    ids = [recut([CLS, *text_ids(tok, t), SEP], MAX_TOKENS) for t in texts]
    one, two = ([both_outputs(e, row) for row in ids] for e in (a, b))
    cosine = [float(x[0] @ y[0]) for x, y in zip(one, two, strict=True)]
    codes = [np.array([x[1] for x in side]).ravel() for side in (one, two)]
    return {
        "cosine_min": round(min(cosine), 4),
        "cosine_mean": round(float(np.mean(cosine)), 4),
        "code_correlation": round(float(np.corrcoef(*codes)[0, 1]), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=Path, help="conversations .jsonl.gz to compare on")
    args = parser.parse_args()
    weights = dict(np.load(args.folder / "encoder_weights.npz"))
    head = dict(np.load(args.folder / "head_weights.npz"))
    facts = json.loads((args.folder / "head.json").read_text())
    tok = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    tok.enable_truncation(MAX_TOKENS)
    own = (HERE / "sentences.txt").read_text().splitlines()
    lines = [line.replace("\\n", "\n") for line in own]

    exact = LengthGraph(weights, HEADS, head, int8_words=False).model()
    fp32 = Encode(exact.SerializeToString(), tok)
    build = args.folder / "build"
    build.mkdir(exist_ok=True)
    onnx.save(exact, str(build / "fp32.onnx"))
    small = quantise(LengthGraph(weights, HEADS, head).model(), lines[:CALIBRATE], tok, build)
    int8 = Encode(small, tok)
    (args.folder / "encoder.onnx").write_bytes(small)
    names = ("model.weight", "first.weight", "first.bias", "last.weight", "last.bias")
    scale = {k: np.float32(facts[k]) for k in ("y_mean", "y_deviation")}
    sides = {k: np.array(facts[k], np.float32) for k in ("side_mean", "side_deviation")}
    np.savez(args.folder / "head.npz", **{k: head[k] for k in names}, **scale, **sides)

    plain = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    figures: dict[str, Any] = {"own": agreement(fp32, int8, lines[CALIBRATE:], plain)}
    if args.prompts:
        figures["prompts"] = agreement(fp32, int8, prompts(args.prompts), plain)
    for tokens in (16, 32, 64, 96):
        figures[f"ms_{tokens}_tokens"] = int8.milliseconds(tokens)
        figures[f"ms_{tokens}_tokens_fp32"] = fp32.milliseconds(tokens)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
