"""Trains the shipped length models from a file of conversations.

    .venv-models/bin/python models/train_quantiles.py CONVERSATIONS.jsonl.gz

Only rows whose licence permits it, only the fit side of gateway/replay/split.py. What is
written holds no text: two boosters' trees, tables of means and residual quantiles, a
projection, and 8-byte hashes of the fitted conversations and prompts, by which a test
shows that what is evaluated was never fitted.

Both models are a location (mean of log length, one booster) and a table of residual
quantiles by predicted location, taken out of fold. Features that a live gateway may lack
are hidden at random while fitting, so the trees know what to do without them: the model's
mean (10 % of rows), the task type (60 %), neighbours (35 %).
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightgbm as lgb
import manifest
import numpy as np
from scipy.stats import kendalltau

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from gateway.predict import quantiles as q  # noqa: E402
from gateway.predict.encoder import Encoder  # noqa: E402
from gateway.predict.features import NAMES, PromptView, features  # noqa: E402
from gateway.predict.index import NO_NEIGHBOURS, HistoryIndex  # noqa: E402
from gateway.replay.split import groups, is_fit, pack, row_keys  # noqa: E402
from gateway.types import QUANTILE_LEVELS  # noqa: E402

PERMITTED = ("Apache-2.0", "MIT", "CC0-1.0")
FOLDS = 5
COMPONENTS = 32
SHRINK = 10  # rows at the global mean that every model starts with
BINS = 12
LEVELS = np.array(QUANTILE_LEVELS)
SHARED = {
    "objective": "huber",
    "alpha": 1.5,
    "num_threads": 2,
    "verbosity": -1,
    "seed": 7,
    "deterministic": True,
    "force_row_wise": True,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
}
STAGE0 = SHARED | {"num_leaves": 20, "min_data_in_leaf": 25, "learning_rate": 0.05, "rounds": 260}
FULL = SHARED | {"num_leaves": 24, "min_data_in_leaf": 25, "learning_rate": 0.04, "rounds": 420}

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


def vectors_of(texts: Sequence[str], stored: Path | None) -> Array:
    """One vector a text (some 10 ms each), kept in `stored` between runs where given."""
    known: dict[str, Array] = {}
    if stored and stored.exists():
        with np.load(stored) as file:
            known = dict(zip(file["texts"].tolist(), file["vectors"], strict=True))
    encoder = Encoder(HERE / "encoder.onnx", HERE / "tokenizer.json")
    for i, text in enumerate(dict.fromkeys(texts)):
        if text not in known:
            known[text] = encoder.vector(text).astype(np.float16)
        if i % 1000 == 0:
            print(f"\rvectors {i}", end="", flush=True)
    if stored:
        np.savez(stored, texts=np.array(list(known)), vectors=np.array(list(known.values())))
    return np.array([known[text] for text in texts], np.float32)


def means(names: Sequence[str | None], y: Array) -> dict[str, float]:
    """Running mean of log length by name, shrunk to the global mean."""
    sums: dict[str, list[float]] = defaultdict(lambda: [SHRINK * float(y.mean()), SHRINK])
    for name, value in zip(names, y, strict=True):
        if name is not None:
            sums[name][0] += float(value)
            sums[name][1] += 1
    return {name: total / count for name, (total, count) in sums.items()}


def cheap(views: Sequence[PromptView], model: dict[str, float], task: dict[str, float]) -> Array:
    nan = float("nan")
    return np.array(
        [features(v, model.get(v.model, nan), task.get(v.task_type or "", nan)) for v in views]
    )


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
    found = (index.global_neighbours(v, w.model, q.NEAREST) for v, w in pairs)
    return np.array([q.neighbour_features(near) for near in found])


def fit(x: Array, y: Array, settings: dict[str, Any]) -> lgb.Booster:
    parameters = {key: value for key, value in settings.items() if key != "rounds"}
    return lgb.train(parameters, lgb.Dataset(x, y), num_boost_round=settings["rounds"])


def out_of_fold(x: Array, y: Array, folds: Array, settings: dict[str, Any]) -> Array:
    out = np.empty(len(y))
    for fold in range(FOLDS):
        out[folds == fold] = fit(x[folds != fold], y[folds != fold], settings).predict(
            x[folds == fold]
        )
    return out


def residual_table(predicted: Array, y: Array) -> dict[str, list[Any]]:
    """Quantiles of y − predicted in equal bins of `predicted`; `at` is each bin's middle."""
    edges = np.quantile(predicted, np.linspace(0, 1, BINS + 1))[1:-1]
    bins = np.searchsorted(edges, predicted)
    table = [np.quantile((y - predicted)[bins == b], LEVELS) for b in range(BINS)]
    middles = [float(np.median(predicted[bins == b])) for b in range(BINS)]
    return {
        "at": [round(m, 4) for m in middles],
        "residuals": [[round(float(v), 4) for v in row] for row in table],
    }


