"""Trains the shipped length models from a file of conversations.

    .venv-models/bin/python models/train_quantiles.py CONVERSATIONS.jsonl.gz [--only-stage0]

Only rows whose licence permits it, only the fit side of gateway/workbench/split.py. What is
written holds no text: the boosters' trees, tables of means and residual quantiles, a
projection, and 8-byte hashes of the fitted conversations and prompts, by which a test
shows that what is evaluated was never fitted.

The full model has a booster more, of the probability that an answer is short (≤ 64 tokens).

Both models are a location (mean of log length), a scale (log of the residual's size, taken
out of fold) and a table of residual quantiles in units of the scale, by location. Features
that a live gateway may lack are hidden at random while fitting, so the trees know what to do
without them: the model's mean (10 % of rows), the task type (60 %), neighbours (35 %).
Running means of learned lengths are left out, except with `--running`: they separate sources and
cost order inside them (MODELCARD.md).

The full model is fitted on the vectors of the encoder as it was before it was fine-tuned for
length, and served those of the fine-tuned one, which was held near the old ones. The
fine-tuned network has seen these very rows: its vectors know their lengths, and boosters
fitted on them trust them more than a new prompt's vector deserves (MODELCARD.md has the
figures).

`--leave-out 0 --out FOLDER` makes models that have not seen one fold of five, which the
shipped network has not seen either: what is chosen is chosen on that fold.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightgbm as lgb
import manifest
import numpy as np
from scipy.stats import kendalltau
from training_rows import (
    HERE,
    PERMITTED,
    RUNNING,
    Array,
    cheap,
    hide,
    log_lengths,
    means,
    mixed_running,
    neighbour_matrix,
    read,
    vectors_of,
    view_of,
)

from gateway.predict import quantiles as q
from gateway.predict.encoder import Encoder
from gateway.predict.features import NAMES, UNKNOWN_RUNNING
from gateway.predict.index import NO_NEIGHBOURS
from gateway.predict.lengths import NARROWEST, WIDEST
from gateway.predict.prompt_view import PromptView
from gateway.types import QUANTILE_LEVELS, SHORT_TOKENS
from gateway.workbench.split import groups, is_fit, pack, row_keys

FOLDS = 5
COMPONENTS = 32
BINS = 12
LEAST_RESIDUAL = 0.05
LEVELS = np.array(QUANTILE_LEVELS)
SHARED = {
    "objective": "huber",
    "alpha": 1.5,
    "num_threads": 1,
    "verbosity": -1,
    "seed": 7,
    "deterministic": True,
    "force_row_wise": True,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
}
STAGE0 = SHARED | {"num_leaves": 20, "min_data_in_leaf": 25, "learning_rate": 0.05, "rounds": 260}
STAGE0_SCALE = SHARED | {"num_leaves": 20, "min_data_in_leaf": 60}
STAGE0_SCALE |= {"learning_rate": 0.12, "rounds": 30}  # runs on the loop
FULL = SHARED | {"num_leaves": 24, "min_data_in_leaf": 25, "learning_rate": 0.02, "rounds": 900}
SCALE = SHARED | {"num_leaves": 12, "min_data_in_leaf": 60, "learning_rate": 0.05, "rounds": 120}
SHORT = {key: value for key, value in SHARED.items() if key != "alpha"} | {
    "objective": "binary",
    "num_leaves": 16,
    "min_data_in_leaf": 40,
    "learning_rate": 0.03,
    "rounds": 300,
}


def fit(x: Array, y: Array, settings: dict[str, Any]) -> lgb.Booster:
    parameters = {key: value for key, value in settings.items() if key != "rounds"}
    return lgb.train(parameters, lgb.Dataset(x, y), num_boost_round=settings["rounds"])


def out_of_fold(x: Array, y: Array, folds: Array, settings: dict[str, Any]) -> Array:
    out = np.empty(len(y))
    for fold in np.unique(folds):
        out[folds == fold] = fit(x[folds != fold], y[folds != fold], settings).predict(
            x[folds == fold]
        )
    return out


class Model:
    """Location, scale and residual table of one of the two models."""

    def __init__(
        self,
        x: Array,
        y: Array,
        folds: Array,
        settings: dict[str, Any],
        scale: dict[str, Any] = SCALE,
    ) -> None:
        self.location = fit(x, y, settings)
        predicted = out_of_fold(x, y, folds, settings)
        size = np.log(np.abs(y - predicted) + LEAST_RESIDUAL)
        self.scale = fit(x, size, scale)
        self.table = residual_table(predicted, y, scales(out_of_fold(x, size, folds, scale)))

    def grids(self, x: Array) -> Array:
        return grids(self.location.predict(x), self.table, scales(self.scale.predict(x)))


def scales(logarithms: Array) -> Array:
    return np.exp(np.clip(logarithms, NARROWEST, WIDEST))


def residual_table(predicted: Array, y: Array, scale: Array | float = 1.0) -> dict[str, list[Any]]:
    """Quantiles of (y − predicted) / scale in equal bins of `predicted`; `at` is each bin's
    middle."""
    edges = np.quantile(predicted, np.linspace(0, 1, BINS + 1))[1:-1]
    bins = np.searchsorted(edges, predicted)
    off = (y - predicted) / scale
    table = [np.quantile(off[bins == b], LEVELS) for b in range(BINS)]
    middles = [float(np.median(predicted[bins == b])) for b in range(BINS)]
    return {
        "at": [round(m, 4) for m in middles],
        "residuals": [[round(float(v), 4) for v in row] for row in table],
    }


def grids(predicted: Array, table: dict[str, list[Any]], scale: Array | None = None) -> Array:
    residuals = np.array(table["residuals"])
    columns = [np.interp(predicted, table["at"], residuals[:, i]) for i in range(len(LEVELS))]
    shape = np.stack(columns, axis=1) * (1.0 if scale is None else scale[:, None])
    return np.sort(predicted[:, None] + shape, axis=1)


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


def cheap_matrix(
    views: Sequence[PromptView], sources: Sequence[str], y: Array, folds: Array
) -> Array:
    """Cheap features; each row's means know nothing of its own fold."""
    x = np.empty((len(views), len(NAMES)))
    for fold in np.unique(folds):
        inside, others = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        these, those = ([views[i] for i in part] for part in (inside, others))
        x[inside] = cheap(
            these, *(means([f(v) for v in those], y[others]) for f in (_model, _task))
        )
    x[:, RUNNING] = mixed_running(views, sources, y)
    hide(x, [NAMES.index("model_mean")], 0.10, 1)
    hide(x, [NAMES.index("task_mean")], 0.60, 2)
    return x


