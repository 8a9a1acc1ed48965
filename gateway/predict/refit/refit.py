"""Models fitted anew on the gateway's own history: `sagesched refit --store PATH --out FOLDER`.

Runs in a process of its own, started by due.py, with one thread, at nice 19 or in the idle class.
Each of the two models is judged apart on the newest fifth of the rows, none of which the judged
models were fitted on. It is judged by pinball loss on log length, as served with the running bias
that calibration would have had. Only a better model is taken; where neither is better, nothing
changes.

A version is a folder with a file of corrections and a manifest, which names its hash and the
shipped models that it corrects. It is written aside, synced and renamed to its number; then the
file `current` is replaced. Killed at any moment, it leaves either the old version in force or the
new one, whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from math import isnan
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from gateway.predict.artefacts import Artefacts, Refit, TailRow
from gateway.predict.calibrate import Channel, GroupKeys, group_keys
from gateway.predict.encoder import exported_folder
from gateway.predict.features import NAMES
from gateway.predict.lengths import MEDIAN, ResidualTable, spread
from gateway.predict.process.priority import lower_priority
from gateway.predict.quantiles import NEIGHBOUR_NAMES
from gateway.predict.refit.due import ACCEPTED, CURRENT, KEPT, current_version
from gateway.predict.refit.fitting import (
    Array,
    FitRows,
    correction,
    full_rows,
    out_of_fold,
    predicted,
    residual_table,
    stage0_rows,
)
from gateway.predict.residuals import Residuals
from gateway.types import QUANTILE_LEVELS, HistoryRow

JUDGED_SHARE = 0.2
JUDGED_ROWS = 50  # fewer cannot judge
GAIN = 0.002  # of pinball loss that a change is worth
TAIL_ROWS = 500
VERSIONS = 3  # on disk
NICE = 19
_LEVELS = np.array(QUANTILE_LEVELS)


class Judgement(Struct, frozen=True):
    """One model's pinball loss on the latest rows, log1p tokens; None: not judged."""

    fitted_rows: int
    judged_rows: int
    old: float | None = None
    new: float | None = None

    @property
    def better(self) -> bool:
        """True where the new model was judged and gains at least `GAIN`."""
        return self.new is not None and self.old is not None and self.new < self.old * (1 - GAIN)


class RefitReport(Struct, frozen=True):
    """The result of a refit."""

    stage0: Judgement
    full: Judgement
    version: int  # in force afterwards; 0: as shipped
    accepted: bool
    seconds: float


class _FittedModel(Struct, frozen=True):
    """The model to go on with, and its locations of rows that it was not fitted on."""

    text: str
    table: ResidualTable
    data: FitRows
    location: Array


def _lower_priority() -> None:
    """Give way to the gateway, and to its forecasts, which go into the idle class where they can:
    there, any other class goes before them, whatever its nice value."""
    lower_priority()
    os.nice(NICE)


def run(
    rows: Sequence[HistoryRow],
    models: Path,
    out: Path,
    encoder: str,
    show: Callable[[str], object] = print,
    lower: Callable[[], object] = _lower_priority,
) -> int:
    """The command: lower the priority, refit, print the report as JSON.

    Args:
        rows: of the store, oldest first.
        models: folder of the shipped artefacts.
        out: folder of the versions.
        encoder: `predict.embedding_model_name`.
        lower: lowers the priority of this process.

    Returns:
        the exit status: 0 a new version is in force, 3 the old models stay.
    """
    lower()
    report = refit(rows, Artefacts(models, encoder, 64, exported=exported_folder(out)), out)
    show(json.dumps(msgspec.to_builtins(report)))
    return ACCEPTED if report.accepted else KEPT


def refit(rows: Sequence[HistoryRow], shipped: Artefacts, out: Path) -> RefitReport:
    """Fit and judge both models, and put the better ones in force."""
    began_s = time.monotonic()
    now = shipped.refitted(current_version(out))
    old, tables = now.refit, now.tables
    if old is not None and (old.cheap, old.near) != (len(NAMES), len(NEIGHBOUR_NAMES)):
        old = None  # of an earlier release with fewer features: the shipped models are judged
    if tables is None or shipped.tables is None:
        raise ValueError("there are no shipped models to correct: " + "; ".join(shipped.problems))
    until_s = 0.0 if old is None else old.until_wall_s
    cheap, full = stage0_rows(rows, shipped), full_rows(rows, shipped)
    base0, base1 = shipped.tables.stage0, shipped.tables.full
    current0 = ("" if old is None else old.stage0, base0 if old is None else tables.stage0)
    current1 = ("" if old is None else old.full, base1 if old is None else tables.full)
    judged0 = judge(cheap, current0, base0, Channel.STAGE0, until_s)
    judged1 = judge(full, current1, base1, Channel.FULL, until_s)
    accepted, version = judged0.better or judged1.better, now.version
    if accepted:
        fit0 = _fitted(cheap, base0) if judged0.better else _unchanged(cheap, current0)
        fit1 = _fitted(full, base1) if judged1.better else _unchanged(full, current1)
        new = Refit(
            version=next_version(out),
            tables=msgspec.structs.replace(tables, stage0=fit0.table, full=fit1.table),
            stage0=fit0.text,
            full=fit1.text,
            cheap=len(NAMES),
            near=len(NEIGHBOUR_NAMES),
            tail=_tail(fit0, fit1),
            until_wall_s=max(row.wall_s for row in cheap.rows),
        )
        version = new.version
        write(new, shipped.base, out)
    return RefitReport(judged0, judged1, version, accepted, round(time.monotonic() - began_s, 1))


