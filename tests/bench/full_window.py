"""A store whose rows fill the predictor's window and make work for a refit.

The rows' vectors point anywhere, so they are near no prompt: each search costs what it costs in
a full window, and no forecast rests on what it finds. Their lengths follow a rule the shipped
models do not know (tests/unit/predict/rows.py), so that a refit has something to fit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from gateway.predict.artefacts import Artefacts
from gateway.settings.schema import Predict, Store
from gateway.shipped import shipped
from gateway.store.store import Store as Rows
from gateway.types import HistoryRow
from tests.bench.cores import Unfit
from tests.kit.gateway import GatewayProcess
from tests.unit.predict.rows import ruled_rows

READY_S = 120.0
SLICE = 5000  # rows on their way to the disk


def artefacts() -> Artefacts:
    """As shipped, loaded as the gateway loads them. Raises Unfit where a part is missing: rows
    without the encoder's name would fill no window."""
    settings = Predict()
    whole = Artefacts(shipped("models"), settings.embedding_model_name, settings.max_encoder_tokens)
    if whole.problems:
        raise Unfit(f"the models are not whole: {'; '.join(whole.problems)}")
    return whole


def rows(count: int, whole: Artefacts) -> list[HistoryRow]:
    """The same `count` each time, oldest first."""
    return ruled_rows(whole, count)


def stored(path: Path, history: Sequence[HistoryRow]) -> Path:
    """A closed store with these rows."""
    store = Rows(path, Store())
    store.start()
    for at in range(0, len(history), SLICE):
        for row in history[at : at + SLICE]:
            assert store.append_history(row)
        list(store.history_pages(1))  # waits for what is queued before it
    assert store.stop(60.0)
    return path


def wait_full(gateway: GatewayProcess) -> None:
    """Wait until the predictor is ready and its window full. Raises AssertionError."""
    until, wanted, seen = time.monotonic() + READY_S, Predict().history_window_size, {}
    while time.monotonic() < until:
        stats = httpx.get(gateway.url("/stats"), headers=gateway.admin_headers).json()
        seen = stats["predictor"]
        if seen["ready"] and seen["index_rows"] >= wanted:
            return
        time.sleep(0.2)
    raise AssertionError(f"the predictor is not ready with a full window: {seen}")