def near_matrix(views: Sequence[PromptView], y: Array, folds: Array, vectors: Array) -> Array:
    """Neighbours' features; each row knows nothing of its own fold."""
    nn = np.empty((len(views), len(q.NEIGHBOUR_NAMES)))
    for fold in np.unique(folds):
        inside, others = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        these, those = ([views[i] for i in part] for part in (inside, others))
        nn[inside] = neighbour_matrix((vectors[others], those, y[others]), vectors[inside], these)
    hide(nn, range(nn.shape[1]), 0.35, 3)
    return nn


def projection_of(vectors: Array) -> Array:
    """Their mean, and below it their first principal components."""
    centre = vectors.mean(axis=0)
    _, _, components = np.linalg.svd(vectors - centre, full_matrices=False)
    return np.concatenate([centre[None], components[:COMPONENTS]]).astype(np.float32)


def projected(projection: Array, vectors: Array) -> Array:
    return (vectors - projection[0]) @ projection[1:].T


class Rows:
    """The rows of a file, and the two sides of its split.

    Attributes:
        own: views of the rows that are fitted; `y` their log lengths.
        held: views of the held-out side.
    """

    def __init__(self, path: Path, leave_out: Sequence[int]) -> None:
        rows = read(path)
        group = groups(row_keys(row) for row in rows)
        fold_of = np.array([int.from_bytes(g[-2:], "big") % FOLDS for g in group])
        chosen = [
            i
            for i, row in enumerate(rows)
            if is_fit(group[i])
            and row["license"].startswith(PERMITTED)
            and fold_of[i] not in leave_out
        ]
        held = [i for i, g in enumerate(group) if not is_fit(g)]
        lengths = log_lengths(rows)
        self.fitted = [rows[i] for i in chosen]
        self.own = [view_of(row) for row in self.fitted]
        self.sources = [row["source"] for row in self.fitted]
        self.folds, self.y = fold_of[chosen], lengths[chosen]
        self.held, self.held_y = [view_of(rows[i]) for i in held], lengths[held]
        self._of = np.array([rows[i]["source"] for i in held])
        self._seen = np.array([rows[i]["license"].startswith(PERMITTED) for i in held])
        self.model, self.task = (
            means([f(view) for view in self.own], self.y) for f in (_model, _task)
        )

    def plain(self, width: int) -> Array:
        """Cheap features of the held-out side, with nothing learned and no task told."""
        found = cheap(self.held, self.model, {})
        found[:, RUNNING] = UNKNOWN_RUNNING
        return found[:, :width]

    def judged(self, name: str, grid: Array) -> dict[str, Any]:
        """Figures of forecasts of the held-out side, and of its fitted sources."""
        seen = self._seen
        return {
            name: judge(grid, self.held_y, list(self._of)),
            f"{name}_seen_sources": judge(grid[seen], self.held_y[seen], self._of[seen]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("conversations", type=Path)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--leave-out", type=int, nargs="*", default=[], help="folds of 0 to 4")
    parser.add_argument("--running", action="store_true", help="with running means (see card)")
    parser.add_argument("--only-stage0", action="store_true", help="the rest stays as it is")
    parser.add_argument(
        "--sentence-encoder",
        type=Path,
        default=HERE.parent / "build" / "models" / "int8.onnx",
        help="before fine-tuning, as `make models` leaves it",
    )
    parser.add_argument("--vectors", type=Path, help="keep its vectors here between runs (.npz)")
    parser.add_argument("--served", type=Path, help="likewise, of models/encoder.onnx")
    args = parser.parse_args()
    rows = Rows(args.conversations, args.leave_out)
    width = len(NAMES) if args.running else RUNNING.start
    x = cheap_matrix(rows.own, rows.sources, rows.y, rows.folds)[:, :width]
    stage0 = Model(x, rows.y, rows.folds, STAGE0, STAGE0_SCALE)
    report: dict[str, Any] = {"fit_rows": len(rows.own), "held_rows": len(rows.held)}
    if not args.leave_out:
        report |= rows.judged("stage0", stage0.grids(rows.plain(width)))
    tables: dict[str, Any] = {"features": list(NAMES[:width])}
    tables |= {"neighbour_features": q.NEIGHBOUR_NAMES, "levels": list(QUANTILE_LEVELS)}
    tables |= {"mean": round(float(rows.y.mean()), 4)}
    tables |= {"models": _rounded(rows.model), "tasks": _rounded(rows.task)}
    tables |= {"stage0": stage0.table}
    prepare(args.out)
    if args.only_stage0:
        tables = json.loads((args.out / "tables.json").read_text()) | {"stage0": stage0.table}
    else:
        tables |= write_full(rows, x, args, report)
    write_model("stage0", stage0, report, args.out)
    (args.out / "tables.json").write_text(json.dumps(tables, ensure_ascii=False) + "\n")
    put("tables", "tables.json", args.out)
    (args.out / "fit_keys.bin").write_bytes(pack(rows.fitted))
    put("fit_keys", "fit_keys.bin", args.out)
    print(json.dumps(report, indent=1))


def write_full(
    rows: Rows, x: Array, args: argparse.Namespace, report: dict[str, Any]
) -> dict[str, Any]:
    """Fit, judge and write the full model; its part of the tables.

    Args:
        x: cheap features of the fitted rows.
        report: figures are added to it.
    """
    tokenizer = HERE / "tokenizer.json"
    sentence = Encoder(args.sentence_encoder, tokenizer, max_tokens=64)
    vectors = vectors_of(rows.own, sentence, args.vectors)
    nn = near_matrix(rows.own, rows.y, rows.folds, vectors)
    projection = projection_of(vectors)
    full_x = np.concatenate([x, projected(projection, vectors), nn], axis=1)
    model = Model(full_x, rows.y, rows.folds, FULL)
    short = fit(full_x, (rows.y <= np.log1p(SHORT_TOKENS) + 1e-9).astype(float), SHORT)
    if not args.leave_out:
        served = Encoder(HERE / "encoder.onnx", tokenizer, max_tokens=64)
        count, plain = len(rows.own), rows.plain(x.shape[1])
        new = vectors_of([*rows.own, *rows.held], served, args.served)
        pca = projected(projection, new[count:])
        warm = neighbour_matrix((new[:count], rows.own, rows.y), new[count:], rows.held)
        cold = np.array([q.neighbour_features(NO_NEIGHBOURS)] * len(rows.held))
        for variant, near in (("full_no_history", cold), ("full_fit_rows_as_history", warm)):
            grid = model.grids(np.concatenate([plain, pca, near], axis=1))
            report |= rows.judged(variant, grid)
    write_model("full", model, report, args.out)
    (args.out / "full_short.txt").write_text(saved(short))
    put("full_short", "full_short.txt", args.out)
    np.save(args.out / "projection.npy", projection)
    put("projection", "projection.npy", args.out)
    columns = correction_columns(x, projected(projection, vectors))
    return {"full": model.table, "leaning": columns}


def _model(view: PromptView) -> str:
    return view.model


def _task(view: PromptView) -> str | None:
    return view.task_type


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in sorted(values.items())}


def correction_columns(x: Array, vectors: Array) -> dict[str, list[Any]]:
    """Inputs of gateway/predict/tenant_correction.py and their scale. A feature that never varies
    here counts as it is, from 0."""
    names = NAMES[: NAMES.index("stop")]  # parameters after it are the model's or hardly vary
    columns = x[:, : len(names)]
    deviation = np.nanstd(columns, axis=0)
    varies = deviation > 1e-5
    mean = np.where(varies, np.nanmean(columns, axis=0), 0.0)
    return {
        "names": list(names),
        "mean": [round(float(v), 4) for v in mean],
        "deviation": [round(float(v), 4) for v in np.where(varies, deviation, 1.0)],
        "projected": [round(float(v), 4) for v in vectors.std(axis=0)],
    }


def prepare(out: Path) -> None:
    """Make a folder that can serve: what is not made here comes along."""
    if out != HERE:
        out.mkdir(parents=True, exist_ok=True)
        for path in HERE.iterdir():
            if path.suffix in (".toml", ".onnx", ".npz", ".npy", ".json", ".txt", ".bin"):
                shutil.copy(path, out)


def write_model(name: str, model: Model, report: dict[str, Any], out: Path) -> None:
    """Write a model's two boosters, and its figures into the manifest."""
    figures = {key: report[key] for key in ("fit_rows", "held_rows")} | {
        f"{variant}_{key}": value
        for variant, found in report.items()
        if variant.startswith(name)
        for key, value in found.items()
        if key != "by_source"
    }
    for part, booster in ((name, model.location), (f"{name}_scale", model.scale)):
        (out / f"{part}.txt").write_text(saved(booster))
        put(part, f"{part}.txt", out, **(figures if part == name else {}))


def put(name: str, file: str, out: Path, **figures: Any) -> None:
    """Describe a written file in the manifest."""
    manifest.record(
        name,
        file,
        origin="the Apache-2.0, MIT and CC0 rows of the fit side; sources in MODELCARD.md",
        licence="Apache-2.0",
        command="python models/train_quantiles.py CONVERSATIONS.jsonl.gz",
        folder=out,
        **figures,
    )


def saved(booster: lgb.Booster) -> str:
    """Without the parameters at the end: they name paths of the building machine, and nothing
    reads them."""
    text: str = booster.model_to_string(importance_type="gain")
    return text.split("\nparameters:")[0] + "\n"


if __name__ == "__main__":
    main()
