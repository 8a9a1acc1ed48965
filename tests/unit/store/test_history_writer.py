"""History rows written beside the store's thread, by another connection to the file."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.errors import SettingsError
from gateway.settings.schema import Store as StoreSettings
from gateway.store.history_writer import HistoryWriter
from gateway.store.retention import SLICE_ROWS
from gateway.store.store import Store
from tests.unit.store.rows import WAIT_S, Callback, history, job, load_history

BOUND = 1000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "a.db", StoreSettings(history_rows=BOUND))
    store.start()
    yield store
    assert store.stop(WAIT_S)


@pytest.fixture
def writer(store: Store) -> Iterator[HistoryWriter]:
    writer = HistoryWriter(store.path)
    yield writer
    writer.close()


def test_rows_are_stored_when_their_batch_is_done(store: Store, writer: HistoryWriter) -> None:
    """Each batch is there when its future ends, in order, and the other connection sees it."""
    first, second = writer.put([history(1), history(2)]), writer.put([history(3)])
    assert (second.result(WAIT_S), first.result(WAIT_S)) == (1, 2)
    assert load_history(store, 9) == [history(1), history(2), history(3)]


def test_batch_that_fails_is_stored_in_no_part(store: Store, writer: HistoryWriter) -> None:
    """A row that does not bind fails its batch; the next one is stored."""
    broken = replace(history(2), prompt_tokens=object())  # type: ignore[arg-type]
    with pytest.raises(sqlite3.ProgrammingError):
        writer.put([history(1), broken]).result(WAIT_S)
    assert writer.put([history(3)]).result(WAIT_S) == 1
    assert load_history(store, 9) == [history(3)]


def test_writers_wait_for_each_other(store: Store, writer: HistoryWriter) -> None:
    """While one holds the file the other waits; both commit, whichever comes first."""
    other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    batch, put = writer.put([history(1)]), Callback()
    assert store.put_job(job("a"), put)
    release = threading.Timer(0.2, lambda: other.execute("COMMIT"))
    release.start()
    assert batch.result(WAIT_S) == 1
    assert put.next() is None
    release.join()
    other.close()


def test_both_write_at_once(store: Store, writer: HistoryWriter) -> None:
    """Many commits of both sides, at the same time: none fails."""
    callback, batches = Callback(), []
    for number in range(60):
        batches.append(writer.put([history(number)]))
        assert store.put_job(job(str(number)), callback)
    assert [batch.result(WAIT_S) for batch in batches] == [1] * 60
    assert [callback.next() for _ in range(60)] == [None] * 60


def test_closing_stores_what_was_given(store: Store) -> None:
    """Batches given before the end are committed before it."""
    writer = HistoryWriter(store.path)
    batches = [writer.put([history(number)]) for number in range(20)]
    writer.close()
    assert all(batch.done() for batch in batches)
    assert len(load_history(store, 99)) == 20


@pytest.mark.parametrize("content", [None, b"", b"no database" * 100])
def test_file_that_is_no_store_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Nothing is made or changed: the first connection does that."""
    path = tmp_path / "b.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError):
        HistoryWriter(path)
    assert path.exists() == (content is not None)


def test_rows_told_of_are_counted_and_trimmed(store: Store, writer: HistoryWriter) -> None:
    """The bound on rows holds for those of the other writer, too, without any work of its own."""
    count = BOUND + 2 * SLICE_ROWS
    writer.put([history(number) for number in range(count)]).result(WAIT_S)
    store.history_written(count, 0, "")
    barrier = Callback()
    while store.snapshot().rows > BOUND:
        assert store.put_state("x", b"", barrier)
        assert barrier.next() is None
    assert len(load_history(store, 10 * BOUND)) == store.snapshot().rows == BOUND


def test_rows_never_told_of_are_counted_when_history_is_read(
    store: Store, writer: HistoryWriter
) -> None:
    """A process killed between commit and report leaves rows that its successor reads."""
    writer.put([history(1), history(2)]).result(WAIT_S)
    assert store.snapshot().rows == 0
    assert len(load_history(store, 9)) == store.snapshot().rows == 2


def test_cleared_history_is_counted_anew(store: Store, writer: HistoryWriter) -> None:
    """After a clearing the count is of what is there."""
    writer.put([history(1)]).result(WAIT_S)
    store.history_written(1, 0, "")
    assert store.snapshot().rows == 1
    cleared = Callback()
    assert store.clear_history(cleared)
    assert cleared.next() is None
    assert store.snapshot().rows == 0


def test_failure_of_the_other_writer_is_the_store_s(store: Store) -> None:
    """The state names the reason until rows are stored again; lost rows are counted."""
    store.history_written(0, 3, "database or disk is full")
    shown = store.snapshot()
    assert (shown.ok, shown.reason, shown.lost) == (False, "database or disk is full", 3)
    store.history_written(1, 0, "")
    assert (store.snapshot().ok, store.snapshot().lost) == (True, 3)
