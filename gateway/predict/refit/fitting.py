"""The arithmetic of a refit: from history rows to boosters that correct the shipped ones.

The shipped model is the prior. LightGBM starts from its predictions (`init_score`), so only the
difference of the gateway's own answers is fitted. Few rows make few and small trees: rounds and
leaf size go with their number, and leaves are shrunk as if `SHRINK` rows had agreed with the
shipped model. Residual quantiles are taken out of fold and blended with the shipped ones in the
same way. The scale booster stays as shipped. The head's grid is stored with a row, since the text
to ask the head again is not, and is part of the prior.

A private tenant's rows are not fitted on, because trees could reveal them. A censored row is
fitted on only where it is longer than forecast, and then as half as long again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log1p
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gateway.predict.artefacts import Artefacts, Texts
from gateway.predict.encoder import unpack
from gateway.predict.features import NAMES
from gateway.predict.lengths import HEAD_SHARE, MEDIAN, NARROWEST, WIDEST, ResidualTable
from gateway.predict.quantiles import NEIGHBOUR_NAMES
from gateway.types import QUANTILE_LEVELS, HistoryRow

Array = npt.NDArray[np.float64]

FOLDS = 4
SHRINK = 20.0
BIN_ROWS, BINS = 150, 12
TABLE_PRIOR = 100.0  # rows' worth of the shipped residual table, in each bin
CENSORED_FACTOR = 1.5
LEARNING_RATE = 0.05
STAGE0_TREES, FULL_TREES = 100, 250  # most trees of a correction; stage 0 runs on the event loop
TREES = {
    "objective": "huber",
    "alpha": 1.5,
    "boost_from_average": False,
    "num_threads": 1,
    "verbosity": -1,
    "seed": 7,
    "deterministic": True,
    "force_row_wise": True,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "num_leaves": 15,
    "lambda_l2": SHRINK,
}


class FitRows(Struct, frozen=True):
    """Rows to fit on, oldest first, and the columns that one of the two models reads of them."""

    rows: list[HistoryRow]
    x: Array
    prior: Array  # the shipped model's location, the head averaged in
    scale: Array
    head: Array  # the head's grids, NaN where there was none
    y: Array  # log1p tokens
    folds: npt.NDArray[np.int64]  # equal for equal prompts
    most_trees: int  # of a correction

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: npt.NDArray[Any]) -> FitRows:
        """Some of the rows, by flags or places."""
        at = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        rows = [self.rows[i] for i in at.tolist()]
        x, prior, scale, head = self.x[at], self.prior[at], self.scale[at], self.head[at]
        y, folds = self.y[at], self.folds[at]
        return FitRows(rows, x, prior, scale, head, y, folds, self.most_trees)


def stage0_rows(rows: Sequence[HistoryRow], artefacts: Artefacts) -> FitRows:
    """The rows that stage 0 may be fitted on, with its columns."""
    texts, tables = artefacts.texts[0], artefacts.tables
    usable = [row for row in rows if row.features and row.shared and row.output_tokens > 0]
    if texts is None or tables is None or not usable:
        return _no_rows(len(NAMES))
    x = _matrix([row.features for row in usable], len(NAMES))
    head = np.full((len(usable), len(QUANTILE_LEVELS)), np.nan)
    return _fit_rows(usable, x, texts, x[:, : tables.width], head, STAGE0_TREES)


def full_rows(rows: Sequence[HistoryRow], artefacts: Artefacts) -> FitRows:
    """The rows that the full model may be fitted on, with its columns: those with a vector of
    the encoder in use."""
    texts, tables, projection = artefacts.texts[1], artefacts.tables, artefacts.projection
    parts = 0 if projection is None else len(projection) - 1
    width = len(NAMES) + parts + len(NEIGHBOUR_NAMES)
    if texts is None or tables is None or projection is None:
        return _no_rows(width)
    usable, vectors = [], []
    for row in rows:
        vector = unpack(row.vector, projection.shape[1])
        complete = row.features and row.neighbours and row.shared and row.output_tokens > 0
        if complete and vector is not None and row.encoder == artefacts.encoder_name:
            usable.append(row)
            vectors.append(vector)
    if not usable:
        return _no_rows(width)
    cheap = _matrix([row.features for row in usable], len(NAMES))
    projected = (np.array(vectors) - projection[0]) @ projection[1:].T
    near_and_head = _matrix(
        [row.neighbours for row in usable], len(NEIGHBOUR_NAMES) + len(QUANTILE_LEVELS)
    )
    near, head = np.split(near_and_head, [len(NEIGHBOUR_NAMES)], axis=1)
    if artefacts.head is None:
        head = np.full_like(head, np.nan)
    read = len(tables.neighbour_features)
    shipped = np.concatenate([cheap[:, : tables.width], projected, near[:, :read]], axis=1)
    whole = np.concatenate([cheap, projected, near], axis=1)
    return _fit_rows(usable, whole, texts, shipped, head, FULL_TREES)


def predicted(text: str, x: Array) -> Array:
    """The output of a saved booster for each row."""
    import lightgbm

    return np.asarray(lightgbm.Booster(model_str=text).predict(x, num_threads=1), np.float64)


def correction(data: FitRows) -> str:
    """Fit trees to be added to the prior; as LightGBM saves them. Fewer trees learn faster."""
    import lightgbm

    count = len(data)
    wanted = int(min(FULL_TREES, 30 + count / 20))
    rounds = min(wanted, data.most_trees)
    settings = TREES | {
        "min_data_in_leaf": max(10, min(50, count // 40)),
        "learning_rate": LEARNING_RATE * wanted / rounds,
    }
    rows = lightgbm.Dataset(data.x, data.y, init_score=data.prior)
    booster = lightgbm.train(settings, rows, num_boost_round=rounds)
    text: str = booster.model_to_string(importance_type="gain")
    return text.split("\nparameters:")[0] + "\n"  # the rest is not read


def out_of_fold(data: FitRows) -> Array:
    """The location of each row by corrections that were not fitted on its prompt."""
    found = data.prior.copy()
    for fold in range(FOLDS):
        inside = data.folds == fold
        if inside.any() and not inside.all():
            found[inside] += predicted(correction(data.take(~inside)), data.x[inside])
    return found


def residual_table(
    shipped: ResidualTable, location: Array, scale: Array, y: Array
) -> ResidualTable:
    """Quantiles of (y − location) / scale by location, blended with the shipped table's the more
    the fewer the rows."""
    bins = int(min(BINS, len(y) // BIN_ROWS))
    if bins < 1:
        return shipped
    edges = np.quantile(location, np.linspace(0, 1, bins + 1))[1:-1]
    at = np.searchsorted(edges, location)
    middles: list[float] = []
    table: list[list[float]] = []
    for i in range(bins):
        inside = at == i
        middle = float(np.median(location[inside]))
        if middles and middle <= middles[-1]:
            continue  # ties: one location holds several bins' rows
        own = np.quantile(((y - location) / scale)[inside], QUANTILE_LEVELS)
        prior = np.array(shipped.around(middle)) - middle
        count = float(inside.sum())
        table.append(((count * own + TABLE_PRIOR * prior) / (count + TABLE_PRIOR)).tolist())
        middles.append(middle)
    return ResidualTable(middles, table)


def _fit_rows(
    rows: list[HistoryRow], x: Array, texts: Texts, read: Array, head: Array, most_trees: int
) -> FitRows:
    """Rows with their targets, without those of no use.

    Args:
        x: columns of a correction.
        read: columns of the shipped boosters.
    """
    prior = predicted(texts.location, read)
    scale = np.exp(np.clip(predicted(texts.scale, read), NARROWEST, WIDEST))
    middle = head[:, MEDIAN]
    prior = np.where(np.isnan(middle), prior, prior + HEAD_SHARE * (middle - prior))
    lengths = np.array([log1p(row.output_tokens) for row in rows])
    censored = np.array([row.censored for row in rows])
    usable = np.array([row.success for row in rows]) & ~censored | censored & (lengths > prior)
    y = np.where(censored, np.log1p(CENSORED_FACTOR * np.expm1(lengths)), lengths)
    folds = np.array([int.from_bytes(row.prompt_key[-2:] or b"\0", "big") % FOLDS for row in rows])
    return FitRows(rows, x, prior, scale, head, y, folds, most_trees).take(usable)


def _matrix(packed: Sequence[bytes], width: int) -> Array:
    """Rows of features; NaN for features that were added after a row was stored."""
    matrix = np.full((len(packed), width), np.nan)
    for i, values in enumerate(packed):
        row = np.frombuffer(values[: 2 * width], "<f2")
        matrix[i, : len(row)] = row
    return matrix


def _no_rows(width: int) -> FitRows:
    empty = np.empty(0)
    head = np.empty((0, len(QUANTILE_LEVELS)))
    return FitRows([], np.empty((0, width)), empty, empty, head, empty, np.empty(0, np.int64), 0)
