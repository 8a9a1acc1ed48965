"""Interface of the store to the rest of the gateway.

Methods queue work for the writer thread and return False if its queue is full; only those whose
docstring says so block. `done` is called on the writer thread after the commit, with None or the
error; a caller on the loop uses `loop.call_soon_threadsafe`.

History of a serving gateway is written by the predictor's process (history_writer.py), which tells
how many rows it was: `history_written`. What is appended here (imported history, observed requests)
may fill `queue_items` places of the queue. Submitted jobs and saved state may use as many again, so
such rows are lost before results that a client will ask for.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gateway.errors import NotFound, Unavailable
from gateway.settings.schema import Store as StoreSettings
from gateway.snapshots import StoreSnapshot
from gateway.store import newest_rows, rows
from gateway.store.database import read_only
from gateway.store.retention import SLICE_ROWS, Retention
from gateway.store.rows import JobRow, Status
from gateway.store.writer import Done, Writer
from gateway.types import HistoryRow, ObservedRow

log = logging.getLogger("sagesched.store")

OBSERVED_SLICE = 256  # rows between two trims
TOMBSTONE_S = 7 * 86_400.0  # how long an expired job's id is kept
ANSWER_TIMEOUT_S = 60.0  # for methods that block

Committed = Callable[[Exception | None], None]
T = TypeVar("T")


class Store:
    """History, submitted jobs and saved state in one SQLite file."""

    def __init__(self, path: Path, settings: StoreSettings) -> None:
        self.path = Path(path)
        self._settings = settings
        self._retention = Retention()
        self._expire_wall_s: float | None = None
        self._observed = 0  # rows since the start; used by the writer thread
        # Rows that another process has committed: told by the loop, and counted by the thread.
        self._told = self._counted = self._lost = 0
        self._reason = ""  # of that process's last commit, where it failed
        self._writer = Writer(self.path, opened=self._count, chore=self._chore)

    def start(self) -> None:
        """Opens, checks and migrates the file. Blocks. Raises SettingsError."""
        self._writer.start()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Writes what is queued and closes. Blocks for at most `timeout_s`; False if that was
        too short."""
        return self._writer.stop(timeout_s)

    def apply(self, settings: StoreSettings) -> None:
        """Applies new bounds and TTL at once. A new `path` needs a restart."""
        self._settings = settings

    def snapshot(self) -> StoreSnapshot:
        """State of the store, for display and metrics."""
        writer = self._writer
        reason = writer.reason or self._reason
        if not reason and not writer.alive():
            reason = "the writer thread has ended"
        return StoreSnapshot(
            ok=not reason,
            queue=writer.depth(),
            committed=writer.committed,
            lost=writer.lost + self._lost,
            last_commit_s=writer.last_commit_s,
            rows=self._retention.rows + self._told - self._counted,
            errors=writer.errors,
            reason=reason,
        )

    # — history —

    def append_history(self, row: HistoryRow, done: Committed | None = None) -> bool:
        """Appends a row; False, and the row is counted as lost, if the queue is full."""
        values = rows.to_sql(row)

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(rows.INSERT_HISTORY, values)
            self._retention.rows += 1

        return self._writer.offer(insert, _after(done), self._settings.queue_items)

    def history_written(self, stored: int, lost: int, reason: str) -> None:
        """Take note of rows that another process wrote (history_writer.py). On the event loop.

        Args:
            stored, lost: rows since the last call.
            reason: why the last commit failed; "" where it did not.
        """
        self._told += stored
        self._lost += lost
        if reason and reason != self._reason:
            log.error("history is not stored", extra={"reason": reason, "items": lost})
        mended = stored > 0 and bool(self._writer.reason)
        self._reason = reason
        if mended or self._told - self._counted >= SLICE_ROWS:
            self._offer(lambda _: None, None)  # the thread tries again, or trims

    def history_pages(self, limit: int, encoder: str | None = None) -> Iterator[list[HistoryRow]]:
        """At most `limit` rows, of one encoder or of all, oldest first; see newest_rows.py.

        Blocks for each page; commits go on between pages. The next page is read ahead. Rows that
        another process stored before it was killed, and never told of, are counted.
        """
        self._ask(self._count)
        newest = newest_rows.Newest(limit, encoder)
        while self._ask(newest.step):
            pass
        coming: deque[Future[list[HistoryRow]]] = deque()
        for part in newest.pages():
            coming.append(self._begin(partial(newest_rows.read, seqs=part)))
            if len(coming) > 1:
                yield coming.popleft().result(ANSWER_TIMEOUT_S)
        for last in coming:
            yield last.result(ANSWER_TIMEOUT_S)

    def clear_history(self, done: Committed | None = None) -> bool:
        """Removes all history."""

        def clear(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM history")
            self._count(connection)

        return self._offer(clear, _after(done))

    # — observed requests —

    def append_observed(self, row: ObservedRow) -> bool:
        """Appends a row, of which the newest `observed_rows` are kept.

        False, and the row is counted as lost, if the queue is full.
        """
        values = rows.to_sql(row)

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(rows.INSERT_OBSERVED, values)
            self._observed += 1
            if self._observed % OBSERVED_SLICE == 0:
                connection.execute(rows.TRIM_OBSERVED, (self._settings.observed_rows,))

        return self._writer.offer(insert, None, self._settings.queue_items)

    # — submitted jobs —

    def put_job(self, row: JobRow, done: Committed | None = None) -> bool:
        """Inserts a new job; `done` gets sqlite3.IntegrityError if the id is taken."""
        values = rows.to_sql(row)

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(rows.INSERT_JOB, values)

        return self._offer(insert, _after(done))

    def update_job(
        self,
        id: str,
        status: Status,
        result: bytes | None = None,
        error: bytes | None = None,
        ended_wall_s: float | None = None,
        done: Committed | None = None,
        *,
        started_wall_s: float | None = None,
        forecast: bytes | None = None,
    ) -> bool:
        """Updates the members that are not None.

        `done` gets NotFound if the job is unknown or has already ended.
        """
        values = (status, result, error, ended_wall_s, started_wall_s, forecast, id)

        def update(connection: sqlite3.Connection) -> None:
            if connection.execute(rows.UPDATE_JOB, values).rowcount == 0:
                raise NotFound(f"no unfinished job {id}")

        return self._offer(update, _after(done))

    def get_job(self, id: str, done: Callable[[JobRow | Exception | None], None]) -> bool:
        """Reads a job; `done` gets the row, None where there is none, or the error."""

        def select(connection: sqlite3.Connection) -> JobRow | None:
            found = connection.execute(rows.SELECT_JOB, (id,)).fetchone()
            return None if found is None else rows.job_row(found)

        def answer(row: JobRow | None, error: Exception | None) -> None:
            done(row if error is None else error)

        return self._offer(select, answer)

    def load_unfinished(self) -> list[JobRow]:
        """Jobs that were queued or running when the last process ended, oldest first. Blocks."""

        def select(connection: sqlite3.Connection) -> list[JobRow]:
            return [rows.job_row(values) for values in connection.execute(rows.SELECT_UNFINISHED)]

        return self._ask(select)

    def expire_jobs(self, now_wall_s: float, done: Committed | None = None) -> bool:
        """Empties jobs that ended `job_ttl_s` ago, and removes them TOMBSTONE_S later.

        In slices on the writer thread; `done` is called after the first.
        """

        def expire(connection: sqlite3.Connection) -> None:
            self._expire_wall_s = now_wall_s
            self._expire(connection)

        return self._offer(expire, _after(done))

    # — saved state —

    def put_state(self, name: str, value: bytes, done: Committed | None = None) -> bool:
        """Saves `value` under `name`, replacing an earlier one."""

        def put(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))

        return self._offer(put, _after(done))

    def get_state(self, name: str) -> bytes | None:
        """The value saved under `name`; None where there is none. Blocks."""

        def get(connection: sqlite3.Connection) -> bytes | None:
            found = connection.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
            return None if found is None else bytes(found[0])

        return self._ask(get)

    def prompt_secret(self) -> bytes:
        """The key of the prompt hashes; made once per store, so that its rows go on matching.

        Blocks.
        """
        key = self.get_state("prompt_secret")
        if key is None:
            key = os.urandom(32)
            self.put_state("prompt_secret", key)
        return key

    # — internal —

    def _offer(self, call: Callable[[sqlite3.Connection], Any], done: Done | None) -> bool:
        return self._writer.offer(call, done, 2 * self._settings.queue_items)

    def _ask(self, call: Callable[[sqlite3.Connection], T]) -> T:
        return self._begin(call).result(ANSWER_TIMEOUT_S)

    def _begin(self, call: Callable[[sqlite3.Connection], T]) -> Future[T]:
        answer: Future[T] = Future()

        def done(value: T, error: Exception | None) -> None:
            if error is None:
                answer.set_result(value)
            else:
                answer.set_exception(error)

        if not self._offer(call, done):
            raise Unavailable("the store takes no work now")
        return answer

    def _count(self, connection: sqlite3.Connection) -> None:
        """Counts the rows, those of another process included."""
        self._counted = self._told
        self._retention.count(connection)

    def _chore(self, connection: sqlite3.Connection) -> bool:
        """Does a slice of trimming and expiring on the writer thread; True while there is more."""
        told = self._told
        self._retention.rows += told - self._counted
        self._counted = told
        trimming = self._retention.slice(connection, self._settings, time.time())
        expiring = self._expire(connection)
        return trimming or expiring

    def _expire(self, connection: sqlite3.Connection) -> bool:
        if self._expire_wall_s is None:
            return False
        ended_before = self._expire_wall_s - self._settings.job_ttl_s
        buried = connection.execute(rows.BURY_JOBS, (ended_before - TOMBSTONE_S, SLICE_ROWS))
        emptied = connection.execute(rows.EXPIRE_JOBS, (ended_before, SLICE_ROWS))
        if max(buried.rowcount, emptied.rowcount) < SLICE_ROWS:
            self._expire_wall_s = None
        return self._expire_wall_s is not None


def read_history(path: Path, limit: int) -> list[HistoryRow]:
    """The newest history of each tenant, at most `limit` rows, oldest first.

    For refits and evaluation, while another process has the store open: takes no lock that would
    hold up its writer.

    Raises:
        SettingsError: there is no readable store of this schema.
    """
    connection = read_only(path)
    try:
        newest = newest_rows.Newest(limit, None)
        while newest.step(connection):
            pass
        return [row for part in newest.pages() for row in newest_rows.read(connection, part)]
    finally:
        connection.close()


def read_observed(path: Path, limit: int) -> list[ObservedRow]:
    """The newest `limit` observed requests in order of arrival, read as by `read_history`."""
    connection = read_only(path)
    try:
        found = connection.execute(rows.SELECT_OBSERVED, (limit,))
        return [rows.observed_row(values) for values in found]
    finally:
        connection.close()


def _after(done: Committed | None) -> Done | None:
    """`done` as a callback that also takes a value; None for None."""
    if done is None:
        return None

    def without_value(_: Any, error: Exception | None) -> None:
        done(error)

    return without_value