def judge(
    data: FitRows,
    current: tuple[str, ResidualTable],
    base: ResidualTable,
    channel: Channel,
    until_s: float,
) -> Judgement:
    """Judge the model in use and a new one on the latest rows; the new one is fitted on those
    before.

    Args:
        current: the correction in use ("" for none) and its residual table.
        base: the shipped residual table.
        until_s: wall time up to which the model in use was fitted on rows.
    """
    latest = np.zeros(len(data), bool)
    latest[int(len(data) * (1 - JUDGED_SHARE)) :] = True
    latest &= np.array([row.wall_s > until_s for row in data.rows], bool)
    latest &= ~np.array([row.censored for row in data.rows], bool)
    if latest.sum() < JUDGED_ROWS:
        return Judgement(len(data), int(latest.sum()))
    first = int(np.flatnonzero(latest)[0])
    before, after = data.take(np.arange(first)), data.take(latest)
    if len(before) < JUDGED_ROWS:
        return Judgement(len(before), len(after))
    text, table = current
    old = after.prior + (predicted(text, after.x) if text else 0.0)
    new_table = residual_table(base, out_of_fold(before), before.scale, before.y)
    new = after.prior + predicted(correction(before), after.x)
    return Judgement(
        fitted_rows=len(before),
        judged_rows=len(after),
        old=_loss(after, old, table, channel),
        new=_loss(after, new, new_table, channel),
    )


def write(new: Refit, base: dict[str, str], out: Path) -> Path:
    """Write a version and put it in force; its folder."""
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in out.glob(".new-*"):  # of refits that were killed
        shutil.rmtree(left, ignore_errors=True)
    aside = out / f".new-{os.getpid()}"
    aside.mkdir()
    data = msgspec.json.encode(new)
    _put(aside / "corrections.json", data)
    hashes = ", ".join(f'{name} = "{sha}"' for name, sha in sorted(base.items()))
    manifest = (
        f'[corrections]\nfile = "corrections.json"\n'
        f'sha256 = "{hashlib.sha256(data).hexdigest()}"\n'
        f"base = {{ {hashes} }}\nuntil_wall_s = {new.until_wall_s}\n"
    )
    _put(aside / "manifest.toml", manifest.encode())
    folder = out / str(new.version)
    aside.rename(folder)
    _sync(out)
    pointer = out / f".{CURRENT}-{os.getpid()}"
    _put(pointer, f"{new.version}\n".encode())
    pointer.replace(out / CURRENT)
    _sync(out)
    for path in sorted(_versions(out), key=lambda p: int(p.name))[:-VERSIONS]:
        shutil.rmtree(path, ignore_errors=True)
    return folder


def _loss(data: FitRows, location: Array, table: ResidualTable, channel: Channel) -> float:
    """Pinball loss as served, with a running bias by group that is learned on the way."""
    running, total = Residuals(), 0.0
    heads = [None if isnan(grid[MEDIAN]) else tuple(grid) for grid in data.head.tolist()]
    columns = (location.tolist(), data.scale.tolist(), data.y.tolist())
    for row, head, centre, scale, y in zip(data.rows, heads, *columns, strict=True):
        keys = _keys(row)
        grid = np.array(spread(centre, scale, table, head)) + running.mean(keys, channel)
        error = y - grid
        total += float(np.maximum(_LEVELS * error, (_LEVELS - 1) * error).mean())
        running.learn_residual(keys, channel, y - centre)
    return round(total / len(data), 5)


def _fitted(data: FitRows, base: ResidualTable) -> _FittedModel:
    location = out_of_fold(data)
    table = residual_table(base, location, data.scale, data.y)
    return _FittedModel(correction(data), table, data, location)


def _unchanged(data: FitRows, current: tuple[str, ResidualTable]) -> _FittedModel:
    text, table = current
    more = predicted(text, data.x) if text and len(data) else 0.0
    return _FittedModel(text, table, data, data.prior + more)


def _tail(stage0: _FittedModel, full: _FittedModel) -> tuple[TailRow, ...]:
    """Residuals of the last rows, with which the calibration begins."""
    of_full = {
        id(row): residual
        for row, residual in zip(
            full.data.rows, (full.data.y - full.location).tolist(), strict=True
        )
    }
    pairs = zip(stage0.data.rows, (stage0.data.y - stage0.location).tolist(), strict=True)
    found = [
        TailRow(row.model, row.tenant, row.template, residual, of_full.get(id(row)))
        for row, residual in pairs
        if not row.censored
    ]
    return tuple(found[-TAIL_ROWS:])


def _keys(row: HistoryRow) -> GroupKeys:
    return group_keys(row.model, row.tenant, row.template)


def _versions(out: Path) -> list[Path]:
    return [path for path in out.iterdir() if path.name.isdigit()] if out.is_dir() else []


def next_version(out: Path) -> int:
    """A number that no folder has, not even one left by a killed refit."""
    return max((int(path.name) for path in _versions(out)), default=0) + 1


def _put(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
