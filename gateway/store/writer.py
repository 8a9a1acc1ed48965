"""The thread that owns the gateway's SQLite connection and commits in groups.

A commit waits for the disk, so it cannot be done on the loop. With one thread the connection needs
no lock; the predictor's process, which writes history, has another (history_writer.py). Reads go
through the thread, too, so that each sees what was written before it.

The first piece of work wakes the thread, and all that is queued by then joins its transaction.
Two commits are at least GROUP_S apart, so that under load the thread does not take the
interpreter's lock from the loop a thousand times a second.

Failures:

1. Of one piece of work (a duplicate id, a value that does not bind): it alone fails.
2. Of the transaction (disk full, I/O, locked, damaged): every piece of the group fails. The error
   is counted and kept as `reason`, and the thread goes on with the next group.
3. Of a callback: it is logged.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from msgspec import Struct

from gateway.store.database import open_database

log = logging.getLogger("sagesched.store")

GROUP_S = 0.01  # least time between two commits
GROUP_ITEMS = 1000
CHORE_PAUSE_S = 0.05  # between two runs of the chore without other work
LOG_EVERY_S = 10.0

Call = Callable[[sqlite3.Connection], Any]
Done = Callable[[Any, Exception | None], None]


class Work(Struct):
    """A call to make on the connection, and the callback for after the commit."""

    call: Call
    done: Done | None


class Writer:
    """The writer thread.

    Args:
        path: of the database file.
        opened: called with the connection before any work.
        chore: does a slice of regular work in every group's transaction, and while the queue is
            empty for as long as it returns True.
    """

    def __init__(self, path: Path, *, opened: Call, chore: Callable[[sqlite3.Connection], bool]):
        self.committed = 0
        self.errors = 0
        self.lost = 0
        self.last_commit_s = 0.0
        self.reason = "not started"
        self._path = path
        self._on_open = opened
        self._chore = chore
        self._chore_due = True
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._taking = False
        self._last_end = 0.0
        self._logged_at = float("-inf")
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="sagesched-store", daemon=True)

    # — any thread —

    def start(self) -> None:
        """Opens the file and starts the thread. Blocks. Raises SettingsError."""
        self._taking = True
        self._thread.start()
        self._opened.result()

    def stop(self, timeout_s: float) -> bool:
        """Refuses new work and does all that is queued; False if `timeout_s` was too short."""
        with self._gate:
            was_taking, self._taking = self._taking, False
            if was_taking:
                self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def offer(self, call: Call, done: Done | None, bound: int) -> bool:
        """Queues work; False, without a call of `done`, if `bound` items are queued already."""
        with self._gate:
            if not self._taking or self._queue.qsize() >= bound:
                self.lost += 1
                return False
            self._queue.put(Work(call, done))
            return True

    def depth(self) -> int:
        """Number of queued pieces of work."""
        return self._queue.qsize()

    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    # — the thread —

    def _run(self) -> None:
        try:
            connection = open_database(self._path)
            self._on_open(connection)
        except BaseException as error:
            self.reason = str(error)
            with self._gate:
                self._taking = False
            self._opened.set_exception(error)
            return
        self.reason = ""
        self._opened.set_result(None)
        ended = False
        while not ended:
            group, ended = self._gather()
            self._do(connection, group)
        self._close(connection)

    def _gather(self) -> tuple[list[Work], bool]:
        """The next group, empty if only the chore is due; True if the thread must end."""
        group: list[Work] = []
        try:
            first = self._queue.get(timeout=CHORE_PAUSE_S if self._chore_due else None)
            if first is None:
                return group, True
            group.append(first)
            pause_s = self._last_end + GROUP_S - time.monotonic()
            if pause_s > 0:
                time.sleep(pause_s)
            while len(group) < GROUP_ITEMS:
                work = self._queue.get_nowait()
                if work is None:
                    return group, True
                group.append(work)
        except queue.Empty:
            pass
        return group, False

    def _do(self, connection: sqlite3.Connection, group: list[Work]) -> None:
        began = time.monotonic()
        answers: list[tuple[Any, Exception | None]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for work in group:
                answers.append(_attempt(connection, work.call))
            self._chore_due = self._chore(connection)
            connection.execute("COMMIT")
        except Exception as error:
            self._failed(connection, error, len(group))
            answers = [(None, error)] * len(group)
        else:
            self.reason = ""
            self.committed += len(group)
        self._last_end = time.monotonic()
        self.last_commit_s = self._last_end - began
        for work, (value, error_or_none) in zip(group, answers, strict=True):
            if work.done is not None:
                _call_back(work.done, value, error_or_none)

    def _failed(self, connection: sqlite3.Connection, error: Exception, items: int) -> None:
        self.errors += 1
        self.reason = f"{type(error).__name__}: {error}"
        self._chore_due = False  # try again with the next group, not in a loop
        try:
            if connection.in_transaction:  # some errors have rolled back already
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            log.exception("the store could not roll back")
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            log.error(
                "a group commit failed",
                extra={"reason": self.reason, "items": items, "errors": self.errors},
            )

    def _close(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
        except sqlite3.Error as error:
            log.error("the store could not close in order", extra={"reason": str(error)})
        self.reason = "stopped"


def _attempt(connection: sqlite3.Connection, call: Call) -> tuple[Any, Exception | None]:
    """The call's result or its own error. Raises errors that spoil the whole transaction."""
    try:
        return call(connection), None
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError) as error:
        return None, error
    except sqlite3.Error:
        raise
    except Exception as error:
        return None, error


def _call_back(done: Done, value: Any, error: Exception | None) -> None:
    try:
        done(value, error)
    except Exception:
        log.exception("a listener of the store failed")
