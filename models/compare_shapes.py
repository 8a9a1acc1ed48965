"""Compares forms of a distribution by loss and cost, on one fold of five that neither the boosters
nor the fine-tuned network have seen; the held-out side is not looked at.

    .venv-models/bin/python models/compare_shapes.py CONVERSATIONS.jsonl.gz

Three forms, each with neighbours among the other folds and without: a location and a table of
residuals; location, scale and table, as shipped; seven quantile boosters. Then the head in
several shares, for all rows and for those in Chinese.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import lightgbm as lgb
import numpy as np
from train_quantiles import (
    FOLDS,
    FULL,
    LEVELS,
    Model,
    cheap_matrix,
    fit,
    grids,
    judge,
    near_matrix,
    out_of_fold,
    projected,
    projection_of,
    residual_table,
)
from training_rows import (
    HERE,
    PERMITTED,
    RUNNING,
    Array,
    cheap,
    log_lengths,
    means,
    neighbour_matrix,
    read,
    vectors_of,
    view_of,
)

from gateway.predict.encoder import Encoder
from gateway.predict.head import Head
from gateway.predict.lengths import Booster, Columns
from gateway.predict.quantiles import NEIGHBOUR_NAMES
from gateway.workbench.split import groups, is_fit, row_keys

UNSEEN = 0  # the fold
SEVEN = FULL | {
    "objective": "quantile",
    "learning_rate": 0.04,
    "rounds": 350,
    "min_data_in_leaf": 40,
}
SHARES = (0.0, 0.2, 0.3, 0.35, 0.4, 0.5, 0.6)


def microseconds(boosters: list[lgb.Booster], x: Array) -> float:
    """Microseconds of one forecast, as the gateway runs the boosters."""
    columns = Columns(x.shape[1])
    loaded = [
        Booster(b.model_to_string().split("\nparameters:")[0] + "\n", columns) for b in boosters
    ]
    rows = [row.tolist() for row in x[:500]]
    began = time.perf_counter()
    for row in rows:
        columns.fill(row)
        for booster in loaded:
            booster.predict()
    return (time.perf_counter() - began) / len(rows) * 1e6


def mixed(own: Array, head: Array, share: float) -> Array:
    """The average of two grids, as gateway/predict/lengths.py makes it."""
    return np.sort((1 - share) * own + share * head, axis=1)


def show(name: str, grid: Array, y: Array, sources: list[str], more: str = "") -> None:
    found = judge(grid, y, sources)
    inside = found["kendall_tau_mean_source"]
    print(
        f"{name:40} tau {found['kendall_tau']:.4f} / {inside:.4f}  pinball {found['pinball']:.4f}"
        f"  p90 {found['coverage_p90']:.3f} {more}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("conversations", type=Path)
    parser.add_argument(
        "--sentence-encoder", type=Path, default=HERE.parent / "build/models/int8.onnx"
    )
    parser.add_argument("--vectors", type=Path, help="as for train_quantiles.py")
    parser.add_argument("--served", type=Path, help="likewise")
    args = parser.parse_args()
    every = read(args.conversations)
    keys = groups(row_keys(row) for row in every)
    chosen = [
        i for i, row in enumerate(every) if is_fit(keys[i]) and row["license"].startswith(PERMITTED)
    ]
    rows = [every[i] for i in chosen]
    folds = np.array([int.from_bytes(keys[i][-2:], "big") % FOLDS for i in chosen])
    views, y = [view_of(row) for row in rows], log_lengths(rows)
    a, b = np.flatnonzero(folds != UNSEEN), np.flatnonzero(folds == UNSEEN)
    views_a, views_b = ([views[i] for i in part] for part in (a, b))
    sources = [rows[i]["source"] for i in b]
    tokenizer = HERE / "tokenizer.json"
    tuned = Encoder(HERE / "encoder.onnx", tokenizer, max_tokens=64)
    old = vectors_of(views_a, Encoder(args.sentence_encoder, tokenizer), args.vectors)
    new = vectors_of(views, tuned, args.served)
    x = cheap_matrix(views_a, [rows[i]["source"] for i in a], y[a], folds[a])
    nn = near_matrix(views_a, y[a], folds[a], old)
    projection = projection_of(old)
    x = np.concatenate([x[:, : RUNNING.start], projected(projection, old), nn], axis=1)

    known = means([view.model for view in views_a], y[a])
    cheap_b = cheap(views_b, known, {})
    head = Head.load(HERE / "head.npz")
    head_grids = np.array(
        [
            head.grid(tuned.encode(view.text, None, view.system).code, view.model, row)
            for view, row in zip(views_b, cheap_b.tolist(), strict=True)
        ]
    )
    warm = neighbour_matrix((new[a], views_a, y[a]), new[b], views_b)
    cold = np.full((len(b), len(NEIGHBOUR_NAMES)), np.nan)
    plain, pca = cheap_b[:, : RUNNING.start], projected(projection, new[b])

    shipped = Model(x, y[a], folds[a], FULL)
    table = residual_table(out_of_fold(x, y[a], folds[a], FULL), y[a])
    seven = [fit(x, y[a], SEVEN | {"alpha": float(level)}) for level in LEVELS]
    chinese = np.array([rows[i]["lang"] == "zh" for i in b])
    for history, near in (("neighbours", warm), ("no history", cold)):
        m = np.concatenate([plain, pca, near], axis=1)
        forms = {
            "location + table": (grids(shipped.location.predict(m), table), [shipped.location]),
            "location + scale + table": (shipped.grids(m), [shipped.location, shipped.scale]),
            "seven quantile boosters": (
                np.sort(np.stack([booster.predict(m) for booster in seven], axis=1), axis=1),
                seven,
            ),
        }
        for name, (grid, boosters) in forms.items():
            show(f"{name}, {history}", grid, y[b], sources, f"{microseconds(boosters, m):.0f} us")
        own = forms["location + scale + table"][0]
        for share in SHARES:
            grid = mixed(own, head_grids, share)
            show(f"  and {share} of the head", grid, y[b], sources)
            zh = [source for source, yes in zip(sources, chinese, strict=True) if yes]
            show("    in Chinese", grid[chinese], y[b][chinese], zh)
    show("the head alone", head_grids, y[b], sources)
    print(f"{len(a)} rows fitted, {len(b)} judged")


if __name__ == "__main__":
    main()