def grids(predicted: Array, table: dict[str, list[Any]]) -> Array:
    residuals = np.array(table["residuals"])
    columns = [np.interp(predicted, table["at"], residuals[:, i]) for i in range(len(LEVELS))]
    return np.sort(predicted[:, None] + np.stack(columns, axis=1), axis=1)


def judge(grid: Array, y: Array, sources: Sequence[str]) -> dict[str, Any]:
    """Kendall τ-b of the median, pinball in log length, share below p90, overall and by source."""
    error = y[:, None] - grid
    pinball = np.maximum(LEVELS * error, (LEVELS - 1) * error).mean()
    names = np.array(sources)
    each = {
        name: round(float(kendalltau(grid[names == name, 3], y[names == name]).statistic), 3)
        for name in sorted(set(sources))
    }
    return {
        "kendall_tau": round(float(kendalltau(grid[:, 3], y).statistic), 4),
        "kendall_tau_mean_source": round(float(np.nanmean(list(each.values()))), 4),
        "pinball": round(float(pinball), 4),
        "coverage_p90": round(float((y <= grid[:, 5]).mean()), 4),
        "by_source": each,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("conversations", type=Path)
    parser.add_argument("--vectors", type=Path, help="keep the vectors here between runs (.npz)")
    args = parser.parse_args()
    rows = read(args.conversations)
    group = groups(row_keys(row) for row in rows)
    fitted = [
        is_fit(g) and row["license"].startswith(PERMITTED)
        for g, row in zip(group, rows, strict=True)
    ]
    chosen = [i for i, yes in enumerate(fitted) if yes]
    held = [i for i, g in enumerate(group) if not is_fit(g)]
    views = [view_of(row) for row in rows]
    y = log_lengths(rows)
    vectors = vectors_of([view.text for view in views], args.vectors)
    folds = np.array([int.from_bytes(group[i][-2:], "big") % FOLDS for i in chosen])

    model, task = (means([f(views[i]) for i in chosen], y[chosen]) for f in (_model, _task))
    x = np.empty((len(chosen), len(NAMES)))
    nn = np.empty((len(chosen), len(q.NEIGHBOUR_NAMES)))
    for fold in range(FOLDS):
        inside = np.flatnonzero(folds == fold)
        others = [chosen[i] for i in np.flatnonzero(folds != fold)]
        own = [views[chosen[i]] for i in inside]
        oof = [means([f(views[i]) for i in others], y[others]) for f in (_model, _task)]
        x[inside] = cheap(own, *oof)
        pool = (vectors[others], [views[i] for i in others], y[others])
        nn[inside] = neighbour_matrix(pool, vectors[[chosen[i] for i in inside]], own)
    hide(x, [NAMES.index("model_mean")], 0.10, 1)
    hide(x, [NAMES.index("task_mean")], 0.60, 2)
    hide(nn, range(nn.shape[1]), 0.35, 3)

    centre = vectors[chosen].mean(axis=0)
    _, _, components = np.linalg.svd(vectors[chosen] - centre, full_matrices=False)
    projection = np.concatenate([centre[None], components[:COMPONENTS]]).astype(np.float32)
    pca = (vectors - projection[0]) @ projection[1:].T

    full_x = np.concatenate([x, pca[chosen], nn], axis=1)
    tables: dict[str, Any] = {"features": list(NAMES), "neighbour_features": q.NEIGHBOUR_NAMES}
    tables |= {"levels": list(QUANTILE_LEVELS), "mean": round(float(y[chosen].mean()), 4)}
    tables |= {"models": _rounded(model), "tasks": _rounded(task)}
    boosters = {}
    for name, matrix, settings in (("stage0", x, STAGE0), ("full", full_x, FULL)):
        boosters[name] = fit(matrix, y[chosen], settings)
        tables[name] = residual_table(out_of_fold(matrix, y[chosen], folds, settings), y[chosen])

    without_task = cheap([views[i] for i in held], model, {})
    pool = (vectors[chosen], [views[i] for i in chosen], y[chosen])
    warm = neighbour_matrix(pool, vectors[held], [views[i] for i in held])
    cold = np.array([q.neighbour_features(NO_NEIGHBOURS)] * len(held))
    permitted = np.array([rows[i]["license"].startswith(PERMITTED) for i in held])
    sources = [rows[i]["source"] for i in held]
    report: dict[str, Any] = {"fit_rows": len(chosen), "held_rows": len(held)}
    for variant, name, matrix in (
        ("stage0", "stage0", without_task),
        ("full_no_history", "full", np.concatenate([without_task, pca[held], cold], axis=1)),
        (
            "full_fit_rows_as_history",
            "full",
            np.concatenate([without_task, pca[held], warm], axis=1),
        ),
    ):
        grid = grids(boosters[name].predict(matrix), tables[name])
        report[variant] = judge(grid, y[held], sources)
        seen = [s for s, yes in zip(sources, permitted, strict=True) if yes]
        report[variant + "_seen_sources"] = judge(grid[permitted], y[held][permitted], seen)
    print(json.dumps(report, indent=1))
    write(boosters, tables, projection, pack(rows[i] for i in chosen), report)


def _model(view: PromptView) -> str:
    return view.model


def _task(view: PromptView) -> str | None:
    return view.task_type


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in sorted(values.items())}


