"""The length network's inputs: token ids, twelve side features, the model.

The tokens and the list of side features are the gateway's own (predict/encoder.py,
predict/head.py), so training and serving read the same. No torch here. The text is the system
prompt's head and the last user text's head and tail, because the first sets the form of the
answer and the second its task; everything else of a conversation comes as a number beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from gateway.predict.encoder import SEP, SYSTEM_TOKENS, TAIL_SHARE, token_ids
from gateway.predict.features import NAMES
from gateway.predict.head import FAR, MAY_LACK, SIDES, UNKNOWN_MODEL
from gateway.predict.prompt_view import PromptView

Array = np.ndarray

MAX_TOKENS = 96
SIDE_COLUMNS = [NAMES.index(name) for name in SIDES]


def tokens(view: PromptView, tokenizer: Tokenizer, cap: int = MAX_TOKENS) -> list[int]:
    """The encoder's tokens of a request, at most `cap`."""
    return token_ids(tokenizer, view.text, view.system, cap)


def shorter(ids: Sequence[int], room: int) -> list[int]:
    """Head and tail of ids."""
    tail = int(room * TAIL_SHARE)
    return [*ids[: room - tail], *ids[len(ids) - tail :]]


def recut(ids: Sequence[int], cap: int) -> list[int]:
    """Ids made under a larger cap, as nearly as can be under a smaller one."""
    if len(ids) <= cap:
        return list(ids)
    head = ids.index(SEP) + 1 if SEP in ids[1 : SYSTEM_TOKENS + 2] and SEP in ids[:-1] else 1
    return [*ids[:head], *shorter(ids[head:-1], cap - head - 1), SEP]


class Sides:
    """Side features scaled to mean 0 and deviation 1, absent ones 0, with flags of absence."""

    def __init__(self, mean: Array, deviation: Array) -> None:
        self.mean, self.deviation = mean, deviation
        self._flagged = [SIDES.index(name) for name in MAY_LACK]
        self.width = len(SIDES) + len(MAY_LACK)

    @classmethod
    def of(cls, cheap: Array) -> Sides:
        """Scales from the cheap features of fit rows."""
        part = cheap[:, SIDE_COLUMNS]
        return cls(np.nanmean(part, axis=0), np.maximum(np.nanstd(part, axis=0), 0.05))

    def __call__(self, cheap: Array) -> Array:
        scaled = (cheap[:, SIDE_COLUMNS] - self.mean) / self.deviation
        absent = np.isnan(scaled)
        values = np.where(absent, 0.0, np.clip(scaled, -FAR, FAR))
        return np.concatenate([values, absent[:, self._flagged]], axis=1).astype(np.float32)


def unknown_model(sides: Array) -> Array:
    """Side features as they are when the model was never seen."""
    out = sides.copy()
    out[:, SIDES.index("model_mean")] = 0.0
    out[:, len(SIDES) + MAY_LACK.index("model_mean")] = 1.0
    return out


def with_stage0(sides: Array, location: Array | None, mean: float, deviation: float) -> Array:
    """Side features and stage 0's location of log1p length, or a flag that there is none."""
    if location is None:
        columns = np.tile(np.array([0.0, 1.0]), (len(sides), 1))
    else:
        columns = np.stack([(location - mean) / deviation, np.zeros(len(sides))], axis=1)
    return np.concatenate([sides, columns], axis=1).astype(np.float32)


def numbering(models: Iterable[str]) -> dict[str, int]:
    """A number from 1 for each model; 0 is `UNKNOWN_MODEL`."""
    return {name: i + 1 for i, name in enumerate(sorted(set(models)))}


def numbers(models: Iterable[str], numbered: Mapping[str, int]) -> Array:
    return np.array([numbered.get(name, UNKNOWN_MODEL) for name in models])


def padded(rows: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """Ids and mask of a batch."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ids, mask


def censored(rows: Sequence[Mapping[str, Any]]) -> Array:
    """True for each row whose length is only a lower bound."""
    limits = [row.get("max_tokens") or np.inf for row in rows]
    return np.array([row["output_tokens"] >= n for row, n in zip(rows, limits, strict=True)])
