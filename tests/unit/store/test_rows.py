"""Column lists and structs agree."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from gateway.store.database import open_database
from gateway.store.rows import JobRow, history_row, to_sql
from gateway.types import HistoryRow
from tests.unit.store.rows import history


@pytest.mark.parametrize(("table", "struct"), [("jobs", JobRow), ("history", HistoryRow)])
def test_columns_are_the_structs_fields_in_order(
    tmp_path: Path, table: str, struct: type[JobRow] | type[HistoryRow]
) -> None:
    """A table's columns are its struct's fields in order, as rows are bound by position."""
    connection = open_database(tmp_path / "a.db")
    columns = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
    connection.close()
    assert [name for name in columns if name != "seq"] == list(struct.__struct_fields__)


def test_history_row_comes_back_as_it_went(tmp_path: Path) -> None:
    """A row read from SQLite equals the row that was written, booleans as booleans."""
    values = sqlite3.connect(":memory:").execute(
        f"SELECT {', '.join('?' * 17)}", to_sql(history(3))
    )
    back = history_row(values.fetchone())
    assert back == history(3)
    assert back.censored is False
    assert back.success is False
    assert back.shared is True