def write(
    boosters: dict[str, lgb.Booster],
    tables: dict[str, Any],
    projection: Array,
    fitted: bytes,
    report: dict[str, Any],
) -> None:
    for name, booster in boosters.items():
        text = booster.model_to_string(importance_type="gain")
        # The parameter dump at the end names paths of the building machine and nothing we read.
        (HERE / f"{name}.txt").write_text(text.split("\nparameters:")[0] + "\n")
    (HERE / "tables.json").write_text(json.dumps(tables, ensure_ascii=False) + "\n")
    np.save(HERE / "projection.npy", projection)
    (HERE / "fit_keys.bin").write_bytes(fitted)
    common = {
        "origin": "the Apache-2.0, MIT and CC0 rows of the fit side; sources in MODELCARD.md",
        "licence": "Apache-2.0",
        "command": "python models/train_quantiles.py CONVERSATIONS.jsonl.gz",
    }
    flat = {
        f"{variant}_{key}": value
        for variant, figures in report.items()
        if isinstance(figures, dict)
        for key, value in figures.items()
        if key != "by_source"
    }
    rows = {key: report[key] for key in ("fit_rows", "held_rows")}
    for name in boosters:
        own = {key: value for key, value in flat.items() if key.startswith(name)}
        manifest.record(name, f"{name}.txt", **common, **rows, **own)
    manifest.record("tables", "tables.json", **common)
    manifest.record("projection", "projection.npy", **common)
    manifest.record("fit_keys", "fit_keys.bin", **common)


if __name__ == "__main__":
    main()
