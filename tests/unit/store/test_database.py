"""Opening the file: private when made, checked, renamed if damaged, refused if it is not ours."""

from __future__ import annotations

import logging
import sqlite3
import stat
from pathlib import Path

import pytest

from gateway.errors import SettingsError
from gateway.store.database import APPLICATION_ID, MIGRATIONS, open_database


def shape(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    found = connection.execute(
        "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
    )
    return sorted(found.fetchall())


def filled(path: Path, rows: int = 400) -> None:
    connection = open_database(path)
    for i in range(rows):
        connection.execute("INSERT INTO state VALUES (?, ?)", (f"name-{i}", bytes(500)))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def aside(path: Path) -> list[Path]:
    """The databases that were renamed, without their companions."""
    found = sorted(path.parent.glob(f"{path.name}.corrupt-*"))
    return [p for p in found if not p.name.endswith(("-wal", "-shm"))]


def test_new_file_is_private(tmp_path: Path) -> None:
    """A new folder is 0700; file, -wal and -shm are 0600."""
    path = tmp_path / "var" / "deep" / "a.db"
    connection = open_database(path)
    connection.execute("INSERT INTO state VALUES ('a', x'00')")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    connection.close()
    assert modes == {"a.db": 0o600, "a.db-wal": 0o600, "a.db-shm": 0o600}


def test_open_to_others_is_closed_to_them(tmp_path: Path) -> None:
    """A file that others could read is made private; the folder is left alone."""
    path = tmp_path / "a.db"
    path.touch(0o644)
    path.chmod(0o644)
    tmp_path.chmod(0o755)
    open_database(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_connection_is_durable(tmp_path: Path) -> None:
    """The connection uses WAL, and a commit is on the disk (FULL = 2) before it is acknowledged."""
    connection = open_database(tmp_path / "a.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    connection.close()


def test_garbage_is_set_aside_with_wal_and_shm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is no database is renamed byte for byte with its companions, logged, and
    replaced."""
    path = tmp_path / "a.db"
    path.write_bytes(b"not a database at all" * 500)
    path.with_name("a.db-wal").write_bytes(b"wal")
    with caplog.at_level(logging.ERROR, "sagesched.store"):
        connection = open_database(path)
    connection.execute("INSERT INTO state VALUES ('a', x'00')")
    connection.close()
    (main,) = aside(path)
    assert main.read_bytes() == b"not a database at all" * 500
    assert main.with_name(main.name + "-wal").read_bytes() == b"wal"
    assert "set aside" in caplog.text


def test_damaged_pages_are_found_and_set_aside(tmp_path: Path) -> None:
    """A file that opens but has broken pages is found by the check at the start."""
    path = tmp_path / "a.db"
    filled(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = b"\xa5" * (len(data) - len(data) // 2)
    path.write_bytes(data)
    connection = open_database(path)
    assert connection.execute("SELECT count(*) FROM state").fetchone() == (0,)
    connection.close()
    assert len(aside(path)) == 1


def test_truncated_file_is_set_aside(tmp_path: Path) -> None:
    """A file that was cut short counts as damaged."""
    path = tmp_path / "a.db"
    filled(path)
    path.write_bytes(path.read_bytes()[: 4096 * 3])
    open_database(path).close()
    assert len(aside(path)) == 1


def test_two_damaged_files_keep_two_names(tmp_path: Path) -> None:
    """Two files renamed within a second get two names."""
    path = tmp_path / "a.db"
    for text in (b"first" * 1000, b"second" * 1000):
        path.write_bytes(text)
        open_database(path).close()
    kept = {p.read_bytes()[:5] for p in aside(path)}
    assert kept == {b"first", b"secon"}


def test_sound_file_is_kept(tmp_path: Path) -> None:
    """The twin: a sound file is not renamed and keeps its rows."""
    path = tmp_path / "a.db"
    filled(path)
    connection = open_database(path)
    assert connection.execute("SELECT count(*) FROM state").fetchone() == (400,)
    connection.close()
    assert aside(path) == []


def test_newer_schema_is_refused_and_untouched(tmp_path: Path) -> None:
    """A newer gateway's file is refused by name and not changed."""
    path = tmp_path / "a.db"
    filled(path, rows=1)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(SettingsError, match=r"a\.db has schema .* newer gateway"):
        open_database(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
    connection.close()


def test_other_programs_database_is_refused_and_untouched(tmp_path: Path) -> None:
    """Another program's database is refused and not changed."""
    path = tmp_path / "browser.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SettingsError, match="another program"):
        open_database(path)
    assert path.read_bytes() == before


def test_unusable_path_is_a_settings_error(tmp_path: Path) -> None:
    """The error of a file that cannot be opened names the setting and the path."""
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "a.db"):
        with pytest.raises(SettingsError, match=r"store\.path: .*cannot be used"):
            open_database(path)


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
def test_every_older_schema_comes_up_to_date(tmp_path: Path, version: int) -> None:
    """A file of any earlier version ends with the same tables as a new one."""
    old = sqlite3.connect(tmp_path / "old.db", isolation_level=None)
    for statements in MIGRATIONS[:version]:
        for statement in statements:
            old.execute(statement)
    old.execute(f"PRAGMA user_version = {version}")
    if version:
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    old.close()
    opened, fresh = open_database(tmp_path / "old.db"), open_database(tmp_path / "new.db")
    assert shape(opened) == shape(fresh)
    assert opened.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    opened.close()
    fresh.close()
