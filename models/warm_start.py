"""Writes models/warm.npz: the rows a gateway starts with, by vector and length, no text.

    .venv-models/bin/python models/warm_start.py CONVERSATIONS.jsonl.gz

Of the rows that were fitted those are kept that lie apart: a prompt asked twenty times, or
twenty prompts of one template, tell a new prompt little more than three of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import faiss
import manifest
import numpy as np
from export_length import NAME
from train_quantiles import FOLDS
from training_rows import HERE, PERMITTED, Array, read, vectors_of, view_of

from gateway.predict.encoder import Encoder
from gateway.workbench.split import groups, is_fit, row_keys

ROWS = 6000
ALIKE = 0.9
NEAREST = 64


def crowding(vectors: Array, order: Array) -> Array:
    """How many rows earlier in `order` are alike, for each row."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    similarity, at = index.search(vectors, NEAREST)
    place = np.empty(len(order), int)
    place[order] = np.arange(len(order))
    return ((similarity >= ALIKE) & (place[at] < place[:, None])).sum(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("conversations", type=Path)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--leave-out", type=int, nargs="*", default=[], help="folds of 0 to 4")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--served", type=Path, help="keep the vectors here between runs (.npz)")
    args = parser.parse_args()
    rows = read(args.conversations)
    keys = groups(row_keys(row) for row in rows)
    chosen = [
        row
        for row, key in zip(rows, keys, strict=True)
        if is_fit(key)
        and row["license"].startswith(PERMITTED)
        and int.from_bytes(key[-2:], "big") % FOLDS not in args.leave_out
        and row["output_tokens"] < (row.get("max_tokens") or np.inf)
    ]
    encoder = Encoder(HERE / "encoder.onnx", HERE / "tokenizer.json", max_tokens=64)
    vectors = vectors_of([view_of(row) for row in chosen], encoder, args.served)
    order = np.random.default_rng(3).permutation(len(chosen))
    apart = order[np.argsort(crowding(vectors, order)[order], kind="stable")][: args.rows]
    names = sorted({chosen[i]["model"] for i in apart})
    np.savez_compressed(
        args.out / "warm.npz",
        vectors=np.round(
            vectors[apart] / np.abs(vectors[apart]).max(1, keepdims=True) * 127
        ).astype(np.int8),
        lengths=np.array([chosen[i]["output_tokens"] for i in apart], np.uint32),
        model=np.array([names.index(chosen[i]["model"]) for i in apart], np.uint16),
        models=np.array(names),
        encoder=np.array(NAME),
    )
    manifest.record(
        "warm",
        "warm.npz",
        origin="the Apache-2.0, MIT and CC0 rows of the fit side; sources in MODELCARD.md",
        licence="Apache-2.0",
        command="python models/warm_start.py CONVERSATIONS.jsonl.gz",
        folder=args.out,
        rows=len(apart),
    )


if __name__ == "__main__":
    main()
