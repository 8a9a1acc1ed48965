"""The control plane: rows kept for a client that waits, and answers of threads."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from gateway.api.control import RowKeeper, from_thread
from gateway.errors import Unavailable
from gateway.settings.schema import Store as StoreSettings
from gateway.store.store import Store
from gateway.types import HistoryRow

ROW = HistoryRow(
    wall_s=1.0, tenant="t", model="m", task_type="", prompt_key=b"k" * 16, encoder="e",
    vector=b"", prompt_tokens=1, output_tokens=2, max_tokens=0, censored=False, success=True,
)  # fmt: skip


def test_row_keeper_stores_nothing_once_its_client_stops_waiting(tmp_path: Path) -> None:
    """A row is stored while its client waits, and not after its 503: a retry would make two."""
    store = Store(tmp_path / "s.db", StoreSettings())
    store.start()
    stored: SimpleQueue[Exception | None] = SimpleQueue()
    keeper = RowKeeper(store)
    assert keeper.keep(ROW, stored.put)
    assert stored.get(timeout=10) is None
    keeper.waiting = False
    assert not keeper.keep(ROW, stored.put)
    assert sum(map(len, store.history_pages(10))) == 1
    assert store.stop()


# -- from_thread -------------------------------------------------------------------------------


def answer(value: Any, *, accepted: bool = True) -> Any:
    """The result of `from_thread` when the thread answers `value`."""

    def ask(done: Callable[[Any], None]) -> bool:
        if accepted:
            done(value)
        return accepted

    return asyncio.run(from_thread(ask, "Too busy."))


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("database or disk is full"),
        sqlite3.DatabaseError("database disk image is malformed"),
    ],
)
def test_from_thread_makes_a_failing_store_unavailable(error: Exception) -> None:
    """The 503 carries the store's reason and a time to try again: it is not the request's fault."""
    with pytest.raises(Unavailable) as caught:
        answer(error)
    assert (caught.value.status, caught.value.code) == (503, "store_failing")
    assert str(error) in caught.value.message
    assert caught.value.retry_after_s


@pytest.mark.parametrize("error", [sqlite3.IntegrityError("UNIQUE"), ValueError("x")])
def test_from_thread_raises_faults_of_the_gateway_as_they_are(error: Exception) -> None:
    """A faulty statement or value is a bug, and is not reported as a store that fails."""
    with pytest.raises(type(error)) as caught:
        answer(error)
    assert caught.value is error


def test_from_thread_is_busy_where_the_thread_takes_no_work() -> None:
    """A full queue is reported at once; a value is returned as it is."""
    assert answer(5) == 5
    with pytest.raises(Unavailable) as caught:
        answer(5, accepted=False)
    assert (caught.value.code, caught.value.message) == ("busy", "Too busy.")
