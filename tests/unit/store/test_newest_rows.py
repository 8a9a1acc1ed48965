"""The rows an index is filled with: the newest of each tenant."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.store import rows
from gateway.store.database import open_database
from gateway.store.newest_rows import PAGE_ROWS, STEP_ROWS, Newest, read, shares
from tests.unit.store.rows import history


@pytest.fixture
def connection(tmp_path: Path) -> sqlite3.Connection:
    return open_database(tmp_path / "a.db")


def newest(connection: sqlite3.Connection, limit: int, encoder: str | None) -> list[int]:
    chosen = Newest(limit, encoder)
    while chosen.step(connection):
        pass
    return [seq for page in chosen.pages() for seq in page]


def put(connection: sqlite3.Connection, tenant: str, count: int, encoder: str = "e") -> None:
    for i in range(count):
        row = replace(history(i, encoder), tenant=tenant)
        connection.execute(rows.INSERT_HISTORY, rows.to_sql(row))


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 50), max_size=8), st.integers(0, 200))
def test_shares_are_equal_and_fill_the_room(counts: dict[str, int], limit: int) -> None:
    """All places that are needed are given, no tenant gets more than it has, and one that gets less
    than that has at most one place less than the one with most."""
    found = shares(counts, limit)
    assert sum(found.values()) == min(limit, sum(counts.values()))
    assert all(0 <= found[tenant] <= counts[tenant] for tenant in counts)
    most = max(found.values(), default=0)
    assert all(found[t] >= most - 1 for t in counts if found[t] < counts[t])


def test_newest_rows_are_of_each_tenant(connection: sqlite3.Connection) -> None:
    """The rows come oldest first, and a flood gets the places that the others leave."""
    put(connection, "quiet", 2)
    put(connection, "loud", 10)
    assert newest(connection, 5, None) == [1, 2, 10, 11, 12]
    assert newest(connection, 100, None) == list(range(1, 13))


def test_newest_rows_of_an_encoder_leave_out_the_others(connection: sqlite3.Connection) -> None:
    """Rows without the encoder's vectors take no places."""
    put(connection, "a", 3)
    put(connection, "a", 5, encoder="")
    assert newest(connection, 4, "e") == [1, 2, 3]
    assert newest(connection, 4, "another") == []
    assert newest(connection, 4, None) == [5, 6, 7, 8]


def test_choosing_many_rows_takes_several_steps(connection: sqlite3.Connection) -> None:
    """No step chooses more than STEP_ROWS; all rows are chosen, in order, in pages."""
    connection.execute("BEGIN")
    for tenant in ("a", "b"):
        put(connection, tenant, STEP_ROWS + 5)
    chosen, steps = Newest(10**6, "e"), 1
    while chosen.step(connection):
        steps += 1
    assert steps == 3
    cut = list(chosen.pages())
    assert {len(page) for page in cut[:-1]} == {PAGE_ROWS}
    assert [seq for page in cut for seq in page] == list(range(1, 2 * STEP_ROWS + 11))


def test_rows_of_a_page_are_read_in_order(connection: sqlite3.Connection) -> None:
    """Rows removed meanwhile are left out."""
    put(connection, "a", 5)
    connection.execute("DELETE FROM history WHERE seq = 3")
    assert [row.prompt_tokens for row in read(connection, [2, 3, 5])] == [1, 4]


@pytest.mark.parametrize("statement", [*rows.ANY, *rows.ENCODED])
def test_choosing_rows_reads_an_index_alone(connection: sqlite3.Connection, statement: str) -> None:
    """Choosing reads a covering index: reading the rows would take a second."""
    plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", (1,) * statement.count("?"))
    steps = [step[-1] for step in plan]
    assert all("COVERING INDEX" in step for step in steps), steps
