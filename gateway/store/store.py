"""What the rest of the gateway may ask of the store.

Nothing here blocks but what says so: a call queues work for the writer thread and answers
whether there was room. `done` is called on the writer thread, after the commit, with None or
the error; the caller brings it home (`loop.call_soon_threadsafe`).

Room. History may fill `queue_items` places; submitted jobs and learned state find as many
again, so that what is only worth learning from is the first to be lost, never a result that
somebody comes back for.
"""

from __future__ import annotations

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

OBSERVED_SLICE = 256  # rows between two trims
TOMBSTONE_S = 7 * 86_400.0
ANSWER_TIMEOUT_S = 60.0

Committed = Callable[[Exception | None], None]
T = TypeVar("T")


class Store:
    """History, submitted jobs and learned state in one SQLite file."""

    def __init__(self, path: Path, settings: StoreSettings) -> None:
        self._settings = settings
        self._retention = Retention()
        self._expire_wall_s: float | None = None
        self._observed = 0  # rows since the start; of the writer thread
        self._writer = Writer(Path(path), opened=self._opened, chore=self._chore)

    def start(self) -> None:
        """Opens, checks and migrates; blocks meanwhile. Raises SettingsError."""
        self._writer.start()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Flushes and closes; blocks at most so long. False where not all was written."""
        return self._writer.stop(timeout_s)

    def apply(self, settings: StoreSettings) -> None:
        """New bounds and TTL, at once. `path` needs a restart."""
        self._settings = settings

    def snapshot(self) -> StoreSnapshot:
        writer = self._writer
        reason = writer.reason
        if not reason and not writer.alive():
            reason = "the writer thread has ended"
        return StoreSnapshot(
            ok=not reason,
            queue=writer.depth(),
            committed=writer.committed,
            lost=writer.lost,
            last_commit_s=writer.last_commit_s,
            rows=self._retention.rows,
            errors=writer.errors,
            reason=reason,
        )

    # — history —

    def append_history(self, row: HistoryRow, done: Committed | None = None) -> bool:
        """False when the queue is full: the row is lost, and counted."""
        values = rows.to_sql(row)

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(rows.INSERT_HISTORY, values)
            self._retention.rows += 1

        return self._writer.offer(insert, _after(done), self._settings.queue_items)

    def history_pages(self, limit: int, encoder: str | None = None) -> Iterator[list[HistoryRow]]:
        """At most `limit` rows (of one encoder, or of all), oldest first; see newest_rows.py.

        Blocks for each page; commits go between. While one page is used the next is read.
        """
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
        """Forgets all history."""

        def clear(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM history")
            self._retention.rows = 0

        return self._offer(clear, _after(done))

    # — what was observed —

    def append_observed(self, row: ObservedRow) -> bool:
        """False when the queue is full: the row is lost, and counted. The newest
        `observed_rows` are kept."""
        values = rows.to_sql(row)

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(rows.INSERT_OBSERVED, values)
            self._observed += 1
            if self._observed % OBSERVED_SLICE == 0:
                connection.execute(rows.TRIM_OBSERVED, (self._settings.observed_rows,))

        return self._writer.offer(insert, None, self._settings.queue_items)

    # — submitted jobs —

    def put_job(self, row: JobRow, done: Committed | None = None) -> bool:
        """A new job; `done` hears sqlite3.IntegrityError where the id is taken."""
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
        """What is None stays as it is. A job ends once: `done` hears NotFound where the job
        is unknown or has ended already."""
        values = (status, result, error, ended_wall_s, started_wall_s, forecast, id)

        def update(connection: sqlite3.Connection) -> None:
            if connection.execute(rows.UPDATE_JOB, values).rowcount == 0:
                raise NotFound(f"no unfinished job {id}")

        return self._offer(update, _after(done))

    def get_job(self, id: str, done: Callable[[JobRow | Exception | None], None]) -> bool:
        """`done` gets the row, None where there is none, or the error that kept it away."""

        def select(connection: sqlite3.Connection) -> JobRow | None:
            found = connection.execute(rows.SELECT_JOB, (id,)).fetchone()
            return None if found is None else rows.job_row(found)

        def answer(row: JobRow | None, error: Exception | None) -> None:
            done(row if error is None else error)

        return self._offer(select, answer)

    def load_unfinished(self) -> list[JobRow]:
        """Jobs queued or running when the last process ended, oldest first. Blocks."""

        def select(connection: sqlite3.Connection) -> list[JobRow]:
            return [rows.job_row(values) for values in connection.execute(rows.SELECT_UNFINISHED)]

        return self._ask(select)

    def expire_jobs(self, now_wall_s: float, done: Committed | None = None) -> bool:
        """Empties jobs that ended `job_ttl_s` ago; their tombstones go TOMBSTONE_S later.

        In slices on the writer thread: `done` hears of the first, the rest follow it.
        """

        def expire(connection: sqlite3.Connection) -> None:
            self._expire_wall_s = now_wall_s
            self._expire(connection)

        return self._offer(expire, _after(done))

    # — learned state —

    def put_state(self, name: str, value: bytes, done: Committed | None = None) -> bool:
        """Keeps `value` under `name`, in place of what was there."""

        def put(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))

        return self._offer(put, _after(done))

    def get_state(self, name: str) -> bytes | None:
        """What was kept under `name`. Blocks."""

        def get(connection: sqlite3.Connection) -> bytes | None:
            found = connection.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
            return None if found is None else bytes(found[0])

        return self._ask(get)

    def prompt_secret(self) -> bytes:
        """The key of the prompt hashes. Made once a store, so that its rows go on matching.
        Blocks."""
        key = self.get_state("prompt_secret")
        if key is None:
            key = os.urandom(32)
            self.put_state("prompt_secret", key)
        return key

    # — inside —

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

    def _opened(self, connection: sqlite3.Connection) -> None:
        self._retention.count(connection)

    def _chore(self, connection: sqlite3.Connection) -> bool:
        """One slice of trimming and of expiring; True while there is more. On the thread."""
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
    """History of a store another process may have open: for refits and evaluation.

    Takes no lock that would hold up the writer. As `load_history`.
    Raises SettingsError where there is no readable store of this schema.
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
    """The newest `limit` observed requests in order of arrival; as `read_history`."""
    connection = read_only(path)
    try:
        found = connection.execute(rows.SELECT_OBSERVED, (limit,))
        return [rows.observed_row(values) for values in found]
    finally:
        connection.close()


def _after(done: Committed | None) -> Done | None:
    """A listener that wants no value, only whether it was committed."""
    if done is None:
        return None

    def tell(_: Any, error: Exception | None) -> None:
        done(error)

    return tell
