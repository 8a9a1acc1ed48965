"""Inputs of the length models from a file of conversations: views, vectors, features and
neighbours, each made as in serving."""

from __future__ import annotations

import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from gateway.predict import quantiles as q  # noqa: E402
from gateway.predict.calibrate import group_keys  # noqa: E402
from gateway.predict.encoder import Encoder  # noqa: E402
from gateway.predict.features import NAMES, UNKNOWN_RUNNING, features  # noqa: E402
from gateway.predict.index import HistoryIndex  # noqa: E402
from gateway.predict.prompt_view import PromptView, template_key  # noqa: E402
from gateway.predict.residuals import Residuals  # noqa: E402

PERMITTED = ("Apache-2.0", "MIT", "CC0-1.0")
SHRINK = 10  # rows at the global mean that every model starts with
NO_RUNNING_SHARE = 0.3  # of rows, shown as if nothing had been learned yet
RUNNING = slice(len(NAMES) - len(UNKNOWN_RUNNING), len(NAMES))

Array = np.ndarray


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def view_of(row: dict[str, Any]) -> PromptView:
    return PromptView.of_chat(
        row["messages"],
        tenant="",
        model=row["model"],
        max_tokens=row.get("max_tokens"),
        temperature=row.get("temperature"),
        task_type=row["task_type"],
    )


def log_lengths(rows: Sequence[dict[str, Any]]) -> Array:
    """log1p of the lengths; a censored one counts half as long again."""
    lengths = np.array([row["output_tokens"] for row in rows], float)
    limits = np.array([row.get("max_tokens") or np.inf for row in rows], float)
    return np.log1p(np.where(lengths >= limits, lengths * 1.5, lengths))


def vectors_of(views: Sequence[PromptView], encoder: Encoder, stored: Path | None) -> Array:
    """One vector for each prompt (some 15 ms each), stored in the file `stored` where given."""
    vectors: dict[str, Array] = {}
    if stored and stored.exists():
        with np.load(stored) as file:
            vectors = dict(zip(file["texts"].tolist(), file["vectors"], strict=True))
    names = [_name(view, encoder) for view in views]
    missing = {name: view for name, view in zip(names, views, strict=True) if name not in vectors}
    for i, (name, view) in enumerate(missing.items()):
        vectors[name] = encoder.vector(view.text, None, view.system).astype(np.float16)
        if i % 1000 == 0:
            print(f"\rvectors {i} of {len(missing)}", end="", flush=True)
    if stored and missing:
        np.savez(stored, texts=np.array(list(vectors)), vectors=np.array(list(vectors.values())))
    return np.array([vectors[name] for name in names], np.float32)


def _name(view: PromptView, encoder: Encoder) -> str:
    return f"{view.text}\x1f{view.system}" if encoder.code_width else view.text


def means(names: Sequence[str | None], y: Array) -> dict[str, float]:
    """Running mean of log length by name, shrunk to the global mean."""
    sums: dict[str, list[float]] = defaultdict(lambda: [SHRINK * float(y.mean()), SHRINK])
    for name, value in zip(names, y, strict=True):
        if name is not None:
            sums[name][0] += float(value)
            sums[name][1] += 1
    return {name: total / count for name, (total, count) in sums.items()}


def cheap(views: Sequence[PromptView], model: dict[str, float], task: dict[str, float]) -> Array:
    """The cheap features, without running means."""
    nan = float("nan")
    return np.array(
        [features(v, model.get(v.model, nan), task.get(v.task_type or "", nan)) for v in views]
    )


def running(views: Sequence[PromptView], tenants: Sequence[str], y: Array) -> Array:
    """Running means as in serving: in order, of the rows before each row."""
    residuals, out = Residuals(), np.empty((len(views), len(UNKNOWN_RUNNING)))
    for i, (view, tenant) in enumerate(zip(views, tenants, strict=True)):
        keys = group_keys(view.model, tenant, template_key(view, b""))
        out[i] = residuals.table.running(keys)
        residuals.learn(keys, float(y[i]), stage0=float(y[i]), full=None, censored=False)
    return out


def mixed_running(views: Sequence[PromptView], sources: Sequence[str], y: Array) -> Array:
    """Running means of a mixture: half of the rows come from a tenant that sends one source's
    requests, half from one that sends all; for some nothing was learned yet."""
    random = np.random.default_rng(4)
    alone, together = running(views, sources, y), running(views, [""] * len(views), y)
    out = np.where(random.random(len(views))[:, None] < 0.5, alone, together)
    out[random.random(len(views)) < NO_RUNNING_SHARE] = UNKNOWN_RUNNING
    return out


def hide(matrix: Array, columns: Sequence[int], share: float, seed: int) -> None:
    rows = np.random.default_rng(seed).random(len(matrix)) < share
    matrix[np.ix_(rows, columns)] = np.nan


def neighbour_matrix(
    pool: tuple[Array, Sequence[PromptView], Array], vectors: Array, views: Sequence[PromptView]
) -> Array:
    """Neighbour features of `views` among the rows of `pool` (vectors, views, log lengths)."""
    index = HistoryIndex(vectors.shape[1], len(pool[0]))
    for vector, view, y in zip(*pool, strict=True):
        index.add(vector, "", view.model, round(float(np.expm1(y))), censored=False)
    pairs = zip(vectors, views, strict=True)
    found = (index.near(v, "", w.model, q.NEAREST)[1] for v, w in pairs)
    return np.array([q.neighbour_features(near) for near in found])
