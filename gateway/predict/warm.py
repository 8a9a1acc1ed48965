"""A warm start: what answers to public prompts looked like, until history is one's own.

models/warm.npz has vectors, lengths and model names of some thousand rows the shipped models
were fitted on, and no text. The boosters were taught to read the nearest rows' lengths; on a
first day there are none, and these stand in for them.

It is the weakest pool. It gives features to the boosters and nothing else: no forecast takes
its quantiles or its rung's name from it, it is never counted as history, and it yields to
real rows as soon as one is as near, or near enough to speak for itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gateway.predict.encoder import Vector
from gateway.predict.index import HistoryIndex, Neighbours
from gateway.predict.quantiles import NEAREST

NEAR_ENOUGH = 0.35  # of a real row: from there on the warm rows are not asked


class Warm:
    """Rows to fall back on. Belongs to one thread, as its index does.

    Args:
        path: an .npz with `vectors` (int8, directions), `lengths` (tokens), `model` (a place
            in `models`), `models`, and `encoder`, the name of whose vectors they are.

    Raises:
        ValueError, KeyError, OSError: the file is broken.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            vectors = file["vectors"].astype(np.float32)
            lengths, model = file["lengths"].tolist(), file["model"].tolist()
            names = [str(name) for name in file["models"]]
            self.encoder = str(file["encoder"])
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1.0)
        self._index = HistoryIndex(vectors.shape[1], max(len(vectors), 1))
        self.width = vectors.shape[1]
        for vector, tokens, at in zip(vectors, lengths, model, strict=True):
            self._index.add(vector, "", names[at], tokens, censored=False)

    def __len__(self) -> int:
        return len(self._index)

    def instead_of(self, real: Neighbours, vector: Vector, model: str) -> Neighbours:
        """The rows the boosters are to read of: `real`, where they are near."""
        top = float(real.similarity[0]) if len(real) else -1.0
        if top >= NEAR_ENOUGH:
            return real
        found = self._index.global_neighbours(vector, model, NEAREST)
        return found if len(found) and float(found.similarity[0]) > top else real
