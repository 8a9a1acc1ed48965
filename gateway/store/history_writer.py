"""History written by the process that makes the rows, beside the store's thread of the gateway.

The predictor's process has a connection of its own, so a row does not pass through the event
loop. SQLite lets one of two writers into the file at a time; the other waits for at most
`BUSY_TIMEOUT_MS`. Each batch is one transaction: killed at any moment, it is stored whole or not
at all.

The thread is begun before its process lowers its priority, and keeps the normal one: whoever holds
the file's lock must not wait for the processor behind those who wait for the lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from gateway.store import rows
from gateway.store.database import second_writer
from gateway.types import HistoryRow


class HistoryWriter:
    """A thread that commits batches of history rows.

    Args:
        path: of a store that is open already.

    Raises:
        SettingsError: there is no store, or one of another schema.
    """

    def __init__(self, path: Path) -> None:
        self._thread = ThreadPoolExecutor(1, "sagesched-history")
        try:
            self._connection = self._thread.submit(second_writer, path).result()
        except BaseException:
            self._thread.shutdown()
            raise

    def put(self, batch: Sequence[HistoryRow]) -> Future[int]:
        """Commit rows, after the batches given before; their number. The future's error, of
        SQLite, means that none of them is stored."""
        return self._thread.submit(self._commit, batch)

    def close(self) -> None:
        """Commit what was given, and close the file. Blocks."""
        self._thread.submit(self._connection.close)
        self._thread.shutdown()

    def _commit(self, batch: Sequence[HistoryRow]) -> int:
        connection, values = self._connection, [rows.to_sql(row) for row in batch]
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(rows.INSERT_HISTORY, values)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # some errors have rolled back already
                connection.execute("ROLLBACK")
            raise
        return len(batch)
