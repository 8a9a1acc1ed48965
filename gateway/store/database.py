"""Opening of the SQLite file: checks, migrations, settings of the connection.

1. A file that does not exist is made: folder 0700, file 0600, for it has prompts of submitted jobs.
2. A damaged file is renamed, together with its -wal and -shm, and a new one is begun. History can
   be learned again; a gateway that does not start serves nobody.
3. A file of a newer gateway or of another program is refused: the setting is wrong, and writing
   would do harm.
4. A file that cannot be opened (permissions, no folder, locked) is refused with the reason.

Durability: WAL with `synchronous = FULL`, so a commit is on the disk before it is acknowledged and
survives a loss of power. A group commit needs one fsync for many rows. With NORMAL the last
commits could be lost (sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from pathlib import Path

from gateway.errors import SettingsError

log = logging.getLogger("sagesched.store")

APPLICATION_ID = 0x53414745  # "SAGE"; other programs' files have another
BUSY_TIMEOUT_MS = 5000
WAL_LIMIT_BYTES = 64 * 2**20

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE history (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            wall_s REAL NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL,
            task_type TEXT NOT NULL, prompt_key BLOB NOT NULL, encoder TEXT NOT NULL,
            vector BLOB NOT NULL, prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
            max_tokens INTEGER NOT NULL, censored INTEGER NOT NULL, success INTEGER NOT NULL)""",
        "CREATE INDEX history_encoder ON history (encoder)",
        """CREATE TABLE jobs (
            id TEXT PRIMARY KEY, tenant TEXT NOT NULL,
            status TEXT NOT NULL
                CHECK (status IN ('queued', 'running', 'done', 'failed', 'gone')),
            created_wall_s REAL NOT NULL, request BLOB NOT NULL, started_wall_s REAL,
            ended_wall_s REAL, result BLOB, error BLOB, forecast BLOB)""",
        """CREATE INDEX jobs_unfinished ON jobs (created_wall_s)
            WHERE status IN ('queued', 'running')""",
        "CREATE INDEX jobs_ended ON jobs (status, ended_wall_s)",
        "CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    ),
    (
        "ALTER TABLE history ADD COLUMN template TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE history ADD COLUMN features BLOB NOT NULL DEFAULT x''",
        "ALTER TABLE history ADD COLUMN neighbours BLOB NOT NULL DEFAULT x''",
        "ALTER TABLE history ADD COLUMN shared INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE history ADD COLUMN text TEXT NOT NULL DEFAULT ''",
        # Covers `count(*) … GROUP BY tenant` and "the oldest of a tenant" without the rows.
        "CREATE INDEX history_tenant ON history (tenant, seq)",
        "CREATE INDEX history_wall ON history (wall_s)",
    ),
    (
        # Covers the counts and the newest rows of one encoder, and replaces history_encoder.
        "CREATE INDEX history_window ON history (encoder, tenant, seq)",
        "DROP INDEX history_encoder",
    ),
    (
        """CREATE TABLE observed (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, arrived_wall_s REAL NOT NULL,
            tenant TEXT NOT NULL, model TEXT NOT NULL, account TEXT NOT NULL,
            outcome TEXT NOT NULL, status INTEGER NOT NULL, n INTEGER NOT NULL,
            prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
            first BLOB NOT NULL, last BLOB NOT NULL, queue_s REAL NOT NULL,
            ttft_s REAL NOT NULL, upstream_s REAL NOT NULL, attempts INTEGER NOT NULL,
            would TEXT NOT NULL, would_wait_s REAL NOT NULL)""",
    ),
)
"""Step i takes a file from `user_version` i to i + 1. New steps are appended, none is changed."""


def open_database(path: Path) -> sqlite3.Connection:
    """A connection in autocommit mode, for the calling thread alone.

    Raises:
        SettingsError: the file is unusable but not damaged.
    """
    _make_file(path)
    try:
        damage = _damage(path)
        if damage is not None:
            aside = set_aside(path)
            log.error(
                "the store is damaged: set aside, starting with an empty one",
                extra={"path": str(path), "kept_as": str(aside), "reason": damage},
            )
            _make_file(path)
        connection = _connect(path)
    except (sqlite3.Error, OSError) as error:
        raise SettingsError(f"store.path: {path} cannot be used: {error}") from None
    try:
        _refuse_foreign(connection, path)
        path.chmod(0o600)  # a file made by hand may be open to others
        _configure(connection)
        _migrate(connection)
    except (sqlite3.Error, OSError) as error:
        connection.close()
        raise SettingsError(f"store.path: {path} cannot be used: {error}") from None
    except BaseException:
        connection.close()
        raise
    return connection


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that only reads, beside the one that writes.

    Raises:
        SettingsError: there is no store, or one of another schema.
    """
    return _beside(path, "ro")


def second_writer(path: Path) -> sqlite3.Connection:
    """A connection that writes beside the first one, whose opening has made and checked the file.

    Raises:
        SettingsError: there is no store, or one of another schema.
    """
    connection = _beside(path, "rw")
    try:
        _configure(connection)
    except sqlite3.Error as error:
        connection.close()
        raise SettingsError(f"store.path: {path} cannot be used: {error}") from None
    return connection


def _beside(path: Path, mode: str) -> sqlite3.Connection:
    try:
        connection = _connect(path, mode)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        application = connection.execute("PRAGMA application_id").fetchone()[0]
    except (sqlite3.Error, OSError) as error:
        raise SettingsError(f"store.path: {path} cannot be read: {error}") from None
    if application != APPLICATION_ID or version != len(MIGRATIONS):
        connection.close()
        raise SettingsError(f"store.path: {path} is no store of schema {len(MIGRATIONS)}")
    return connection


def set_aside(path: Path) -> Path:
    """Renames file, -wal and -shm together, for later examination; the new path."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.corrupt-{stamp}")
    number = 0
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.corrupt-{stamp}.{number}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def _make_file(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # -wal and -shm take the mode of the database file.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise SettingsError(f"store.path: {path} cannot be used: {error.strerror}") from None


def _connect(path: Path, mode: str = "rw") -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    return connection


def _damage(path: Path) -> str | None:
    """Description of the damage; None for a sound file. Other errors of SQLite are raised.

    Opens for reading: opening a damaged file for writing may drop its -wal.
    """
    connection = _connect(path, mode="ro")
    try:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        # The low byte is the primary code; extended codes (…_INDEX, …_SEQUENCE) share it.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return str(error)
        raise
    finally:
        connection.close()
    return None if found == "ok" else str(found)


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    empty = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
    if application != APPLICATION_ID and not (empty and version == 0 and application == 0):
        raise SettingsError(f"store.path: {path} is the database of another program")
    if version > len(MIGRATIONS):
        raise SettingsError(
            f"store.path: {path} has schema {version}, this gateway knows up to"
            f" {len(MIGRATIONS)}: it was written by a newer gateway"
        )


def _configure(connection: sqlite3.Connection) -> None:
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        f"journal_size_limit = {WAL_LIMIT_BYTES}",
        # Expired prompts and results are overwritten, not only unlinked.
        "secure_delete = ON",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _migrate(connection: sqlite3.Connection) -> None:
    """Applies the missing steps in one transaction, so that a crash leaves all or none."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
